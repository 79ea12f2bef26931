"""What the tests of the simulated server share."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from openai import AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from stratagem.testing.server import (
    Fault,
    SimCompletion,
    SimRequest,
    SimSettings,
    SimulatedServer,
)

QUESTION = [{"role": "user", "content": "How many apples are there?"}]


@asynccontextmanager
async def client_of(url: str, key: str = "none") -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=20) as client:
        yield client


def serve(
    check: Callable[[SimulatedServer, AsyncOpenAI], Coroutine[Any, Any, None]],
    settings: SimSettings | None = None,
    responder: Callable[[SimRequest], list[SimCompletion]] | None = None,
    faults: Callable[[SimRequest], Fault | None] | None = None,
) -> None:
    async def main() -> None:
        async with (
            SimulatedServer(settings, responder=responder, faults=faults) as server,
            client_of(server.url) as client,
        ):
            await check(server, client)

    asyncio.run(main())


async def ask(client: AsyncOpenAI, **options: Any) -> ChatCompletion:
    answer = await client.chat.completions.create(**{"model": "sim", "messages": QUESTION, **options})
    assert isinstance(answer, ChatCompletion)
    return answer


def texts(answer: ChatCompletion) -> list[str]:
    return [choice.message.content or "" for choice in answer.choices]


async def stream_of(client: AsyncOpenAI, **options: Any) -> AsyncStream[ChatCompletionChunk]:
    create: Any = client.chat.completions.create
    stream = await create(**{"model": "sim", "messages": QUESTION, "stream": True, **options})
    assert isinstance(stream, AsyncStream)
    return stream


async def settled(server: SimulatedServer) -> None:
    """The server has noticed every hang-up."""
    async with asyncio.timeout(20):
        await server.until(lambda totals: totals.in_flight == 0)
