"""What is asked, what may answer it, and what is given back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stratagem.core.backend import Completion, Finish, Message, TokenLogprob
from stratagem.core.calling import Called
from stratagem.core.extract import extract_answer
from stratagem.core.usage import Usage

Stopped = Literal["complete", "budget", "deadline", "cancelled", "failed"]


class Task(BaseModel):
    """What is asked. Holds no gold answer: a strategy must not see one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    messages: tuple[Message, ...] = Field(min_length=1)
    choices: tuple[str, ...] = ()  # the answer is one of these, where given
    answer_schema: dict[str, Any] | None = None  # the answer is JSON that this schema accepts, where given
    id: str = ""

    @classmethod
    def of(cls, question: str | Task, **fields: Any) -> Task:
        """A task from a plain question; a task passes unchanged."""
        if isinstance(question, Task):
            return question
        return cls(messages=(Message("user", question),), **fields)

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if not any(m.content.strip() for m in self.messages if m.role == "user"):
            raise ValueError("the question is empty: give the text of what is asked")
        return self

    @property
    def question(self) -> str:
        """The last user message."""
        return next(m.content for m in reversed(self.messages) if m.role == "user")

    def ask(self, suffix: str = "", *, system: str = "") -> tuple[Message, ...]:
        """The conversation with an instruction after the last message (what varies stands last, so that
        strategies on one task share the server's prefix cache)."""
        head = (Message("system", system),) if system else ()
        if not suffix:
            return head + self.messages
        last = self.messages[-1]
        return head + self.messages[:-1] + (replace(last, content=f"{last.content}\n{suffix}"),)

    def extract(self, text: str) -> str | None:
        """The final answer in a completion, in the form that this task asks for."""
        if self.answer_schema is not None:
            return text.strip() or None
        return extract_answer(text, choices=self.choices)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One possible answer."""

    text: str
    answer: str | None = None  # extracted; None: there is none in the text
    finish: Finish = "stop"
    token_count: int = 0
    logprob: float | None = None  # of the whole text, summed over tokens, where asked for
    tokens: tuple[TokenLogprob, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)  # by verifier
    prompt: tuple[Message, ...] = ()  # the conversation it completes

    @classmethod
    def of(cls, completion: Completion, task: Task | None, prompt: tuple[Message, ...]) -> Self:
        """A completion of ``prompt``, its answer extracted as ``task`` asks for it."""
        return cls(
            text=completion.text,
            answer=task.extract(completion.text) if task is not None else None,
            finish=completion.finish,
            token_count=completion.token_count,
            logprob=sum(t.logprob for t in completion.tokens) if completion.tokens else None,
            tokens=completion.tokens,
            prompt=prompt,
        )

    @property
    def steps(self) -> tuple[str, ...]:
        """Its non-empty lines."""
        return tuple(line for line in self.text.splitlines() if line.strip())

    @property
    def mean_logprob(self) -> float | None:
        """Log-probability per token, where known."""
        return None if self.logprob is None else self.logprob / max(1, self.token_count)

    def scored(self, **scores: float) -> Candidate:
        """A copy with these scores added."""
        return replace(self, scores={**self.scores, **scores})


class Answer(BaseModel):
    """What a strategy gives back, with what it cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    value: str | None = None  # the extracted answer
    confidence: float | None = Field(default=None, ge=0.0, le=1.0)
    candidates: tuple[Candidate, ...] = ()
    calls: tuple[Called, ...] = ()  # of tools, in order, with those that failed
    basis: tuple[str, ...] = ()  # names of the calls that the answer rests on
    stopped: Stopped = "complete"  # failed: in a batch, where the others have their answers
    reason: str = ""  # why it is not complete
    usage: Usage = Usage()
    seconds: float = 0.0
    run_id: str = ""

    @classmethod
    def of(
        cls, chosen: Candidate, candidates: tuple[Candidate, ...] = (), confidence: float | None = None
    ) -> Answer:
        """The answer that ``chosen`` gives, out of ``candidates``."""
        return cls(
            text=chosen.text,
            value=chosen.answer,
            confidence=confidence,
            candidates=candidates or (chosen,),
        )
