"""``stratagem calibrate``: the threshold of adaptive sampling, found on problems with known answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import yaml
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

import stratagem as sg
from stratagem._cli.bench import finite, measure, points, report_rest
from stratagem._cli.console import DIM, STRONG, count, percent, say_error, show, write_line
from stratagem.bench.calibration import Calibration, Point, save_curve
from stratagem.bench.calibration import calibrate as find
from stratagem.bench.data import Dataset
from stratagem.core.errors import MissingExtraError

STRATEGY, CURVE = "strategy.yaml", "curve.png"
_NEVER = 2.0  # a threshold that no score reaches: every sample is drawn
_ROWS = 12


async def calibrate(
    problems: Dataset,
    strategy: sg.Strategy,
    llm: sg.Backend,
    *,
    others: Mapping[str, sg.Backend] | None = None,
    out: Path,
    target: float,
    seeds: int,
    concurrency: int,
    as_json: bool,
) -> int:
    """Draw all samples of all problems, choose by them, write the strategy, and give the exit code."""
    verifier = getattr(strategy, "verifier", None)
    if not hasattr(strategy, "tau") or not isinstance(verifier, sg.Verifier):
        raise sg.ConfigurationError(
            f"{strategy.kind} has no threshold tau to calibrate.", remedy="Use adaptive_best_of_n."
        )
    exhaustive = sg.Strategy.load({**strategy.dump(), "tau": _NEVER})
    name = strategy.kind
    models = {**(others or {}), "policy": llm}
    results, board, code = await measure(
        problems, {name: exhaustive}, models, out=out, seeds=seeds, budget=None, concurrency=concurrency
    )
    rest = report_rest(results, board)
    if code or rest:  # a threshold chosen by a part of the problems would look like one chosen by all
        return code or rest
    runs = [[cell.samples for cell in results.of(name, problem.id)] for problem in results.problems]
    found = await asyncio.to_thread(find, runs, verifier.kind, target)
    calibrated = sg.Strategy.load({**strategy.dump(), "tau": found.chosen.tau})
    path = out / STRATEGY
    header = (
        f"# By stratagem calibrate: {count(len(problems), 'problem')} of {problems.spec}, {llm.name};\n"
        f"# {percent(found.chosen.share)} of the gain of all samples at {found.chosen.samples:.2f} samples.\n"
    )
    try:
        path.write_text(header + yaml.safe_dump(calibrated.dump(), sort_keys=False), encoding="utf-8")
        await asyncio.to_thread(save_curve, found, out / CURVE)
    except OSError as error:
        raise sg.ConfigurationError(f"Cannot write {error.filename}: {error.strerror}.") from None
    except MissingExtraError as error:
        say_error(str(error), label="no picture")
    if as_json:
        write_line(json.dumps({"strategy": str(path), **finite(asdict(found))}))
    else:
        show(*rendered(found, target, path))
    return 0


def rendered(found: Calibration, target: float, path: Path) -> list[RenderableType]:
    """Thresholds with what they give, the one chosen, and where it is written."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style=DIM)
    for name in ("tau", "samples", "accuracy", "of the gain"):
        table.add_column(name, justify="right", no_wrap=True)
    for point in _some(found):
        style = STRONG if point is found.chosen else ""
        tau = "none" if point.tau == _NEVER else f"{point.tau:.4g}"
        row = (tau, f"{point.samples:.2f}", f"{100 * point.accuracy:.1f} %", f"{100 * point.share:.0f} %")
        table.add_row(*(Text(cell, style=style) for cell in row))
    gain = Text.assemble(("gain of all samples   ", DIM), points(found.gain, signed=True))
    kept = Text.assemble((f"kept, of {target:.0%} asked   ", DIM), points(found.kept, signed=True))
    if found.chosen.tau <= 0:
        kept.append(
            "\nThe first sample is kept whatever its score: it is a greedy one, and more buy nothing here.",
            DIM,
        )
    return [table, Text(), gain, kept, Text.assemble(("strategy   ", DIM), str(path), overflow="fold")]


def _some(found: Calibration) -> list[Point]:
    """The ends, the one chosen, and others about evenly apart in samples."""
    first, last = found.points[0], found.points[-1]
    wanted = [first.samples + (last.samples - first.samples) * i / (_ROWS - 1) for i in range(_ROWS)]
    near = [min(found.points, key=lambda p: abs(p.samples - at)) for at in wanted]
    return sorted({p.tau: p for p in (first, found.chosen, *near, last)}.values(), key=lambda p: p.tau)
