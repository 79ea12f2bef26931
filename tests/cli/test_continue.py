"""``stratagem solve --store``: a run that its budget has stopped goes on under a larger one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from stratagem.testing.server import SimSettings, SimulatedServer

Cli = Callable[..., CompletedProcess[str]]


def test_a_larger_budget_goes_on_and_pays_for_nothing_twice(cli: Cli, tmp_path: Path) -> None:
    async def main() -> None:
        async with SimulatedServer(SimSettings()) as server:
            told = ("solve", "What is 2 + 3?", "-s", "best_of_n", "--set", "n=32", "--base-url", server.url)
            kept = ("--json", "--store", str(tmp_path / "runs.sqlite"), "--run-id", "r1")

            async def under(*budget: str) -> tuple[dict[str, Any], str]:
                done = await asyncio.to_thread(cli, *told, *kept, *budget)
                assert done.returncode == 0, done.stderr
                books = server.totals()
                answer: dict[str, Any] = json.loads(done.stdout)
                assert answer["usage"]["tokens"] == books.prompt_tokens + books.decoded
                return answer, done.stderr

            first, hint = await under("--budget", "tokens=1500")
            assert (first["stopped"], first["run_id"]) == ("budget", "r1")
            assert hint == "stopped: the same with --run-id r1 and a larger --budget goes on\n"
            paid = server.totals()
            assert await under() == (first, hint)  # the budget that it has
            assert server.totals().requests == paid.requests

            refused = await asyncio.to_thread(cli, *told, *kept, "--budget", "tokens=100")
            assert (refused.returncode, refused.stdout) == (2, "")
            [line] = refused.stderr.splitlines()
            assert line.startswith(f"error: Run 'r1' has spent tokens={first['usage']['tokens']} already")

            second, hint = await under("--budget", "tokens=100000")
            assert (second["stopped"], hint) == ("complete", "")
            assert len(first["candidates"]) < len(second["candidates"]) == 32
            assert second["usage"]["tokens"] > first["usage"]["tokens"]

    asyncio.run(main())


def test_a_budget_too_small_for_any_answer_tells_how_to_go_on(cli: Cli, tmp_path: Path) -> None:
    async def main() -> None:
        async with SimulatedServer(SimSettings()) as server:
            told = ("solve", "What is 2 + 3?", "--base-url", server.url, "--json")
            kept = ("--store", str(tmp_path / "runs.sqlite"))
            done = await asyncio.to_thread(cli, *told, *kept, "--budget", "tokens=3")
            assert (done.returncode, done.stdout) == (2, "")
            [line] = done.stderr.splitlines()
            run_id = line.partition("--run-id ")[2].split()[0]
            more = await asyncio.to_thread(cli, *told, *kept, "--run-id", run_id, "--budget", "tokens=90000")
            assert more.returncode == 0, more.stderr
            assert json.loads(more.stdout)["run_id"] == run_id

    asyncio.run(main())
