"""Chain of thought: (z, y) ~ p(z | x) p(y | x, z), worked steps z before the answer y.

Source: Wei et al. 2022 (arXiv 2201.11903); the zero-shot instruction is of Kojima et al. 2022 (2205.11916).
"""

from __future__ import annotations

from typing import ClassVar

from stratagem.core.run import Run
from stratagem.core.task import Answer, Task
from stratagem.strategies._sampler import Sampler


class ChainOfThought(Sampler):
    """One completion with worked steps. Cost: 1 call."""

    kind: ClassVar[str] = "chain_of_thought"

    async def __call__(self, task: Task, run: Run) -> Answer:
        [candidate] = await run.sample(self.prompt(task), sampling=self.sampling(), task=task)
        return run.propose(Answer.of(candidate))
