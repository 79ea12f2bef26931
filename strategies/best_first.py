"""Best-first search: expand argmax r(x, y) over all partial answers y, until the best of them is an answer.

Sources: Hart, Nilsson and Raphael 1968 (A*, here without costs); Koh et al. 2024 (arXiv 2407.01476) with a
language model's judgement as value. With the least or the product of step rewards no other answer in the tree
scores more than the one found. Which partial answers are expanded at the same time never depends on timing: see
`_search/frontier.py`.
"""

from __future__ import annotations

from typing import ClassVar

from stratagem.core.component import parameter
from stratagem.core.run import Run
from stratagem.core.task import Answer, Task
from stratagem.strategies._search.driver import search
from stratagem.strategies._search.frontier import Frontier
from stratagem.strategies._search.steps import Stepwise
from stratagem.strategies._search.tree import root


class BestFirst(Stepwise):
    """The best partial answer goes on, however long it is. Cost: at most expansions x width steps, each judged."""

    kind: ClassVar[str] = "best_first"

    width: int = parameter(4, "Steps sampled after the partial answer that is expanded.", ge=1, search=(2, 8))
    expansions: int = parameter(32, "At most; then the best partial answer is written to its end.", ge=1)
    parallel: int = parameter(4, "Expansions at the same time.", ge=1)

    async def __call__(self, task: Task, run: Run) -> Answer:
        core = Frontier(root(), self.width, self.expansions, self.parallel)
        return await search(self, core, task, run)
