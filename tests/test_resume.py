"""Runs are killed (SIGKILL) at random points and started again: nothing that has finished is asked for twice, and
the answer is the one of an uninterrupted run.

Run as a script, this file is the process that is killed: it imports once and forks for each sitting.
"""

import asyncio
import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sittings_kit import Job, serve, sittings
from stratagem.backends.journaled import Journal, Journaled
from stratagem.backends.openai import OpenAIBackend
from stratagem.core.budget import Budget
from stratagem.core.errors import BudgetExhausted
from stratagem.core.protocols import Strategy
from stratagem.core.task import Answer, Task
from stratagem.graphs import Runner

TASK = Task.of("Ben has 12 apples and buys 7 more. How many has he?")
STRATEGIES = (
    {"kind": "best_of_n", "n": 6, "verifier": {"kind": "judge", "mode": "grade"}, "max_tokens": 60},
    {"kind": "self_consistency", "n": 6, "max_tokens": 60},
    {"kind": "weighted_vote", "n": 6, "max_tokens": 60},
)
DSN = os.environ.get("STRATAGEM_TEST_POSTGRES")


# -- the process that is killed ------------------------------------------------------------------------


async def _sitting(job: Job) -> dict[str, Any] | None:
    """One attempt at the run; ``None`` if its budget does not hold an answer."""
    llm = OpenAIBackend(job["url"])
    journal = Journal(job["store"])  # in the database of the checkpoints
    try:
        async with Runner(job["store"]) as runner:
            models = {"policy": Journaled(llm, journal, job["run_id"])}
            strategy, budget = Strategy.load(job["strategy"]), Budget.model_validate(job["budget"])
            answer = await runner.run(
                strategy, TASK, models, budget=budget, seed=job["seed"], run_id=job["run_id"]
            )
            return answer.model_dump(mode="json")
    except BudgetExhausted:
        return None
    finally:
        await llm.aclose()
        await journal.aclose()


# -- the tests -----------------------------------------------------------------------------------------


class Jobs:
    """Sittings of runs that are kept in a folder, or all in one PostgreSQL database."""

    def __init__(self, folder: Path, dsn: str | None = None) -> None:
        self._folder = folder
        self._dsn = dsn

    def job(self, name: str, **given: Any) -> Job:
        path = str(self._folder / f"{name}.sqlite")
        defaults = {
            "run_id": name,
            "store": self._dsn or path,
            "out": path + ".json",
            "seed": 0,
            "budget": {},
        }
        return {**defaults, **given}

    def journaled(self, job: Job) -> int:
        """How many completions the journal has of the run."""
        count = "SELECT count(*) FROM stratagem_calls WHERE scope = "
        if self._dsn is not None:
            import psycopg

            with psycopg.connect(self._dsn) as connection:
                row = connection.execute("SELECT to_regclass('stratagem_calls')").fetchone()
                if row is None or row[0] is None:
                    return 0
                row = connection.execute(count + "%s", (job["run_id"],)).fetchone()
                assert row is not None
                return int(row[0])
        if not Path(job["store"]).exists():
            return 0
        with closing(sqlite3.connect(job["store"])) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
            if ("stratagem_calls",) not in tables:
                return 0
            return int(connection.execute(count + "?", (job["run_id"],)).fetchone()[0])


def essence(answer: dict[str, Any]) -> dict[str, Any]:
    """All of an answer but time, cost and name: what was lost in a kill has been paid for in vain."""
    return {key: value for key, value in answer.items() if key not in ("seconds", "usage", "run_id")}


async def kill_and_resume(jobs: Jobs, points: int, seed: int) -> int:
    """Kill ``points`` sittings at random steps, of runs that go on until they are finished."""
    rng = random.Random(seed)
    killed = trial = 0
    async with sittings(__file__) as at:
        whole = []
        for i, strategy in enumerate(STRATEGIES):
            job = jobs.job(f"whole-{i}", strategy=strategy)
            written, asked = await at.sit(job)
            assert written is not None
            assert asked == jobs.journaled(job)
            whole.append((written["result"], written["steps"], asked))
        while killed < points:
            i = trial % len(STRATEGIES)
            answer, steps, calls = whole[i]
            job = jobs.job(f"trial-{trial}", strategy=STRATEGIES[i])
            trial += 1
            begun = len(at.server.records)
            kill: int | None = rng.randint(1, steps)
            while True:
                kept = jobs.journaled(job)
                written, asked = await at.sit(job, kill)
                assert asked <= calls - kept
                if written is not None:
                    break
                killed += 1
                kill = rng.choice([None, rng.randint(1, steps)])
            assert asked == calls - kept
            assert essence(written["result"]) == essence(answer)
            assert written["result"]["run_id"] == job["run_id"]
            # What siblings had decoded by the time of the kill was paid for, and counts.
            decoded = sum(record.decoded for record in at.server.records[begun:])
            spent = written["result"]["usage"]["completion_tokens"]
            assert answer["usage"]["completion_tokens"] <= spent <= decoded
            again, asked = await at.sit(job)
            assert again is not None
            assert (again["result"], asked) == (written["result"], 0)
    return killed


def test_a_killed_run_is_resumed(tmp_path: Path) -> None:
    assert asyncio.run(kill_and_resume(Jobs(tmp_path), points=5, seed=1)) >= 5


@pytest.mark.slow
def test_runs_killed_at_50_random_points_pay_for_nothing_twice(tmp_path: Path) -> None:
    assert asyncio.run(kill_and_resume(Jobs(tmp_path), points=50, seed=2)) >= 50


@pytest.mark.postgres
@pytest.mark.skipif(DSN is None, reason="STRATAGEM_TEST_POSTGRES names no server")
def test_a_run_kept_in_postgres_is_resumed(tmp_path: Path) -> None:
    import psycopg
    from psycopg import sql

    assert DSN is not None
    name = f"r{os.urandom(6).hex()}"
    with psycopg.connect(DSN, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            jobs = Jobs(tmp_path, f"{DSN.rpartition('/')[0]}/{name}")
            assert asyncio.run(kill_and_resume(jobs, points=5, seed=3)) >= 5
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def test_a_budget_holds_across_a_kill(tmp_path: Path) -> None:
    async def main() -> None:
        jobs = Jobs(tmp_path)
        async with sittings(__file__) as at:
            job = jobs.job("whole", strategy=STRATEGIES[0])
            written, _ = await at.sit(job)
            assert written is not None
            usage, steps = written["result"]["usage"], written["steps"]
            tokens = (usage["prompt_tokens"] + usage["completion_tokens"]) * 2 // 3
            for i in range(4):
                job = jobs.job(f"trial-{i}", strategy=STRATEGIES[0], budget={"tokens": tokens})
                await at.sit(job, steps * (i + 1) // 6)
                kept, before = jobs.journaled(job), len(at.server.records)
                written, _ = await at.sit(job)
                assert written is not None
                assert written["result"] is not None
                spent = Answer.model_validate(written["result"]).usage
                paid_now = sum(r.prompt_tokens + r.decoded for r in at.server.records[before:])
                assert spent.tokens + spent.uncertain_tokens <= tokens
                assert (paid_now < spent.tokens) if kept else (paid_now == spent.tokens)

    asyncio.run(main())


if __name__ == "__main__":
    serve(_sitting)
