"""What a run is doing, told by its trace: for the live line."""

from __future__ import annotations

import time

from rich.padding import Padding
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from stratagem._cli.console import ACCENT, DIM, SEPARATOR, count, percent, safe, seconds
from stratagem.core.asking import POLICY
from stratagem.core.trace import (
    CallFinished,
    CallStarted,
    CompletionArrived,
    Proposed,
    Record,
    Retried,
)
from stratagem.core.usage import Usage


class Progress:
    """A trace listener that keeps the counts and what the best answer so far says."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._began = time.monotonic()
        self._samples = 0
        self._open: dict[int, int] = {}  # tokens that have arrived, by call in flight
        self._answering: set[int] = set()  # calls in flight whose completions are candidates
        self._spent = Usage()
        self._best: Proposed | None = None
        self._retries = 0
        self._spinner = Spinner("dots", style=ACCENT)

    def __call__(self, record: Record) -> None:
        match record.event:
            case CallStarted(call=call, role=role):
                self._open[call] = 0
                if role == POLICY:
                    self._answering.add(call)
            case CompletionArrived() as arrived:
                self._open[arrived.call] = self._open.get(arrived.call, 0) + arrived.token_count
                self._samples += arrived.call in self._answering
            case CallFinished() as finished:
                self._open.pop(finished.call, None)
                self._answering.discard(finished.call)
                if not finished.replayed:
                    self._spent = self._spent + finished.usage
            case Proposed() as proposed:
                self._best = proposed
            case Retried():
                self._retries += 1
            case _:
                pass

    def __rich__(self) -> Padding:
        parts = [
            count(self._samples, "sample"),
            f"{len(self._open)} in flight",
            count(self._spent.tokens + sum(self._open.values()), "token"),
            seconds(time.monotonic() - self._began),
        ]
        if self._retries:
            parts.append(count(self._retries, "retry").replace("retrys", "retries"))
        line = Text.assemble(self._label, (SEPARATOR + SEPARATOR.join(parts), DIM), overflow="ellipsis")
        row = Table.grid(padding=(0, 1))
        row.add_column(width=1)
        row.add_column(no_wrap=True)
        row.add_row(self._spinner, line)
        if self._best is not None:
            best = Text.assemble(
                ("best so far ", DIM), safe(self._best.value or "no answer"), overflow="ellipsis"
            )
            if self._best.confidence is not None:
                best.append(f" ({percent(self._best.confidence)})", DIM)
            row.add_row("", best)
        return Padding(row, (0, 2))
