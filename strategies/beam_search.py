"""Beam search: B_k+1 = the b best of {y + s : y in B_k, s one of w steps sampled after y}, by reward r(x, y + s).

Sources: Yao et al. 2023 (arXiv 2305.10601) for steps as nodes; Snell et al. 2024 (2408.03314) for beams under a
process reward. b * w steps are sampled after the question, so that every depth holds as many. The answer is the
best by reward of all that were finished; an answer among the b best leaves its slot empty, and what cannot score
more is given up.

The definition ranks a whole depth, so the last of a depth may have to be waited for. What is certain before is not:
see `_search/beam.py`. `dvts` with the same number of samples has no such wait.
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


class BeamSearch(Stepwise):
    """The best partial answers of each depth go on. Cost: beams x width steps and judgements per depth."""

    kind: ClassVar[str] = "beam_search"

    beams: int = parameter(4, "Partial answers kept.", ge=1, search=(2, 16))
    width: int = parameter(4, "Steps sampled after each.", ge=1, search=(2, 8))

    async def __call__(self, task: Task, run: Run) -> Answer:
        return await search(self, Beam(root(), self.beams, self.width), task, run)
