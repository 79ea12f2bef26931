"""Work that can be watched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import RenderableType
from rich.live import Live

from stratagem._cli.console import interactive, stderr

_FRAMES = 12  # a second


@contextmanager
def watched(progress: RenderableType) -> Iterator[None]:
    """Draw it while the block runs; nothing at all unless somebody watches."""
    if not interactive():
        yield
        return
    with Live(
        progress,
        console=stderr(),
        transient=True,
        refresh_per_second=_FRAMES,
        redirect_stdout=False,
        redirect_stderr=False,
    ):
        yield
