"""Candidates as a short table of votes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from rich.table import Table
from rich.text import Text

from stratagem._cli.console import ACCENT, DIM, STRONG, safe
from stratagem.core.agreement import classes
from stratagem.core.protocols import Verifier

_ROWS = 6
_BAR = 16


class Vote(Protocol):
    """A candidate of an answer, or what a bench has kept of one."""

    @property
    def answer(self) -> str | None: ...
    @property
    def scores(self) -> Mapping[str, float]: ...


def votes(candidates: Sequence[Vote], chosen: str | None, equality: Verifier | None = None) -> Table:
    """Candidates grouped by their answer, the chosen one first, with the best score of each group.

    ``equality`` is that of the strategy; what it has joined is one row, with all its texts.
    """
    answers = [candidate.answer for candidate in candidates]
    groups = [[candidates[i] for i in group] for group in classes(answers, equality)]
    groups.sort(key=len, reverse=True)
    if silent := [candidate for candidate in candidates if candidate.answer is None]:
        groups.append(silent)
    key = None if chosen is None else chosen.strip()
    groups.sort(key=lambda group: key not in _texts(group))
    scores = sorted({name for c in candidates for name in c.scores})
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style=DIM)
    table.add_column("answer", overflow="fold", max_width=40)
    table.add_column("votes")
    for name in scores:
        table.add_column(f"best {name}", justify="right")
    for members in groups[:_ROWS]:
        texts = _texts(members)
        won = key in texts
        bar = "━" * max(1, round(_BAR * len(members) / len(candidates)))
        table.add_row(
            _label(sorted(texts, key=lambda text: text != key), won),
            Text.assemble((bar, ACCENT if won else DIM), f" {len(members)}"),
            *(_best(members, name) for name in scores),
        )
    if len(groups) > _ROWS:
        rest = sum(map(len, groups[_ROWS:]))
        table.add_row(Text(f"{len(groups) - _ROWS} more", style=DIM), Text(str(rest), style=DIM))
    return table


def _texts(group: Sequence[Vote]) -> list[str | None]:
    """The different answers of a group, in order of appearance."""
    return list(dict.fromkeys(None if c.answer is None else c.answer.strip() for c in group))


def _label(texts: Sequence[str | None], won: bool) -> Text:
    first, *others = texts
    style = STRONG if won else ""
    if first is None:
        return Text("no answer", style=style or DIM)
    return Text.assemble((safe(first), style), *((f" = {safe(other or '')}", DIM) for other in others))


def _best(members: Sequence[Vote], name: str) -> Text:
    known = [c.scores[name] for c in members if name in c.scores]
    return Text(f"{max(known):.2f}" if known else "abstained", style="" if known else DIM)
