"""``stratagem choose``: what the strategy auto picks from, written from the results of a bench."""

from __future__ import annotations

import asyncio
from pathlib import Path

import yaml
from rich.table import Table
from rich.text import Text

import stratagem as sg
from stratagem._cli.console import DIM, count, seconds, show
from stratagem.bench.choosing import choose_from
from stratagem.bench.results import Results


async def choose(folder: Path, path: Path) -> int:
    """Read, choose, write, show; gives the exit code."""
    results = await asyncio.to_thread(Results.read, folder)
    auto = await asyncio.to_thread(choose_from, results)
    problems = count(len(results.problems), "problem")
    header = (
        f"# By stratagem choose: {problems} of {results.manifest['data']}; costs cover nine runs in ten.\n"
    )
    text = header + yaml.safe_dump(auto.dump(), sort_keys=False)
    try:
        await asyncio.to_thread(path.write_text, text, encoding="utf-8")
    except OSError as error:
        raise sg.ConfigurationError(f"Cannot write {path}: {error.strerror}.") from None
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style=DIM)
    for name in ("from tokens", "strategy", "accuracy", "at least", "calls", "seconds"):
        table.add_column(name, justify="left" if name == "strategy" else "right", no_wrap=True)
    names = {yaml.safe_dump(data): name for name, data in results.manifest["strategies"].items()}
    for each in auto.measured:
        name = names[yaml.safe_dump(each.strategy.dump())]
        shares = (f"{100 * share:.1f} %" for share in (each.accuracy, each.low))
        table.add_row(f"{each.tokens:,.0f}", name, *shares, f"{each.calls:,.0f}", seconds(each.seconds))
    note = "Seconds are those of a run among others at the same time: bench --concurrency 1 has those of one alone."
    show(
        table, Text(), Text(note, style=DIM), Text.assemble(("strategy   ", DIM), str(path), overflow="fold")
    )
    return 0
