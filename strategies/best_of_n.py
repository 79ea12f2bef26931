"""Best-of-N: argmax_i r(x, y_i) over n sampled answers, r a verifier in [0, 1].

Sources: Cobbe et al. 2021 (arXiv 2110.14168) for verifiers; with ``verifier: restart`` the self-evaluation of
Manvi et al. 2024 (2410.02725). A candidate is judged the moment it has ended. An abstention ranks below every
score; a tie goes to the sample drawn first. Confidence is the winner's score.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from stratagem.core.component import parameter
from stratagem.core.protocols import Verifier
from stratagem.core.run import Run
from stratagem.core.task import Answer, Candidate, Task
from stratagem.strategies._judging import best, judge
from stratagem.strategies._sampler import Sampler


class BestOfN(Sampler):
    """The best of n sampled answers by a verifier. Cost: n completions and n judgements."""

    kind: ClassVar[str] = "best_of_n"

    n: int = parameter(16, "Samples.", ge=1, search=(1, 64))
    verifier: Verifier = Field(
        default_factory=lambda: Verifier.load("step_judge"), description="Scores the candidates."
    )

    async def __call__(self, task: Task, run: Run) -> Answer:
        seen: list[Candidate] = []

        async def rate(candidate: Candidate) -> Candidate:
            if run.best is None:
                run.propose(Answer.of(candidate))  # unjudged is better than none, should the time run out
            if self.verifier.pointwise:
                [candidate] = await judge(run, self.verifier, task, [candidate])
            seen.append(candidate)
            run.propose(best(seen, self.verifier))
            return candidate

        drawn = await run.sample(self.prompt(task), self.n, sampling=self.sampling(), task=task, then=rate)
        if not self.verifier.pointwise:
            drawn = await judge(run, self.verifier, task, drawn)
        return run.propose(best(drawn, self.verifier))
