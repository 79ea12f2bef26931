"""One call at a time: the model writes a call, reads its result, writes the next.

The baseline of parallel calls: y_t ~ p(y | x, y_<t, o_<t) with one call in each y_t, so N calls cost N + 1
completions, and their times add up. Results are taken by name, as in Divide-Then-Aggregate.
"""

from __future__ import annotations

from typing import ClassVar

from stratagem.core.calling import Toolbox
from stratagem.core.component import parameter
from stratagem.core.prompts import ONE_CALL
from stratagem.strategies._agent import Agent


class SequentialCalling(Agent):
    """Tools one at a time, without thoughts. Cost: calls + 1 completions."""

    kind: ClassVar[str] = "sequential"

    system: str = parameter(ONE_CALL, "Stands before the list of tools.", min_length=1)
    rounds: int = parameter(16, "Most calls; then it has to answer.", ge=1, search=(4, 24))

    def pattern(self, tools: Toolbox) -> str:
        """One call."""
        return tools.pattern()
