"""The client by hand that the framework is measured against."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

from stratagem.core.prompts import STEP_BY_STEP
from stratagem.core.task import Task
from vllm_throughput import ByHand

TASK = Task.of("Which?")
ANSWER = json.dumps({"choices": [{"message": {"content": "The answer is 8."}}]}).encode()


def test_a_connection_that_the_server_has_closed_meanwhile_is_no_failure() -> None:
    """A server may close an idle connection just when a request is under way to it."""
    connections: list[int] = []  # requests of each
    serving: list[asyncio.Task[None] | None] = []

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        connections.append(0)
        number = len(connections)
        with suppress(asyncio.IncompleteReadError):  # the client has gone
            while connections[0] < 2 or number > 1:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                connections[number - 1] += 1
                if number > 1 or connections[0] == 1:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER))
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        server = await asyncio.start_server(served, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        hand = ByHand(f"http://127.0.0.1:{port}/v1", "mini", 1, {TASK.ask(STEP_BY_STEP): 0})
        try:
            assert [await hand.vote(TASK, 0) for _ in range(2)] == ["8."] * 2
        finally:
            await hand.aclose()
            await asyncio.gather(*filter(None, serving))
            server.close()
        assert connections == [2, 1]

    asyncio.run(main())
