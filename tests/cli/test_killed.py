"""``stratagem solve --store`` is killed (SIGKILL): the same command goes on, gives the answer that the first would
have given, and pays for no finished call twice."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from stratagem.testing.server import SimSettings, SimulatedServer

Cli = Callable[..., CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]


def essence(printed: str) -> dict[str, Any]:
    """All of an answer but time, cost and name."""
    return {k: v for k, v in json.loads(printed).items() if k not in ("seconds", "usage", "run_id")}


def journaled(store: Path, run_id: str) -> int:
    """How many completions are kept of a run."""
    with closing(sqlite3.connect(store)) as connection:
        [count] = connection.execute(
            "SELECT count(*) FROM stratagem_calls WHERE scope = ?", (run_id,)
        ).fetchone()
    return int(count)


def test_killed_at_random_points_it_goes_on(cli: Cli, start: Start, tmp_path: Path) -> None:
    rng = random.Random(4)
    store = tmp_path / "runs.sqlite"

    async def main() -> None:
        async with SimulatedServer(SimSettings(mean_tokens=20, per_token=0.01)) as server:
            told = ("solve", "What is 2 + 3?", "-s", "best_of_n", "--set", "n=6", "--set", "max_tokens=60")
            told += ("--set", "verifier={kind: judge, mode: grade}", "--base-url", server.url, "--json")

            def kept(run_id: str) -> tuple[str, ...]:
                return (*told, "--store", str(store), "--run-id", run_id)

            def asked(since: int = 0) -> int:
                return sum(record.n for record in server.records[since:])

            whole = await asyncio.to_thread(cli, *kept("whole"))
            assert whole.returncode == 0, whole.stderr
            calls, decoded = asked(), server.totals().decoded
            assert calls == journaled(store, "whole") == 6 + 6

            saved = 0
            for trial in range(2):
                before = server.totals().decoded
                # The rest is still to be decoded here when the kill comes.
                point = before + rng.randint(decoded // 3, decoded * 2 // 3)
                process = start(*kept(f"r{trial}"))
                async with asyncio.timeout(300):
                    await server.until(lambda totals, point=point: totals.decoded >= point)
                process.kill()
                assert await asyncio.to_thread(process.wait) == -signal.SIGKILL
                async with asyncio.timeout(60):
                    await server.until(lambda totals: totals.in_flight == 0)

                finished, begun = journaled(store, f"r{trial}"), len(server.records)
                again = await asyncio.to_thread(cli, *kept(f"r{trial}"))
                assert again.returncode == 0, again.stderr
                assert essence(again.stdout) == essence(whole.stdout)
                assert asked(begun) == calls - finished
                assert json.loads(again.stdout)["run_id"] == f"r{trial}"
                saved += finished
            assert saved > 0

    asyncio.run(main())
