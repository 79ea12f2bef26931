"""DFSDT: a depth-first search over ReAct's turns that may give up a branch and try another.

Source: Qin et al. 2023 (ToolLLM, arXiv 2307.16789), in the variant that the evaluation of Divide-Then-Aggregate
(2501.12432) uses: no ranking of children, ``width`` of them at most. A node with children is asked for something
different from them; that request is not kept in the talk. After a branch that was given up (or that is ``rounds``
deep) the search climbs: two levels after the former, one after the latter. Depth counts turns, where the published
code counts three nodes for each call. ``queries`` bounds the turns in all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Final

from pydantic import Field

from stratagem.core.calling import Toolbox
from stratagem.core.component import parameter
from stratagem.core.run import Run
from stratagem.core.task import Answer, Task
from stratagem.strategies._agent import Round, answer, so_far
from stratagem.strategies.react import ReAct

_GIVES_UP: Final = "I give up"


@dataclass
class _Search:
    """What is found so far."""

    queries: int = 0
    answer: Answer | None = None
    deepest: list[Round] = field(default_factory=list)


class DFSDT(ReAct):
    """ReAct with backtracking. Cost: at most ``queries`` completions, and one."""

    kind: ClassVar[str] = "dfsdt"
    turns: ClassVar[bool] = False

    rounds: int = parameter(12, "Depth at which a branch ends.", ge=1, search=(4, 16))
    width: int = parameter(2, "Most children of a node.", ge=1, search=(1, 4))
    queries: int = parameter(60, "Most turns in all.", ge=1)
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = parameter(
        0.7, "Sampling temperature; none: the model's own default.", search=(0.3, 1.0)
    )

    async def __call__(self, task: Task, run: Run) -> Answer:
        search = _Search()
        await self._below(task, run, [], search)
        if search.answer is None:
            last = await self.conclude(task, run, search.deepest)
            search.answer = answer(task, search.deepest, last.said)
        return run.propose(search.answer)

    async def _below(self, task: Task, run: Run, path: list[Round], search: _Search) -> float:
        """Search below a node; gives how many levels to climb."""
        if len(path) >= self.rounds:
            return 1
        children: list[Round] = []
        for _ in range(self.width):
            if search.queries >= self.queries:
                return math.inf
            search.queries += 1
            child = await self.turn(task, run, path, _other_than(children))
            children.append(child)
            if not child.calls:
                if child.said.strip().startswith(_GIVES_UP):
                    climb = 2.0
                else:
                    search.answer = answer(task, path, child.said)
                    return math.inf
            else:
                below = [*path, child]
                if len(below) > len(search.deepest):
                    search.deepest = below
                    run.propose(so_far(below))
                climb = await self._below(task, run, below, search)
            if climb > 1:
                return climb - 1
        return 1

    def pattern(self, tools: Toolbox) -> str:
        """A thought and an action, or giving up."""
        return f"(?:{super().pattern(tools)}|{_GIVES_UP}\\.)"


def _other_than(children: Sequence[Round]) -> str:
    if not children:
        return ""
    tried = [f"{call.call}: {call.told(200)}" for child in children for call in child.calls]
    return "\n".join(["Tried before:", *tried, "Do something different from all of these."])
