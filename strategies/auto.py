"""Auto: argmax_j low_j over the strategies j whose cost_j fits what is left of the budget.

low_j is the lower end of the 95 % interval of what j has reached on problems like these, cost_j what nine runs in
ten of it have needed at most; of equals the cheaper. Both are measured: ``stratagem bench`` runs what there is to
choose from, at several widths, and ``stratagem choose`` writes this strategy from its results. Where none fits it
is the cheapest. Without results it samples until it is sure, and no more than the budget holds: with a verifier by
:class:`AdaptiveBestOfN`, without one by :class:`EarlyStoppingConsistency`, whose widths follow from the task.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from stratagem.core.budget import Budget
from stratagem.core.component import parameter
from stratagem.core.protocols import Strategy, Verifier
from stratagem.core.run import Run
from stratagem.core.task import Answer, Task
from stratagem.core.trace import Chosen


class Measured(BaseModel):
    """What a strategy has reached, and what nine in ten of its runs have cost at most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Strategy
    accuracy: float = Field(ge=0.0, le=1.0)
    low: float = Field(ge=0.0, le=1.0)  # of its 95 % interval
    tokens: float = Field(ge=0.0)  # of prompts and completions
    calls: float = Field(ge=0.0)
    seconds: float = Field(ge=0.0)
    money: float = Field(default=0.0, ge=0.0)

    def fits(self, left: Budget) -> bool:
        """Whether it most probably stays within the limits."""
        return not self.over(left)

    def over(self, left: Budget) -> str:
        """What it costs of which less is left, as ``tokens=150, seconds=2``."""
        costs = ((key, getattr(self, key), getattr(left, key)) for key in Budget.model_fields)
        return ", ".join(
            f"{key}={cost:.3g}" for key, cost, limit in costs if limit is not None and cost > limit
        )


class Auto(Strategy):
    """The strategy, and its width, that is best under the budget, by what was measured. Cost: that one's."""

    kind: ClassVar[str] = "auto"

    measured: tuple[Measured, ...] = parameter((), "What to choose from. See: stratagem choose.")
    n: int = parameter(16, "Most samples where nothing is measured.", ge=1, search=(4, 64))
    verifier: Verifier | None = parameter(
        None, "Where nothing is measured: scores samples; none: a majority does."
    )

    async def __call__(self, task: Task, run: Run) -> Answer:
        left = run.ledger.left()
        chosen, reason = self.choose(left)
        run.trace.append(Chosen(chosen.dump(), reason))
        await chosen.check(run)
        return await chosen(task, run)

    def choose(self, left: Budget) -> tuple[Strategy, str]:
        """The strategy for what is left of a budget, and why."""
        if not self.measured:
            if self.verifier is None:
                told = {"kind": "early_stopping_consistency", "n": self.n}
                return Strategy.load(told), "nothing is measured, and there is no verifier"
            told = {"kind": "adaptive_best_of_n", "n": self.n, "verifier": self.verifier}
            return Strategy.load(told), "nothing is measured, and there is a verifier"
        fitting = [each for each in self.measured if each.fits(left)]
        if not fitting:
            cheapest = min(self.measured, key=lambda m: (m.tokens, m.calls, m.seconds))
            return cheapest.strategy, f"none fits what is left; the cheapest needs {cheapest.over(left)}"
        best = max(fitting, key=lambda m: (m.low, -m.tokens, -m.calls, -m.seconds))
        reason = f"accuracy {best.accuracy:.3f}, at least {best.low:.3f}, the best of {len(fitting)} that fit"
        return best.strategy, reason
