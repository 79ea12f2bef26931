"""Step-level best-of-N: s_k = argmax over n sampled steps of r(x, s_1..k-1, s), step after step.

Source: the "greedy" of Bag of Tricks (arXiv 2502.07191); there "Step" delimits the steps, of which there are at
most 20. A step is judged the moment it has ended. The next one needs the best of all n, so a depth is waited for;
`dvts` searches several such paths beside each other. A tie goes to the likelier step. Answers that end early
compete with the last by their score.
"""

from __future__ import annotations

from typing import ClassVar

from stratagem.core.component import parameter
from stratagem.core.run import Run
from stratagem.core.task import Answer, Task
from stratagem.strategies._search.beam import Beam
from stratagem.strategies._search.driver import search
from stratagem.strategies._search.steps import Stepwise
from stratagem.strategies._search.tree import root


class StepBestOfN(Stepwise):
    """The best of n samples at each step. Cost: n steps and n judgements per step of the answer."""

    kind: ClassVar[str] = "step_best_of_n"

    n: int = parameter(4, "Samples of each step.", ge=1, search=(2, 16))

    async def __call__(self, task: Task, run: Run) -> Answer:
        return await search(self, Beam(root(), 1, self.n), task, run)
