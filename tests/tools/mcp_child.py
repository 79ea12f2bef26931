"""An MCP server for the tests: ours, over stdio or HTTP, or one that misbehaves."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import stratagem as sg
from stratagem.tools.mcp import serve_mcp


@sg.tool(effect="read_only")
async def add(a: int, b: int = 1) -> int:
    """a and b together."""
    return a + b


@sg.tool(effect="idempotent")
async def record(n: int) -> dict[str, list[int]]:
    """Numbers below n."""
    return {"below": list(range(n))}


@sg.tool
async def fail(why: str) -> None:
    """Fails."""
    raise ValueError(why)


@sg.tool(timeout=1000.0)
async def hang(note: str) -> None:
    """Never ends; says in a file that it was begun and that it was cancelled."""
    Path(note).write_text("begun")  # noqa: ASYNC240 - nothing else runs here
    try:
        await asyncio.Event().wait()
    finally:
        Path(note).write_text("cancelled")  # noqa: ASYNC240


@sg.tool
async def die() -> None:
    """Kills its server."""
    os.kill(os.getpid(), 9)


if __name__ == "__main__":
    if sys.argv[1] == "garbage":
        while sys.stdin.readline():
            print("this is no JSON", flush=True)
    elif sys.argv[1] == "silent":
        sys.stdin.read()
    elif sys.argv[1] == "gone":
        sys.exit(3)
    else:
        port = None if sys.argv[1] == "stdio" else 0
        tools = [add, record, fail, hang, die]
        asyncio.run(serve_mcp(tools, port=port, started=lambda url: print(url, flush=True)))
