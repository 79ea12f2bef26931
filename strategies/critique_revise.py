"""Critique-revise: y_{t+1} ~ p(y | x, y_t, c_1..c_k) with critiques c_j ~ q(c | x, y_t, principle j).

Source: Bai et al. 2022 (arXiv 2212.08073), section 3.1, whose critiques follow principles. Theirs come one after
the other; here all critiques of a draft are written at the same time and one revision heeds them, so that a round
takes the time of two completions however many principles there are. The critic may be another model (role
``judge``); author and critic see the question and the latest draft alone, not the history as in self-refine.

With a verifier a draft is judged while it is criticised, and the best one is the answer; without, the last one that
states an answer. A critique that is empty or says "No error" asks for nothing; where all are so, it ends.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from stratagem.core.asking import JUDGE
from stratagem.core.backend import Message
from stratagem.core.component import parameter
from stratagem.core.concurrency import task_group
from stratagem.core.errors import ContextLengthError
from stratagem.core.protocols import Verifier
from stratagem.core.run import Run
from stratagem.core.task import Answer, Candidate, Task
from stratagem.strategies._judging import best, judge
from stratagem.strategies._refining import latest, objects
from stratagem.strategies._sampler import Sampler

Principle = Annotated[str, Field(min_length=1)]


class CritiqueRevise(Sampler):
    """One answer, criticised by principles and revised. Cost: at most 1 + rounds (principles + 1) completions."""

    kind: ClassVar[str] = "critique_revise"

    rounds: int = parameter(1, "Most revisions.", ge=1, search=(1, 4))
    principles: tuple[Principle, ...] = parameter(
        (
            "Is every calculation right? Name the first wrong one, or reply: No error.",
            "Does it answer what was asked, with all that was given? Name what is missed, or reply: No error.",
        ),
        "Questions, each asked of the critic after the draft.",
        min_length=1,
    )
    revise: str = parameter(
        "Give the whole answer again without these errors:", "Stands before the critiques.", min_length=1
    )
    no_error: str = parameter("No error", "A critique with these words asks for nothing.", min_length=1)
    verifier: Verifier | None = parameter(None, "Chooses among the drafts; none: the last one.")

    @model_validator(mode="after")
    def _judges_one_by_one(self) -> Self:
        if self.verifier is not None and not self.verifier.pointwise:
            raise ValueError(
                f"{self.verifier.kind} compares candidates; this needs one that scores each alone"
            )
        return self

    async def __call__(self, task: Task, run: Run) -> Answer:
        prompt = tuple(self.prompt(task))
        drafts: dict[int, Candidate] = {}

        async def rate(number: int) -> None:
            if self.verifier is not None:
                # Judged as an answer to the question: how it came about is not the judge's business.
                [drafts[number]] = await judge(run, self.verifier, task, [drafts[number]])
            run.propose(self._choice(drafts))

        async with task_group() as group:

            async def add(messages: tuple[Message, ...]) -> tuple[Message, ...]:
                [draft] = await run.sample(messages, sampling=self.sampling(), task=task)
                number = len(drafts)
                drafts[number] = replace(draft, prompt=prompt)
                if run.best is None:
                    run.propose(self._choice(drafts))
                group.create_task(rate(number))
                return (*prompt, Message("assistant", draft.text))

            async def criticise(principle: str) -> str:
                asked = (*talk, Message("user", principle))
                [words] = await run.sample(asked, sampling=self.sampling(), role=JUDGE)
                return words.text

            talk = await add(prompt)
            for _ in range(self.rounds):
                try:
                    words = await run.map(criticise, self.principles)
                    wrong = [w.strip() for w in words if objects(w, self.no_error)]
                    if not wrong:
                        break
                    talk = await add((*talk, Message("user", "\n".join((self.revise, *wrong)))))
                except ContextLengthError:  # there is no room for another round
                    break
        return run.propose(self._choice(drafts))

    def _choice(self, drafts: dict[int, Candidate]) -> Answer:
        versions = [drafts[number] for number in sorted(drafts)]
        return latest(versions) if self.verifier is None else best(versions, self.verifier)
