"""A table of strategies that fills while a bench runs."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from stratagem._cli.console import ACCENT, BAD, DIM, SEPARATOR, count, percent, seconds
from stratagem.bench.results import Cell
from stratagem.bench.runner import Progress

_BAR = 20


class _Tally:
    """What is known of one strategy so far."""

    def __init__(self) -> None:
        self.done = self.right = self.tokens = 0


class Scoreboard:
    """Counts finished cells by strategy.

    Args:
        each: cells that each strategy will have.
    """

    def __init__(self, strategies: Sequence[str], each: int) -> None:
        self._tallies = {name: _Tally() for name in strategies}
        self._each = each
        self._failed = 0
        self.total = self.left = 0  # cells of the bench that it follows; 0 before that has begun
        self._began = time.monotonic()

    def follow(self, progress: Progress) -> None:
        """Listen to a bench."""
        self.total, self.left = progress.total, progress.total - progress.done - progress.failed
        if progress.cell is not None:
            self.add(progress.cell)

    def add(self, *cells: Cell) -> None:
        """Count finished cells; one that failed is to be run again."""
        for cell in cells:
            if cell.error:
                self._failed += 1
                continue
            tally = self._tallies[cell.strategy]
            tally.done += 1
            tally.right += cell.correct
            tally.tokens += cell.usage.tokens

    @property
    def done(self) -> int:
        """Cells with an answer."""
        return sum(tally.done for tally in self._tallies.values())

    def __rich__(self) -> Padding:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        for name, tally in self._tallies.items():
            share = tally.right / tally.done if tally.done else None
            table.add_row(
                name,
                self._bar(tally),
                "" if share is None else percent(share),
                Text(f"{tally.done}/{self._each}", style=DIM),
            )
        parts = [seconds(time.monotonic() - self._began)]
        parts.append(count(sum(t.tokens for t in self._tallies.values()), "token"))
        foot = Text(SEPARATOR.join(parts), style=DIM)
        if self._failed:
            foot.append(f"{SEPARATOR}{self._failed} failed", style=BAD)
        return Padding(Group(table, foot), (0, 2))

    def _bar(self, tally: _Tally) -> Text:
        """Right (heavy), wrong (light) and still to come (blank), out of all cells of the strategy."""
        scale = _BAR / max(1, self._each)
        right = round(tally.right * scale)
        wrong = round(tally.done * scale) - right
        return Text.assemble(("━" * right, ACCENT), ("─" * wrong, DIM), " " * (_BAR - right - wrong))
