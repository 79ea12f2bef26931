"""What the tests of the OpenAI-compatible backend share."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from stratagem.backends.openai import OpenAIBackend
from stratagem.core.backend import Backend, Message, Request
from stratagem.core.usage import Usage
from stratagem.testing.server import (
    Fault,
    SimCompletion,
    SimRequest,
    SimSettings,
    SimulatedServer,
)

ASKED = (Message("user", "How many apples are there?"),)


@asynccontextmanager
async def connected(
    settings: SimSettings | None = None,
    *,
    faults: Callable[[SimRequest], Fault | None] | None = None,
    responder: Callable[[SimRequest], list[SimCompletion]] | None = None,
    **options: Any,
) -> AsyncIterator[tuple[SimulatedServer, OpenAIBackend]]:
    async with SimulatedServer(settings, faults=faults, responder=responder) as server:
        backend = OpenAIBackend(server.url, jitter_seed=0, **options)
        try:
            yield server, backend
        finally:
            await backend.aclose()


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(300):
            await main()

    asyncio.run(limited())


async def settled(server: SimulatedServer) -> None:
    async with asyncio.timeout(20):
        await server.until(lambda totals: totals.in_flight == 0)


async def texts_of(backend: Backend, request: Request) -> list[str]:
    return [completion.text for completion in (await backend.generate(request)).completions]


def assert_covers(usage: Usage, server: SimulatedServer) -> None:
    """The server's own count lies within what was reported."""
    totals = server.totals()
    billed = totals.prompt_tokens + totals.decoded
    assert usage.tokens <= billed <= usage.tokens + usage.uncertain_tokens
    assert totals.billed <= usage.calls


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delays between attempts of a hundredth of the usual."""
    monkeypatch.setattr("stratagem.backends._openai.sender._FIRST_DELAY", 0.005)


def server_usage(server: SimulatedServer) -> Usage:
    """What the server has billed up to now, to start a meter from."""
    totals = server.totals()
    return Usage(totals.prompt_tokens, totals.decoded, calls=totals.billed)
