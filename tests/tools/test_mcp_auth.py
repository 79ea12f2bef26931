"""MCP servers that want to know who asks: headers, auth, and that neither is ever shown."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

import stratagem as sg
from stratagem.tools.tool import Value

pytest.importorskip("mcp")
from stratagem.tools.mcp import mcp_tools

CHILD = [sys.executable, str(Path(__file__).with_name("mcp_child.py")), "http"]
TOKEN = "tok-5cf2"


@asynccontextmanager
async def guarded() -> AsyncIterator[str]:
    """The URL of a server behind a door that lets nobody in without the token, and says what it was shown."""
    child = await asyncio.create_subprocess_exec(*CHILD, stdout=asyncio.subprocess.PIPE)
    assert child.stdout is not None
    url = (await child.stdout.readline()).decode().strip()
    port = int(url.rpartition(":")[2].partition("/")[0])

    async def door(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        shown = next(
            (line for line in head.split(b"\r\n") if line.lower().startswith(b"authorization:")), b""
        )
        if shown.rpartition(b" ")[2] != TOKEN.encode():
            body = b"who is " + shown
            length = str(len(body)).encode()
            writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: " + length + b"\r\n\r\n" + body)
            writer.close()
            return
        inner, outer = await asyncio.open_connection("127.0.0.1", port)
        outer.write(head)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                target.write(data)
            target.close()

        await asyncio.gather(copy(reader, outer), copy(inner, writer), return_exceptions=True)

    server = await asyncio.start_server(door, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
    finally:
        server.close()
        child.kill()
        await child.wait()


class Signs(httpx2.Auth):
    """As the library's OAuth providers do."""

    def auth_flow(self, request: httpx2.Request) -> Iterator[httpx2.Request]:  # type: ignore[override]
        request.headers["Authorization"] = f"Bearer {TOKEN}"
        yield request


def test_headers_and_auth_let_in() -> None:
    async def main() -> None:
        async with guarded() as url:
            for told in ({"headers": {"Authorization": f"Bearer {TOKEN}"}}, {"auth": Signs()}):
                async with mcp_tools(url, **told) as tools:  # type: ignore[arg-type]
                    add = next(each for each in tools if each.name == "add")
                    assert await add(a=1) == Value(2)
                    if "headers" in told:
                        assert add.masked(f"got {TOKEN}") != f"got {TOKEN}"

    asyncio.run(asyncio.wait_for(main(), 60))


def test_who_is_not_let_in_is_told_without_the_secret() -> None:
    async def main() -> None:
        async with guarded() as url:
            for headers in (None, {"Authorization": "Bearer wrong-77"}):
                with pytest.raises(sg.ConfigurationError, match="cannot be used") as caught:
                    async with mcp_tools(url, headers=headers):
                        pass
                assert "wrong-77" not in str(caught.value)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_command_has_no_headers() -> None:
    async def main() -> None:
        with pytest.raises(sg.ConfigurationError, match="secrets by env"):
            async with mcp_tools(["server"], headers={"Authorization": "x"}):
                pass

    asyncio.run(main())
