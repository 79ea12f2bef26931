"""Candidates as a short table of votes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from rich.table import Table
from rich.text import Text

from stratagem._cli.console import ACCENT, DIM, STRONG, safe

_ROWS = 6
_BAR = 16


class Vote(Protocol):
    """A candidate of an answer, or what a bench has kept of one."""

    @property
    def answer(self) -> str | None: ...
    @property
    def scores(self) -> Mapping[str, float]: ...


def votes(candidates: Sequence[Vote], chosen: str | None) -> Table:
    """Candidates grouped by their answer, the chosen one first, with the best score of each group."""
    groups: dict[str | None, list[Vote]] = {}
    for candidate in candidates:
        groups.setdefault(None if candidate.answer is None else candidate.answer.strip(), []).append(
            candidate
        )
    key = None if chosen is None else chosen.strip()
    order = sorted(groups, key=lambda a: (a != key, a is None, -len(groups[a])))
    scores = sorted({name for c in candidates for name in c.scores})
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style=DIM)
    table.add_column("answer", overflow="fold", max_width=40)
    table.add_column("votes")
    for name in scores:
        table.add_column(f"best {name}", justify="right")
    for answer in order[:_ROWS]:
        members = groups[answer]
        style = STRONG if answer == key else ""
        bar = "━" * max(1, round(_BAR * len(members) / len(candidates)))
        table.add_row(
            Text(
                "no answer" if answer is None else safe(answer),
                style=style or (DIM if answer is None else ""),
            ),
            Text.assemble((bar, ACCENT if answer == key else DIM), f" {len(members)}"),
            *(_best(members, name) for name in scores),
        )
    if len(order) > _ROWS:
        rest = sum(len(groups[a]) for a in order[_ROWS:])
        table.add_row(Text(f"{len(order) - _ROWS} more", style=DIM), Text(str(rest), style=DIM))
    return table


def _best(members: Sequence[Vote], name: str) -> Text:
    known = [c.scores[name] for c in members if name in c.scores]
    return Text(f"{max(known):.2f}" if known else "abstained", style="" if known else DIM)
