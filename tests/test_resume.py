"""Runs are killed (SIGKILL) at random points and started again: nothing that has finished is asked for twice, and
the answer is the one of an uninterrupted run.

Run as a script, this file is the process that is killed: it imports once and forks for each sitting.
"""

import asyncio
import json
import os
import random
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from stratagem.backends.journaled import Journal, Journaled
from stratagem.backends.openai import OpenAIBackend
from stratagem.core.budget import Budget
from stratagem.core.errors import BudgetExhausted
from stratagem.core.protocols import Strategy
from stratagem.core.task import Answer, Task
from stratagem.graphs import Runner
from stratagem.testing.loops import StepLoop
from stratagem.testing.server import SimSettings, SimulatedServer

TASK = Task.of("Ben has 12 apples and buys 7 more. How many has he?")
RUN_ID = "the run"
STRATEGIES = (
    {"kind": "best_of_n", "n": 6, "verifier": {"kind": "judge", "mode": "grade"}, "max_tokens": 60},
    {"kind": "self_consistency", "n": 6, "max_tokens": 60},
    {"kind": "weighted_vote", "n": 6, "max_tokens": 60},
)
DSN = os.environ.get("STRATAGEM_TEST_POSTGRES")


# -- the process that is killed ------------------------------------------------------------------------


async def _sitting(job: dict[str, Any]) -> Answer | None:
    """One attempt at the run; ``None`` if its budget does not hold an answer."""
    llm = OpenAIBackend(job["url"])
    journal = Journal(job["journal"])
    try:
        async with Runner(job["store"]) as runner:
            models = {"policy": Journaled(llm, journal, RUN_ID)}
            strategy, budget = Strategy.load(job["strategy"]), Budget.model_validate(job["budget"])
            return await runner.run(strategy, TASK, models, budget=budget, seed=job["seed"], run_id=RUN_ID)
    except BudgetExhausted:
        return None
    finally:
        await llm.aclose()
        await journal.aclose()


def _child(job: dict[str, Any]) -> None:
    loop = StepLoop()
    if job["kill"]:
        loop.plan(job["kill"], lambda: os.kill(os.getpid(), signal.SIGKILL))
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        answer = runner.run(_sitting(job))
    said = answer and answer.model_dump(mode="json")
    Path(job["out"]).write_text(json.dumps({"answer": said, "steps": loop.steps}))


def _serve() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _child(json.loads(line))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


# -- the tests -----------------------------------------------------------------------------------------


class Bench:
    """A simulated server in this process, and a process whose children are killed."""

    def __init__(self, server: SimulatedServer, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.server = server
        self._process = process
        self._folder = folder

    def job(self, name: str, store: str | None = None, **given: Any) -> dict[str, Any]:
        path = str(self._folder / f"{name}.sqlite")
        defaults = {"store": store or path, "journal": path, "out": path + ".json", "seed": 0, "budget": {}}
        return {"url": self.server.url, **defaults, **given}

    async def sit(self, job: dict[str, Any], kill: int | None = None) -> tuple[dict[str, Any] | None, int]:
        """What a sitting wrote, if it was not killed, and how many completions it asked the server for."""
        before = len(self.server.records)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write((json.dumps({**job, "kill": kill}) + "\n").encode())
        code = int(await self._process.stdout.readline())
        await self._settled()
        asked = sum(record.n for record in self.server.records[before:])
        if code == -signal.SIGKILL:
            return None, asked
        assert code == 0
        return json.loads(await asyncio.to_thread(Path(job["out"]).read_text)), asked

    async def _settled(self) -> None:
        """All that the process had sent is in the server's books: it came before this question, and the server
        takes things in the order of their coming."""
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(self.server.url).port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await reader.read()
        writer.close()
        await writer.wait_closed()
        await self.server.until(lambda totals: totals.in_flight == 0)


@asynccontextmanager
async def bench(folder: Path) -> AsyncIterator[Bench]:
    settings = SimSettings(mean_tokens=20, first_token=0.002, per_token=0.0005)
    async with SimulatedServer(settings) as server:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            __file__,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        try:
            yield Bench(server, process, folder)
        finally:
            process.kill()
            await process.communicate()


def journaled(job: dict[str, Any]) -> int:
    """How many completions the journal has."""
    if not Path(job["journal"]).exists():
        return 0
    with closing(sqlite3.connect(job["journal"])) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
        if ("stratagem_calls",) not in tables:
            return 0
        [count] = connection.execute("SELECT count(*) FROM stratagem_calls").fetchone()
    return int(count)


def essence(answer: dict[str, Any]) -> dict[str, Any]:
    """All of an answer but time and cost: what was lost in a kill has been paid for in vain."""
    return {key: value for key, value in answer.items() if key not in ("seconds", "usage")}


async def kill_and_resume(folder: Path, points: int, seed: int, stores: list[str] | None = None) -> int:
    """Kill ``points`` sittings at random steps, of runs that go on until they are finished."""
    rng = random.Random(seed)
    killed = trial = 0
    async with bench(folder) as at:
        whole = []
        for i, strategy in enumerate(STRATEGIES):
            job = at.job(f"whole-{i}", strategy=strategy)
            written, asked = await at.sit(job)
            assert written is not None
            assert asked == journaled(job)
            whole.append((written["answer"], written["steps"], asked))
        while killed < points:
            i = trial % len(STRATEGIES)
            answer, steps, calls = whole[i]
            job = at.job(f"trial-{trial}", stores[trial] if stores else None, strategy=STRATEGIES[i])
            trial += 1
            begun = len(at.server.records)
            kill: int | None = rng.randint(1, steps)
            while True:
                kept = journaled(job)
                written, asked = await at.sit(job, kill)
                assert asked <= calls - kept
                if written is not None:
                    break
                killed += 1
                kill = rng.choice([None, rng.randint(1, steps)])
            assert asked == calls - kept
            assert essence(written["answer"]) == essence(answer)
            # What siblings had decoded by the time of the kill was paid for, and counts.
            decoded = sum(record.decoded for record in at.server.records[begun:])
            spent = written["answer"]["usage"]["completion_tokens"]
            assert answer["usage"]["completion_tokens"] <= spent <= decoded
            again, asked = await at.sit(job)
            assert again is not None
            assert (again["answer"], asked) == (written["answer"], 0)
    return killed


def test_a_killed_run_is_resumed(tmp_path: Path) -> None:
    assert asyncio.run(kill_and_resume(tmp_path, points=5, seed=1)) >= 5


@pytest.mark.slow
def test_runs_killed_at_50_random_points_pay_for_nothing_twice(tmp_path: Path) -> None:
    assert asyncio.run(kill_and_resume(tmp_path, points=50, seed=2)) >= 50


@pytest.mark.postgres
@pytest.mark.skipif(DSN is None, reason="STRATAGEM_TEST_POSTGRES names no server")
def test_a_run_kept_in_postgres_is_resumed(tmp_path: Path) -> None:
    import psycopg
    from psycopg import sql

    assert DSN is not None
    names = [f"r{os.urandom(6).hex()}" for _ in range(15)]  # five kills take no more runs than this
    with psycopg.connect(DSN, autocommit=True) as connection:
        for name in names:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            stores = [f"{DSN.rpartition('/')[0]}/{name}" for name in names]
            assert asyncio.run(kill_and_resume(tmp_path, points=5, seed=3, stores=stores)) >= 5
        finally:
            for name in names:
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def test_a_budget_holds_across_a_kill(tmp_path: Path) -> None:
    async def main() -> None:
        async with bench(tmp_path) as at:
            job = at.job("whole", strategy=STRATEGIES[0])
            written, _ = await at.sit(job)
            assert written is not None
            usage, steps = written["answer"]["usage"], written["steps"]
            tokens = (usage["prompt_tokens"] + usage["completion_tokens"]) * 2 // 3
            for i in range(4):
                job = at.job(f"trial-{i}", strategy=STRATEGIES[0], budget={"tokens": tokens})
                await at.sit(job, steps * (i + 1) // 6)
                kept, before = journaled(job), len(at.server.records)
                written, _ = await at.sit(job)
                assert written is not None
                assert written["answer"] is not None
                spent = Answer.model_validate(written["answer"]).usage
                paid_now = sum(r.prompt_tokens + r.decoded for r in at.server.records[before:])
                assert spent.tokens + spent.uncertain_tokens <= tokens
                assert (paid_now < spent.tokens) if kept else (paid_now == spent.tokens)

    asyncio.run(main())


if __name__ == "__main__":
    _serve()
