"""One step of an answer: s_k ~ p(s | x, s_1..k-1) up to a delimiter, and its reward r_k = V(x, s_1..k).

The conversation with the answer so far as its last message is continued, so that the engine's prefix cache holds
all but the new step. The answer so far is what was decoded, character by character, the delimiter included: a token
like ``.\\n\\n`` is kept whole, so that the text read again is the text that was written. Whether a step or the
answer has ended is read off the decoded tokens: they contain the delimiter or they do not.

A step that is empty (a blank line) is none: it is joined, and the next one drawn. A chat template that drops the
newline at the end of the message to continue gives nothing but such steps; after three the answer counts as ended.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Self

from pydantic import Field, model_validator

from stratagem.core.asking import Sampling
from stratagem.core.backend import Finish, Message, TokenLogprob
from stratagem.core.component import parameter
from stratagem.core.errors import ContextLengthError, UnsupportedError
from stratagem.core.protocols import Verifier
from stratagem.core.rewards import Aggregate, aggregated
from stratagem.core.run import Run
from stratagem.core.seeds import derive
from stratagem.core.task import Candidate, Task
from stratagem.strategies._sampler import Sampler

_BLANK = 3


@dataclass(frozen=True, slots=True)
class Partial:
    """An answer as far as it has been written."""

    text: str = ""  # without the delimiter at its end
    tail: str = ""  # that delimiter, with the blank space after it that came in the same token
    steps: int = 0
    ended: bool = False
    finish: Finish = "length"  # "stop" where it ended by itself
    token_count: int = 0  # decoded for it
    tokens: tuple[TokenLogprob, ...] = ()
    rewards: tuple[float, ...] = ()  # of its steps, abstentions left out
    judged: int = 0  # of its steps
    index: int = 0  # among the siblings that it was drawn with

    @property
    def written(self) -> str:
        """What the model continues; two partial answers that agree in it are the same."""
        return self.text + self.tail

    @property
    def logprob(self) -> float:
        """Of all its tokens, at temperature 1, in nats."""
        return math.fsum(t.logprob for t in self.tokens)


class Stepwise(Sampler):
    """A strategy that writes answers step by step and has every step judged."""

    max_tokens: int = parameter(512, "Longest answer, in tokens, over all its steps.", ge=1)
    delimiter: str = parameter("\n", "Ends a step; belongs to it.", min_length=1)
    step_tokens: int = parameter(128, "Longest step, in tokens; what is longer counts as several.", ge=1)
    max_steps: int = parameter(20, "Steps; the last one goes on to the end of the answer.", ge=1)
    verifier: Verifier = Field(
        default_factory=lambda: Verifier.load("step_judge"),
        description="Gives the reward of an answer so far; one that judges steps, that of the newest alone.",
    )
    aggregate: Aggregate = parameter(
        "min", "How the rewards of the steps become one.", search=("min", "product", "last", "mean")
    )

    @model_validator(mode="after")
    def _judges_one(self) -> Self:
        if not self.verifier.pointwise:
            raise ValueError(
                f"the verifier {self.verifier.kind!r} compares answers: take one that judges each alone"
            )
        return self

    async def extend(
        self,
        task: Task,
        run: Run,
        partial: Partial,
        n: int = 1,
        *,
        whole: bool = False,
        then: Callable[[Partial], Awaitable[None]] | None = None,
    ) -> list[Partial]:
        """``partial`` with one more step, not yet judged, ``n`` times; fewer if the budget admits no more. If
        ``whole``, that step goes on to the end of the answer.

        Each goes to ``then`` the moment its step has ended, while its siblings are being decoded; if ``then`` runs
        out of budget, the others go on. In the order of their endings.

        Raises:
            UnsupportedError: before anything is spent, by a model that cannot continue its own message or gives no
                log-probabilities, without which a step's end is not told from the answer's.
            BudgetExhausted: not even one step was affordable.
        """
        caps = await run.model().capabilities()
        if not caps.continue_final or caps.logprobs < 0:
            lacks = "gives no log-probabilities" if caps.continue_final else "cannot continue its own message"
            raise UnsupportedError(
                f"{caps.model} {lacks}, which {self.kind} needs.",
                remedy="Use a vLLM server or the embedded model, or a strategy that samples whole answers.",
            )
        drawing = self._drawing(partial, whole)
        request = run.request(self._conversation(task, partial), n, sampling=drawing)
        grown: list[Partial] = []

        async def arrived(index: int, candidate: Candidate) -> Candidate:
            longer = self._joined(partial, candidate, drawing)
            for blank in range(1, _BLANK):
                if longer.ended or longer.steps > partial.steps:
                    break
                next_line = self._drawing(longer, whole)
                again = replace(
                    request,
                    messages=self._conversation(task, longer),
                    n=1,
                    max_tokens=next_line.max_tokens,
                    stop=next_line.stop,
                    seed=derive(request.seed, index, blank),  # whichever sibling is blank first
                )
                [more] = await run.draw(again)
                longer = self._joined(longer, more, next_line)
            if longer.steps == partial.steps:
                longer = replace(longer, tail="", ended=True)
            await ready(replace(longer, index=index))
            return candidate

        async def ready(longer: Partial) -> None:
            grown.append(longer)
            if then is not None:
                await then(longer)

        try:
            await run.draw(request, then=arrived)
        except ContextLengthError:
            if not partial.steps:
                raise
            await ready(replace(partial, tail="", ended=True))  # the context is full
        return grown

    async def judge(self, task: Task, run: Run, partial: Partial) -> Partial:
        """``partial`` with the reward of its newest step, unless it has it already or the verifier abstains."""
        if partial.judged == partial.steps:
            return partial
        [verdict] = await run.verify(self.verifier.newest(), task, [self.candidate(task, partial)])
        rewards = partial.rewards if verdict.score is None else (*partial.rewards, verdict.score)
        return replace(partial, rewards=rewards, judged=partial.steps)

    def score(self, partial: Partial) -> float:
        """The rewards of its steps as one, in [0, 1]; 0 where there are none."""
        return aggregated(self.aggregate, partial.rewards) if partial.rewards else 0.0

    def bound(self, partial: Partial) -> float:
        """What no answer that begins like this can exceed in score: it falls with every step, or knows no limit."""
        falls = self.aggregate in ("min", "product")
        return self.score(partial) if partial.ended or (falls and partial.rewards) else 1.0

    def candidate(self, task: Task, partial: Partial) -> Candidate:
        """As a candidate; only one that has ended has an answer."""
        judged = partial.judged == partial.steps
        return Candidate(
            partial.text,
            task.extract(partial.text) if partial.ended else None,
            partial.finish,
            partial.token_count,
            partial.logprob,
            partial.tokens,
            {self.verifier.kind: self.score(partial)} if partial.rewards and judged else {},
            tuple(self.prompt(task)),
        )

    def _conversation(self, task: Task, partial: Partial) -> tuple[Message, ...]:
        begun = (Message("assistant", partial.written),) if partial.written else ()
        return (*self.prompt(task), *begun)

    def _drawing(self, partial: Partial, whole: bool) -> Sampling:
        left = self.max_tokens - partial.token_count
        last = whole or partial.steps + 1 >= self.max_steps
        return replace(
            self.sampling(logprobs=0),
            max_tokens=left if last else min(self.step_tokens, left),
            stop=() if last else (self.delimiter,),
        )

    def _joined(self, partial: Partial, step: Candidate, asked: Sampling) -> Partial:
        decoded = "".join(t.token for t in step.tokens)
        _, delimiter, rest = decoded.partition(self.delimiter) if asked.stop else (decoded, "", "")
        count = partial.token_count + step.token_count
        # A step cut before the length that was asked for has met the end of the budget or of the context.
        goes_on = bool(delimiter) if step.finish == "stop" else step.token_count >= asked.max_tokens
        ended = not goes_on or count >= self.max_tokens or not asked.stop
        space = delimiter + rest[: len(rest) - len(rest.lstrip())]
        text, tail, steps = partial.written + step.text, space, partial.steps + 1
        if not step.text.strip():
            text, tail, steps = partial.text, partial.tail + step.text + space, partial.steps
        return Partial(
            text,
            "" if ended else tail,
            steps,
            ended,
            "length" if delimiter else step.finish,
            count,
            (*partial.tokens, *step.tokens),
            partial.rewards,
            partial.judged,
        )
