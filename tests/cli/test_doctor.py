"""`stratagem doctor` on a server that does not count; on real vLLM servers it is in tests/vllm."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from subprocess import CompletedProcess

from stratagem.testing.server import SimSettings, SimulatedServer


def test_a_server_without_metrics_is_told_and_works(cli: Callable[..., CompletedProcess[str]]) -> None:
    async def main() -> CompletedProcess[str]:
        async with SimulatedServer(SimSettings()) as server:
            return await asyncio.to_thread(cli, "doctor", "--base-url", server.url, "--json")

    done = asyncio.run(main())
    assert done.returncode == 0, done.stderr
    [metrics] = [check for check in json.loads(done.stdout) if check["section"] == "vLLM server"]
    assert (metrics["name"], metrics["status"]) == ("metrics", "advice")
    assert "shows no metrics" in metrics["detail"]
    assert metrics["remedy"] == "Ask vLLM itself, at its own port."
