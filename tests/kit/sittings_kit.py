"""Processes that are killed in the middle of their work: the side that works, and the side that kills and counts.

A script that calls :func:`serve` imports once and forks for each sitting, so that a kill is cheap.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stratagem.testing.loops import StepLoop
from stratagem.testing.server import SimSettings, SimulatedServer

Job = dict[str, Any]  # for a sitting; "out" is the file that it writes its result to


def serve(work: Callable[[Job], Coroutine[Any, Any, Any]]) -> None:
    """Work at the jobs that come in; each ends with its step, if one is named, or with its result as JSON."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _sit(json.loads(line), work)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _sit(job: Job, work: Callable[[Job], Coroutine[Any, Any, Any]]) -> None:
    loop = StepLoop()
    if job["kill"]:
        loop.plan(job["kill"], lambda: os.kill(os.getpid(), signal.SIGKILL))
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        result = runner.run(work(job))
    Path(job["out"]).write_text(json.dumps({"result": result, "steps": loop.steps}))


class Sittings:
    """A simulated server in this process, and a process whose children are killed."""

    def __init__(self, server: SimulatedServer, process: asyncio.subprocess.Process) -> None:
        self.server = server
        self._process = process

    async def sit(self, job: Job, kill: int | None = None) -> tuple[dict[str, Any] | None, int]:
        """What a sitting wrote ("result", "steps"), if it was not killed, and how many completions it asked for.

        ``kill``: the step of its event loop at which it is killed (SIGKILL).
        """
        before = len(self.server.records)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write((json.dumps({**job, "url": self.server.url, "kill": kill}) + "\n").encode())
        code = int(await self._process.stdout.readline())
        await self._settled()
        asked = sum(record.n for record in self.server.records[before:])
        if code == -signal.SIGKILL:
            return None, asked
        assert code == 0
        return json.loads(await asyncio.to_thread(Path(job["out"]).read_text)), asked

    async def _settled(self) -> None:
        """All that the process had sent is in the server's books: it came before this question, and the server
        takes things in the order of their coming."""
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(self.server.url).port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await reader.read()
        writer.close()
        await writer.wait_closed()
        await self.server.until(lambda totals: totals.in_flight == 0)


@asynccontextmanager
async def sittings(script: str | Path) -> AsyncIterator[Sittings]:
    """The server, and the process that runs ``script``, which calls :func:`serve`."""
    settings = SimSettings(mean_tokens=20, first_token=0.002, per_token=0.0005)
    async with SimulatedServer(settings) as server:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(script),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)},
        )
        try:
            yield Sittings(server, process)
        finally:
            process.kill()
            await process.communicate()
