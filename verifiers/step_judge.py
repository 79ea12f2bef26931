"""Process reward: r(x, y) = agg_k P(step k is right | x, steps 1..k), each one token of a judging model.

Sources: Uesato et al. 2022 (arXiv 2211.14275) and Lightman et al. 2023 (2305.20050) for step-wise verification;
``min`` and ``product`` are the aggregations of the latter, ``last`` and ``mean`` those of Snell et al. 2024
(2408.03314). A step is a non-empty line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from stratagem.core.component import parameter
from stratagem.core.prompts import STEP_QUESTION
from stratagem.core.protocols import Verdict, Verifier
from stratagem.core.rewards import Aggregate, aggregated
from stratagem.core.run import Run
from stratagem.core.task import Candidate, Task
from stratagem.verifiers._asking import checked, probability


class StepJudge(Verifier):
    """A model judges every step, one token each; the score aggregates them."""

    kind: ClassVar[str] = "step_judge"

    aggregate: Aggregate = parameter(
        "product", "How step scores become one.", search=("min", "product", "last", "mean")
    )
    question: str = parameter(STEP_QUESTION, "Asked after each step; yes is good.")

    async def check(self, run: Run) -> None:
        """Raises UnsupportedError where the judge gives no log-probabilities."""
        await checked(run)

    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        async def judged(candidate: Candidate) -> Verdict:
            async def step(end: int) -> float:
                return await probability(
                    run, task, candidate, candidate.text[:end], self.question, "yes", "no"
                )

            ends = step_ends(candidate.text)
            scores = await run.map(step, ends[-1:] if self.aggregate == "last" else ends)
            return Verdict(aggregated(self.aggregate, scores)) if scores else Verdict(None, "no steps")

        return await run.map(judged, candidates)

    def newest(self) -> Verifier:
        return self.model_copy(update={"aggregate": "last"})


def step_ends(text: str) -> list[int]:
    """Where each non-empty line ends, its newline excluded: a judge is trained to be asked just there."""
    ends, position = [], 0
    for line in text.splitlines(keepends=True):
        if line.strip():
            ends.append(position + len(line.rstrip()))
        position += len(line)
    return ends
