"""Diverse verifier tree search: argmax over t trees of r(x, y_t), each tree step-level best-of-w on its own.

Source: Beeching, Tunstall, Rush 2024, "Scaling test-time compute with open models" (Hugging Face); N there is
trees x width here. The trees draw with seeds of their own and wait for nothing of each other: one may be finished
when another has begun. A tree that cannot reach the score of an answer in another is stopped in the engine (with
the least or the product of rewards; the others have no such bound), which never changes the winner. So the
answer's candidates are those that would have been finished in any order of events.
"""

from __future__ import annotations

from typing import ClassVar

from stratagem.core.component import parameter
from stratagem.core.run import Run
from stratagem.core.task import Answer, Task
from stratagem.strategies._search.beam import Beam, Forest
from stratagem.strategies._search.driver import search
from stratagem.strategies._search.steps import Stepwise
from stratagem.strategies._search.tree import root


class DVTS(Stepwise):
    """Independent greedy trees, the best answer of all. Cost: trees x width steps and judgements per depth."""

    kind: ClassVar[str] = "dvts"

    trees: int = parameter(4, "Independent trees.", ge=1, search=(2, 16))
    width: int = parameter(4, "Steps sampled at each depth of a tree.", ge=1, search=(2, 8))

    async def __call__(self, task: Task, run: Run) -> Answer:
        forest = Forest([Beam(root(lane), 1, self.width) for lane in range(self.trees)])
        return await search(self, forest, task, run, lanes=self.trees)
