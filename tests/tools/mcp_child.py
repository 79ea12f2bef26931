"""An MCP server for the tests: ours, over stdio or HTTP, or one that misbehaves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

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


def raw(kind: str, given: str = "") -> None:
    """Speaks the protocol by hand, and answers calls badly; or has the tools, or gives the result, that are
    ``given``; ``mirror`` gives what its tools are given as data."""
    told_tools = (
        given if kind in ("tools", "mirror") else '[{"name": "t", "inputSchema": {"type": "object"}}]'
    )
    listed = json.loads(told_tools)
    texts = {"noise": "fine", "huge": "x" * 3_000_000}
    for line in sys.stdin:
        asked = json.loads(line)
        told: dict[str, Any] = {"error": {"code": -32601, "message": "not known"}}
        if asked["method"] == "initialize":
            version = asked["params"]["protocolVersion"]
            server = {"name": "raw", "version": "1"}
            told = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": server}
            told = {"result": told}
        elif asked["method"] == "tools/list":
            told = {"result": {"tools": listed}}
        elif asked["method"] == "tools/call":
            if kind == "deaf":
                return
            if kind == "noise":
                print("starting ...", flush=True)
            content: Any = [{"type": "text", "text": texts.get(kind, "")}]
            told = {"result": {"content": 17 if kind == "malformed" else content}}
            if kind == "tools":
                content[0]["text"] = json.dumps(asked["params"])
            if kind == "mirror":
                told["result"]["structuredContent"] = asked["params"]["arguments"]
            if kind == "result":
                told = {"result": json.loads(given)}
            if kind == "refusal":
                told = {"error": {"code": -32000, "message": "no way"}}
        if "id" in asked:
            text = json.dumps({"jsonrpc": "2.0", "id": asked["id"], **told})
            half = kind == "half" and asked["method"] == "tools/call"
            print(text[:20] if half else text, end="" if half else "\n", flush=True)


def family(kind: str) -> None:
    """Tells its pid and that of a child, which has a session of its own; ends when it should, unless it is
    ``stubborn``."""
    if kind == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.pause()"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
    ) as child:  # fmt: skip
        pids = json.dumps([os.getpid(), child.pid])
        raw("result", json.dumps({"content": [{"type": "text", "text": pids}]}))
        if kind == "stubborn":
            threading.Event().wait()
        os._exit(0)  # leaves the child


def sessions(hang: bool) -> None:
    """An HTTP server of the older protocol, which keeps sessions: forgets them all when its tool is first called,
    and,
    with
    ``hang``, never answers whoever wants to end one."""
    known: set[str] = set()
    forgotten: list[bool] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            """Says nothing."""

        def answer(self, status: int, data: object = None, session: str = "") -> None:
            body = b"" if data is None else json.dumps(data).encode()
            self.send_response(status)
            if session:
                self.send_header("mcp-session-id", session)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.answer(405)

        def do_DELETE(self) -> None:
            if hang:
                threading.Event().wait()
            self.answer(200)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            told: dict[str, Any] = {"jsonrpc": "2.0", "id": asked.get("id")}
            if asked["method"] == "initialize":
                session = str(time.monotonic_ns())
                known.add(session)
                version = asked["params"]["protocolVersion"]
                server = {"name": "old", "version": "1"}
                told["result"] = {
                    "protocolVersion": version,
                    "capabilities": {"tools": {}},
                    "serverInfo": server,
                }
                self.answer(200, told, session)
            elif self.headers.get("mcp-session-id") not in known:
                self.answer(404)
            elif asked["method"] == "tools/list":
                told["result"] = {"tools": [{"name": "forget", "inputSchema": {"type": "object"}}]}
                self.answer(200, told)
            elif asked["method"] == "tools/call":
                if not forgotten:
                    known.clear()
                    forgotten.append(True)
                told["result"] = {"content": [{"type": "text", "text": "forgotten"}]}
                self.answer(200, told)
            else:
                self.answer(202)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}/mcp", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "garbage":
        while sys.stdin.readline():
            print("this is no JSON", flush=True)
    elif sys.argv[1] == "silent":
        sys.stdin.read()
    elif sys.argv[1] == "raw":
        raw(*sys.argv[2:])
    elif sys.argv[1] == "family":
        family(sys.argv[2])
    elif sys.argv[1] == "sessions":
        sessions(sys.argv[2] == "hang")
    elif sys.argv[1] == "gone":
        sys.exit(3)
    else:
        port = None if sys.argv[1] == "stdio" else int(*sys.argv[2:])
        tools = [add, record, fail, hang, die]
        asyncio.run(serve_mcp(tools, port=port, started=lambda url: print(url, flush=True)))
