"""``--role``: other servers beside the model that answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from stratagem.testing.server import SimSettings, SimulatedServer

Cli = Callable[..., CompletedProcess[str]]


@pytest.mark.parametrize(("role", "verifier"), [("judge", "judge"), ("reward", "reward_model")])
def test_another_server_judges(cli: Cli, role: str, verifier: str) -> None:
    async def main() -> None:
        async with SimulatedServer(SimSettings(reward=role == "reward", api_key="right")) as server:
            told = ("solve", "Ana has 3 apples. Ben has twice as many. How many has Ben?", "-s", "best_of_n")
            how = ("--set", "n=3", "--set", f"verifier={verifier}", "--role", f"{role}={server.url}")
            key = ("--api-key-env", "KEY", "--json")
            done = await asyncio.to_thread(cli, *told, *how, *key, env={"KEY": "right"})
            assert done.returncode == 0, done.stderr
            answer = json.loads(done.stdout)
            assert answer["model"] == "stratagem-mini"
            assert all(verifier in candidate["scores"] for candidate in answer["candidates"])
            assert server.totals().requests >= len({c["text"] for c in answer["candidates"]})

    asyncio.run(main())


def test_a_bench_with_another_judge(cli: Cli, tmp_path: Path) -> None:
    async def main() -> None:
        async with SimulatedServer(SimSettings()) as server:
            told = ("bench", "gym:words", "--strategies", "best_of_n", "--limit", "2", "--json")
            how = (
                "--set",
                "best_of_n.n=2",
                "--set",
                "best_of_n.verifier=judge",
                "--out",
                str(tmp_path / "b"),
            )
            done = await asyncio.to_thread(cli, *told, *how, "--role", f"judge={server.url}")
            assert done.returncode == 0, done.stderr
            assert server.totals().requests >= 2

    asyncio.run(main())
