"""Where the commands write, and the few forms of text they share.

Results go to standard output, everything else to standard error. Nothing here is markup: what a model said is
shown as it is.
"""

from __future__ import annotations

import os
import sys

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

DIM = "dim"
GOOD = "green"
BAD = "red"
WARN = "yellow"
STRONG = "bold"
ACCENT = "cyan"
SEPARATOR = " · "
_UNWRAPPED = 100_000
_HARMLESS = "\t\n"
_CONTROLS = {
    c: "\N{REPLACEMENT CHARACTER}" for c in (*range(32), *range(127, 160)) if chr(c) not in _HARMLESS
}


def stdout() -> Console:
    """The console for results."""
    return Console(highlight=False, markup=False, emoji=False)


def show(*parts: RenderableType) -> None:
    """Results on standard output, one below the other: inset on a terminal, unwrapped in a file."""
    console = stdout()
    if console.is_terminal:
        console.print(Padding(Group(*parts), (1, 2)))
        return
    if "COLUMNS" not in os.environ:
        console.width = _UNWRAPPED
    with console.capture() as capture:
        console.print(Group(*parts))
    write_line("\n".join(line.rstrip() for line in capture.get().rstrip("\n").split("\n")))


def stderr() -> Console:
    """The console for progress and errors."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def interactive() -> bool:
    """Whether somebody watches standard error, on a terminal that can move its cursor."""
    return sys.stderr.isatty() and not stderr().is_dumb_terminal


def safe(text: str) -> str:
    """What a model or a server said, with its control characters made harmless to a terminal."""
    return text.translate(_CONTROLS)


def say_error(message: str, *, label: str = "error") -> None:
    """One line on standard error."""
    line = Text.assemble((f"{label}: ", f"{STRONG} {BAD}"), safe(" ".join(message.split())))
    stderr().print(line, soft_wrap=True)


def write_line(text: str) -> None:
    """One line on standard output, never wrapped or styled."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def seconds(value: float) -> str:
    """A duration to read."""
    if value < 120:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def count(number: int, thing: str) -> str:
    """``1 call``, ``1,240 calls``."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def percent(share: float) -> str:
    """A share of one, without decimals."""
    return f"{100 * share:.0f} %"
