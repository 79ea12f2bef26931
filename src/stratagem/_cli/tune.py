"""``stratagem vllm tune``: search a profile, with a table and a picture of what was tried."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from stratagem._cli.console import ACCENT, BAD, DIM, STRONG, safe, show, stderr, write_line
from stratagem.backends.vllm.hardware import Hardware, Installed
from stratagem.backends.vllm.landscape import save_landscape
from stratagem.backends.vllm.plan import Plan
from stratagem.backends.vllm.profiles import Workload
from stratagem.backends.vllm.tune import Trial, Tuning
from stratagem.backends.vllm.tune import tune as search
from stratagem.bench.data import Dataset
from stratagem.core.backend import Request
from stratagem.core.prompts import STEP_BY_STEP
from stratagem.core.seeds import derive

_PICTURE = "landscape.png"


async def tune(
    model: str,
    profile: str,
    flags: Sequence[str],
    problems: Dataset,
    *,
    n: int,
    max_tokens: int,
    out: Path,
    workload: Workload,
    latency: float | None,
    trials: int,
    repeats: int,
    options: Mapping[str, Any],
    seed: int,
    python: str | None,
    startup_timeout: float,
    log: Callable[[str], None] | None,
    as_json: bool,
) -> int:
    """Search, print the table and the best as a command, draw the picture; gives the exit code."""
    requests = [
        Request(p.task.ask(STEP_BY_STEP), n=n, max_tokens=max_tokens, seed=derive(seed, p.id))
        for p in problems
    ]
    console = stderr()

    def tell(trial: Trial) -> None:
        console.print(
            Text.assemble((f"{trial.number + 1}/{trials} ", DIM), safe(_told(trial))), soft_wrap=True
        )

    tuning = await search(
        model,
        requests,
        profile,
        flags,
        out=out,
        workload=workload,
        latency=latency,
        trials=trials,
        repeats=repeats,
        seed=seed,
        python=python,
        startup_timeout=startup_timeout,
        listener=tell,
        log=log,
        **options,
    )
    save_landscape(tuning, out / _PICTURE)
    best = tuning.best
    installed = Installed.find(python)
    hardware = Hardware.detect(installed.device if installed is not None else None)
    rest = best.profile.overridden(flags)[1]
    command = Plan(best.profile, tuple(rest), hardware, installed).command(model)
    if as_json:
        write_line(json.dumps(_data(tuning, command), ensure_ascii=False, indent=2))
    else:
        show(_table(tuning), Text(), *_verdict(tuning))
        write_line(command)  # unwrapped, to be copied
        write_line(f"picture: {out / _PICTURE}")
    return 0 if tuning.within(best) else 1


def _told(trial: Trial) -> str:
    if trial.measurement is None:
        return f"{_place(trial)}: {trial.error}"
    return f"{_place(trial)}: {trial.measurement.throughput:.0f} tokens/s, {trial.measurement.latency:.2f} s"


def _place(trial: Trial) -> str:
    return ", ".join(f"{name.removeprefix('speculative.')}={value}" for name, value in trial.values.items())


def _table(tuning: Tuning) -> Table:
    """The trials, best first."""
    names = list(dict.fromkeys(name for trial in tuning.trials for name in trial.values))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=STRONG)
    for title in (
        "trial",
        *(name.removeprefix("speculative.") for name in names),
        "tokens/s",
        "of base",
        "p95 s",
        "",
    ):
        table.add_column(
            title, justify="right" if title in ("trial", "tokens/s", "of base", "p95 s") else "left"
        )
    base = tuning.base.measurement
    for trial in sorted(tuning.trials, key=lambda trial: (-tuning.value(trial), trial.number)):
        figures = ["", "", ""]
        if trial.measurement is not None and base is not None:
            speed = trial.measurement.throughput
            figures = [f"{speed:.0f}", f"{speed / base.throughput:.2f}", f"{trial.measurement.latency:.2f}"]
        note = "the profile itself" if trial.number == 0 else ""
        if trial.measurement is None:
            note = safe(trial.error)
        elif not tuning.within(trial):
            note = f"above the bound {note}".strip()
        style = f"{STRONG} {ACCENT}" if trial is tuning.best else DIM if not tuning.within(trial) else ""
        values = [str(trial.values.get(name, "")) for name in names]
        table.add_row(str(trial.number), *values, *figures, note, style=style)
    return table


def _verdict(tuning: Tuning) -> list[Text]:
    if not tuning.within(tuning.best):
        return [
            Text(f"None of {len(tuning.trials)} is within {tuning.bound:g} s; the nearest is:", style=BAD)
        ]
    if tuning.best is tuning.base:
        return [Text("Nothing tried is better than the profile itself:")]
    return [Text("The best of these as a command:")]


def _data(tuning: Tuning, command: str) -> dict[str, Any]:
    return {
        "bound": tuning.bound,
        "best": tuning.best.number,
        "within": tuning.within(tuning.best),
        "command": command,
        "trials": [
            {
                "number": trial.number,
                "values": trial.values,
                "measurement": None if trial.measurement is None else asdict(trial.measurement),
                "error": trial.error,
                "profile": trial.profile.model_dump(mode="json", exclude_none=True),
            }
            for trial in tuning.trials
        ],
    }
