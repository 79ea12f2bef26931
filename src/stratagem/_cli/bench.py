"""``stratagem bench``: strategies on problems with known answers, with intervals and paired differences."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

import stratagem as sg
from stratagem._cli.console import BAD, DIM, GOOD, STRONG, count, say_error, show, write_line
from stratagem._cli.interrupt import INTERRUPTED
from stratagem._cli.live import watched
from stratagem._cli.scoreboard import Scoreboard
from stratagem._cli.settings import build_strategy
from stratagem.backends.journaled import Journal, Journaled
from stratagem.bench.data import Dataset
from stratagem.bench.report import write_report
from stratagem.bench.results import Results
from stratagem.bench.runner import Progress, run_bench
from stratagem.bench.statistics import Estimate
from stratagem.bench.store import RESULTS
from stratagem.bench.summary import Summary, summarise
from stratagem.tools.toolbox import read_only

_REPORT = "report.html"
_JOURNAL = "journal.sqlite"  # finished calls of runs that are not finished
_ALL_PAIRS = 4  # strategies up to which every pair is compared, and not only each with the first


def build_strategies(names: str, settings: Sequence[str]) -> dict[str, sg.Strategy]:
    """Strategies by label, from ``a,b,label=c`` and settings ``label.key=value``.

    Raises:
        ConfigurationError: no name, a label twice, or a setting whose label is not there.
    """
    sources: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in names.split(","))):
        label, equals, source = part.partition("=")
        if label in sources:
            raise sg.ConfigurationError(
                f"--strategies has {label!r} twice.", remedy="Give each a label, like few=best_of_n."
            )
        sources[label] = source if equals else label
    if not sources:
        raise sg.ConfigurationError(
            "--strategies is empty.", remedy="Write it like chain_of_thought,best_of_n."
        )
    chosen: dict[str, list[str]] = {label: [] for label in sources}
    for setting in settings:
        label, dot, rest = setting.partition(".")
        if not dot or label not in chosen or "=" in label:
            raise sg.ConfigurationError(
                f"--set {setting!r} names none of {', '.join(sources)}.",
                remedy=f"Write it like --set {next(iter(sources))}.n=16.",
            )
        chosen[label].append(rest)
    return {label: build_strategy(source, chosen[label]) for label, source in sources.items()}


async def bench(
    problems: Dataset,
    strategies: Mapping[str, sg.Strategy],
    llm: sg.Backend,
    *,
    others: Mapping[str, sg.Backend],
    out: Path,
    seeds: int,
    budget: sg.Budget | None,
    concurrency: int,
    as_json: bool,
) -> int:
    """Run, print the table, write the report, and give the exit code."""
    models = {**others, "policy": llm}
    results, board, code = await measure(
        problems, strategies, models, out=out, seeds=seeds, budget=budget, concurrency=concurrency
    )
    if code and not results.cells and not as_json:  # there is nothing to show yet
        report_rest(results, board)
        return code
    summary = await asyncio.to_thread(summarise, results)
    report = out / _REPORT
    await asyncio.to_thread(write_report, results, report, summary)
    if as_json:
        write_line(json.dumps(_as_data(summary, results, out, report, board.left), ensure_ascii=False))
    else:
        show(*rendered(summary, results), Text(), _paths(report, out / RESULTS))
    rest = report_rest(results, board)
    return code or rest


async def measure(
    problems: Dataset,
    strategies: Mapping[str, sg.Strategy],
    models: Mapping[str, sg.Backend],
    *,
    out: Path,
    seeds: int,
    budget: sg.Budget | None,
    concurrency: int,
) -> tuple[Results, Scoreboard, int]:
    """Run and show how far it is. What there is then, the scoreboard, and the exit code of an interruption or 0."""
    board = Scoreboard(list(strategies), len(problems) * seeds)
    asked = {(p.id, name, seed) for p in problems for name in strategies for seed in range(seeds)}

    def follow(progress: Progress) -> None:
        if progress.cell is None and progress.done:  # at the start: what was finished earlier
            earlier = Results.read(out).cells
            board.add(*(cell for key, cell in earlier.items() if key in asked and not cell.error))
        board.follow(progress)

    journal = Journal(out / _JOURNAL)

    def keep(run_id: str, models: Mapping[str, sg.Backend]) -> Mapping[str, sg.Backend]:
        return {role: Journaled(model, journal, run_id) for role, model in models.items()}

    code = 0
    try:
        with watched(board):
            results = await run_bench(
                problems,
                strategies,
                models,
                out=out,
                seeds=range(seeds),
                budget=budget,
                concurrency=concurrency,
                listener=follow,
                journal=keep,
                toolbox=read_only,
            )
    except asyncio.CancelledError:
        if not board.total:  # before the first run: there is no folder to read
            raise
        results, code = Results.read(out), INTERRUPTED
    finally:
        await journal.aclose()
    return results, board, code


def report_rest(results: Results, board: Scoreboard) -> int:
    """Say what was left out, failed or is left, and give the exit code of that."""
    for note in results.skipped:
        say_error(note, label="skipped")
    cut = sum(not cell.error and cell.stopped != "complete" for cell in results.cells.values())
    if cut:
        say_error(f"{cut:,} of {count(len(results.cells), 'run')} cut short by the budget", label="budget")
    if results.failed:
        first = next(cell.error for cell in results.failed)
        say_error(f"{count(len(results.failed), 'run')} failed; the same command tries them again: {first}")
    if board.left:
        say_error(f"{board.left} of {board.total} runs are left; the same command goes on", label="stopped")
    return 1 if results.failed else 0


def rendered(summary: Summary, results: Results) -> list[RenderableType]:
    """A row of figures for each strategy, then the differences between them on the same problems."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style=DIM)
    table.add_column("strategy", overflow="fold")
    for name in ("accuracy", "tokens", "calls", "seconds"):
        table.add_column(name, justify="right", no_wrap=name != "accuracy")
    # Before all runs are there, each strategy may have had other problems: none is the best.
    finished = [row.accuracy.value for row in summary.rows if row.runs and not results.missing]
    best = max(finished, default=math.nan)
    for row in summary.rows:
        means = ((row.tokens, ",.0f"), (row.calls, ",.1f"), (row.seconds, ",.2f"))
        table.add_row(
            Text(row.strategy, style=STRONG if row.accuracy.value == best else ""),
            points(row.accuracy),
            *(
                f"{cost.mean.value:{form}}" if row.runs else Text("unknown", style=DIM)
                for cost, form in means
            ),
        )
    level = f"{100 * summary.level:g} %"
    about = (
        f"{count(len(results.problems), 'problem')}, {count(len(results.seeds), 'seed')}; "
        f"means per run; {level} bootstrap intervals over problems"
    )
    parts: list[RenderableType] = [table, Text(), Text(about, style=DIM)]
    if len(summary.rows) > 1:
        parts += [Text(), Text("Paired differences in accuracy, points", style=STRONG), _differences(summary)]
    return parts


def _paths(report: Path, results: Path) -> Text:
    return Text.assemble(("report   ", DIM), str(report), ("\nresults  ", DIM), str(results), overflow="fold")


def points(estimate: Estimate, *, signed: bool = False) -> Text:
    """A share of one or a difference of shares, in points, with its interval."""
    if math.isnan(estimate.value):
        return Text("unknown", style=DIM)
    # + 0.0: no minus before a zero
    value, low, high = (round(100 * x, 1) + 0.0 for x in (estimate.value, estimate.low, estimate.high))
    if signed:
        return Text.assemble(f"{value:+.1f}", (f" [{low:+.1f}, {high:+.1f}]", DIM))
    return Text.assemble(f"{value:.1f} %", (f" [{low:.1f}, {high:.1f}]", DIM))


def _differences(summary: Summary) -> Table:
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(overflow="fold")
    table.add_column(justify="right")
    table.add_column()
    first = summary.rows[0].strategy
    for difference in summary.differences:
        if len(summary.rows) > _ALL_PAIRS and difference.b != first:
            continue
        clear = difference.accuracy.excludes_zero
        better = difference.accuracy.value > 0
        verdict = Text("not clear", style=DIM)
        if clear:
            verdict = Text("better", style=GOOD) if better else Text("worse", style=BAD)
        table.add_row(
            Text.assemble(difference.a, (" over ", DIM), difference.b),
            points(difference.accuracy, signed=True),
            verdict,
        )
    return table


def _as_data(summary: Summary, results: Results, out: Path, report: Path, left: int) -> dict[str, object]:
    """What ``--json`` prints: the summary, and where the rest is."""
    return {
        "report": str(report),
        "results": str(out / RESULTS),
        "problems": len(results.problems),
        "seeds": list(results.seeds),
        "missing": left,
        "failed": len(results.failed),
        **finite(asdict(summary)),
    }


def finite(value: Any) -> Any:
    """Plain data with ``None`` for what is not a number, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
