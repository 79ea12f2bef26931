"""``stratagem choose`` and its options."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Annotated, Any

import typer

from stratagem._cli.app import Debug, finish


def choose(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="Results of a bench, of stratagem bench --out DIR.")
    ],
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where the strategy goes; default: DIR/auto.yaml.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the strategy auto, which picks the best that fits a budget, from the results of a bench."""

    def command() -> Coroutine[Any, Any, int]:
        from pathlib import Path

        from stratagem._cli.choose import choose as run

        return run(Path(folder), Path(out) if out else Path(folder) / "auto.yaml")

    finish(command, debug)
