"""What the strategy ``auto`` chooses from, from the results of a bench."""

from __future__ import annotations

import numpy as np

from stratagem.bench.results import Results
from stratagem.bench.summary import summarise
from stratagem.core.errors import DataError
from stratagem.core.protocols import Strategy
from stratagem.strategies.auto import Auto, Measured

COVERED = 0.9
"""Share of the runs that cost no more than what is taken for the cost of a strategy."""
_COSTS = ("tokens", "calls", "seconds", "money")


def choose_from(results: Results) -> Auto:
    """The strategies of a bench, without those that cost as much as another one and reach no more, by tokens.

    Raises:
        DataError: runs are missing or have failed: what is left of the problems may be the easier ones.
    """
    if results.missing or results.failed:
        raise DataError(
            f"{results.missing} runs are missing and {len(results.failed)} have failed.",
            remedy="Run the same bench again: it goes on.",
        )
    summary = summarise(results)
    found: list[Measured] = []
    for name in results.strategies:
        cells = [cell for problem in results.problems for cell in results.of(name, problem.id)]
        costs: dict[str, list[float]] = {
            "tokens": [cell.usage.tokens for cell in cells],
            "calls": [cell.usage.calls for cell in cells],
            "seconds": [cell.seconds for cell in cells],
            "money": [cell.usage.money for cell in cells],
        }
        reached = summary.row(name).accuracy
        found.append(
            Measured(
                strategy=Strategy.load(results.manifest["strategies"][name]),
                accuracy=reached.value,
                low=max(0.0, reached.low),
                **{key: float(np.quantile(values, COVERED)) for key, values in costs.items()},
            )
        )
    found.sort(key=lambda m: (m.tokens, -m.low))
    kept = [
        m for i, m in enumerate(found) if not any(_beats(o, m, j < i) for j, o in enumerate(found) if i != j)
    ]
    return Auto(measured=tuple(kept))


def _beats(one: Measured, other: Measured, before: bool) -> bool:
    """Whether one reaches as much at no more cost, in any measure; of equals the one before does."""
    costs = [(getattr(one, key), getattr(other, key)) for key in _COSTS]
    no_worse = one.low >= other.low and all(a <= b for a, b in costs)
    return no_worse and (before or one.low > other.low or any(a < b for a, b in costs))
