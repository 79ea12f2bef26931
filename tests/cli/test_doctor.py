"""`stratagem doctor` on a server that does not count; on real vLLM servers it is in tests/vllm."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

from stratagem.testing.server import Fault, SimRequest, SimSettings, SimulatedServer


def checked(
    server: SimulatedServer, cli: Callable[..., CompletedProcess[str]]
) -> tuple[int, list[dict[str, str]]]:
    """Exit code and checks."""

    async def main() -> CompletedProcess[str]:
        async with server:
            return await asyncio.to_thread(cli, "doctor", "--base-url", server.url, "--json")

    done = asyncio.run(main())
    return done.returncode, json.loads(done.stdout)


def test_a_server_without_metrics_is_told_and_works(cli: Callable[..., CompletedProcess[str]]) -> None:
    code, checks = checked(SimulatedServer(), cli)
    assert code == 0
    [metrics] = [check for check in checks if check["section"] == "vLLM server"]
    assert (metrics["name"], metrics["status"]) == ("metrics", "advice")
    assert "shows no metrics" in metrics["detail"]
    assert metrics["remedy"] == "Ask vLLM itself, at its own port."


def fails_to_score(request: SimRequest) -> Fault | None:
    return Fault("status", status=400) if "prompt_logprobs" in request.body else None


@pytest.mark.parametrize(
    ("server", "status"),
    [
        (SimulatedServer(), "ok"),
        (SimulatedServer(SimSettings(flavour="openai")), "missing"),
        (SimulatedServer(faults=fails_to_score), "broken"),
    ],
    ids=["vllm", "openai", "failing"],
)
def test_scoring_is_tried(
    server: SimulatedServer, status: str, cli: Callable[..., CompletedProcess[str]]
) -> None:
    code, checks = checked(server, cli)
    [scoring] = [check for check in checks if check["name"] == "scoring"]
    assert scoring["status"] == status
    assert code == (status == "broken")
    assert [check["name"] for check in checks if check["status"] == "broken"] == ["scoring"] * code
