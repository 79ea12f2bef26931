"""Benches are killed (SIGKILL) at random points and started again: no finished run is run again, no finished call
is asked for again, and the figures are those of an uninterrupted bench.

Run as a script, this file is the process that is killed: it imports once and forks for each sitting.
"""

import asyncio
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bench_kit import COSTS, figures, keys
from sittings_kit import Job, serve, sittings
from stratagem.backends.journaled import Journal, Journaled
from stratagem.backends.openai import OpenAIBackend
from stratagem.bench.data import Problem
from stratagem.bench.results import Results
from stratagem.bench.runner import run_bench
from stratagem.core.protocols import Strategy
from stratagem.core.task import Task
from stratagem.strategies.chain_of_thought import ChainOfThought
from stratagem.strategies.self_consistency import SelfConsistency
from stratagem.verifiers.exact import Exact

PROBLEMS = [Problem(f"q{i}", Task.of(f"Question {i}?", id=f"q{i}"), str(i % 10)) for i in range(12)]
STRATEGIES: dict[str, Strategy] = {"one": ChainOfThought(), "vote": SelfConsistency(n=4)}
SEEDS = (0, 1)
CALLS = len(PROBLEMS) * len(SEEDS) * (1 + 4)  # completions in all
JOURNAL = "journal.sqlite"


async def _sitting(job: Job) -> None:
    """One attempt at the bench, with the journal in its folder."""
    out, llm = Path(job["folder"]), OpenAIBackend(job["url"])
    journal = Journal(out / JOURNAL)
    try:
        await run_bench(
            PROBLEMS,
            STRATEGIES,
            {"policy": llm},
            out=out,
            seeds=SEEDS,
            concurrency=5,
            grader=Exact(),
            journal=lambda run_id, models: {
                role: Journaled(model, journal, run_id) for role, model in models.items()
            },
        )
    finally:
        await journal.aclose()
        await llm.aclose()


# -- the tests -----------------------------------------------------------------------------------------


def _job(folder: Path) -> Job:
    return {"folder": str(folder), "out": f"{folder}.json"}


def _journaled(folder: Path) -> int:
    """How many completions the journal has, of all runs."""
    if not (folder / JOURNAL).exists():
        return 0
    with closing(sqlite3.connect(folder / JOURNAL)) as connection:
        if ("stratagem_calls",) not in connection.execute("SELECT name FROM sqlite_master").fetchall():
            return 0
        return int(connection.execute("SELECT count(*) FROM stratagem_calls").fetchone()[0])


async def _kill_and_resume(folder: Path, points: int) -> int:
    """Kill so many sittings at random steps, of benches that go on until they are finished; how many benches."""
    rng = random.Random(points)
    killed = trial = 0
    async with sittings(__file__) as at:
        written, asked = await at.sit(_job(folder / "whole"))
        assert written is not None
        assert asked == CALLS == _journaled(folder / "whole")
        whole, steps = Results.read(folder / "whole"), written["steps"]
        while killed < points:
            out = folder / f"trial-{trial}"
            trial += 1
            while True:
                kept = _journaled(out)
                written, asked = await at.sit(_job(out), rng.randint(1, steps // 2))
                assert asked <= CALLS - kept
                if written is not None:
                    break
                killed += 1
                if (out / "results.jsonl").exists() and rng.random() < 0.5:
                    with (out / "results.jsonl").open("a") as file:
                        file.write('{"problem": "q1", "strategy": "vo')  # a line that the kill has torn
            assert asked == CALLS - kept
            assert set(keys(out).values()) == {1}
            resumed = Results.read(out)
            assert resumed.missing == 0
            assert figures(resumed, without=COSTS) == figures(whole, without=COSTS)
            for key, cell in whole.cells.items():
                assert [s.answer for s in resumed.cells[key].samples] == [s.answer for s in cell.samples]
                # What a kill cut off in the engine was decoded all the same.
                assert resumed.cells[key].usage.tokens >= cell.usage.tokens
    return trial


@pytest.mark.parametrize("points", [12, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_points_it_resumes_with_the_same_figures(
    points: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benches = asyncio.run(_kill_and_resume(tmp_path, points))
    with capsys.disabled():
        print(f"\nkilled at {points} random points of {benches} benches")


if __name__ == "__main__":
    serve(_sitting)
