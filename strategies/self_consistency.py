"""Self-consistency: argmax_a sum_i 1[a_i = a] over n sampled chains of thought.

Source: Wang et al. 2022 (arXiv 2203.11171). Answers that cannot be extracted do not vote; a tie goes to the
answer seen first. Confidence is the winner's share of all n samples.
"""

from __future__ import annotations

from typing import ClassVar

from stratagem.core.component import parameter
from stratagem.core.protocols import Verifier
from stratagem.core.run import Run
from stratagem.core.task import Answer, Candidate, Task
from stratagem.strategies._sampler import Sampler
from stratagem.strategies._voting import elect


class SelfConsistency(Sampler):
    """Majority vote over n sampled answers. Cost: n completions of one prompt."""

    kind: ClassVar[str] = "self_consistency"

    n: int = parameter(16, "Samples.", ge=1, search=(1, 64))
    equality: Verifier | None = parameter(
        None, "Verifier whose equality groups answers; none: equal text (math: 1/2 = 0.5)."
    )

    async def __call__(self, task: Task, run: Run) -> Answer:
        seen: list[Candidate] = []

        async def count(candidate: Candidate) -> Candidate:
            seen.append(candidate)
            run.propose(await elect(seen, [0.0] * len(seen), None))  # equal text: cheap, as an interim
            return candidate

        drawn = await run.sample(self.prompt(task), self.n, sampling=self.sampling(), task=task, then=count)
        return run.propose(await elect(drawn, [0.0] * len(drawn), self.equality))
