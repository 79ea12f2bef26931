"""Divide-Then-Aggregate: in each round write all calls that can be made now, run them together, read all results.

    y_r ~ p(y | x, y_<r, o_<r),   o_r = {f_c(arguments) : c in plan(y_r)},   time = sum_r critical path of plan

Source: Zhu et al. 2025 (arXiv 2501.12432). There a round is a set of independent calls behind a barrier. Here it is
a graph: a call may take the results of others of its round by name, and each begins when its last input arrives,
while the rest of the plan is still being written; so one round does what there takes one for each level. Failures
are results: the model reads them and may write the calls again. Cost: rounds + 1 completions.
"""

from __future__ import annotations

from typing import ClassVar

from stratagem.core.calling import Toolbox
from stratagem.core.component import parameter
from stratagem.core.prompts import DIVIDE, FALLBACKS
from stratagem.strategies._agent import Agent


class DivideThenAggregate(Agent):
    """Tools in parallel, a whole graph of calls a round."""

    kind: ClassVar[str] = "dta"

    system: str = parameter(DIVIDE, "Stands before the list of tools.", min_length=1)
    rounds: int = parameter(
        4,
        "Most turns with calls; then it has to answer, as it has after a turn that told nothing new.",
        ge=1,
        search=(1, 8),
    )
    calls: int = parameter(16, "Most calls of a round.", ge=1)
    fallbacks: bool = parameter(
        False,
        "A call may name what is done if it fails, and the model is told so: other arguments, a value, skip, ask.",
    )

    @property
    def calls_at_once(self) -> int:
        """Most calls of a turn."""
        return self.calls

    @property
    def wording(self) -> str:
        """What stands before the list of tools."""
        return f"{self.system} {FALLBACKS}" if self.fallbacks else self.system

    def pattern(self, tools: Toolbox) -> str:
        """Calls, one a line."""
        call = tools.pattern(fallbacks=self.fallbacks)
        return f"{call}(?:\\n{call}){{0,{self.calls - 1}}}"
