"""What the tests on a real vLLM server share."""

from __future__ import annotations

import asyncio
import os
import re
import select
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from stratagem.backends.openai import OpenAIBackend
from stratagem.backends.vllm.plan import plan
from stratagem.backends.vllm.server import VLLMServer
from stratagem.bench.gym import skill
from stratagem.core.backend import Message, Request

KIT = Path(__file__).resolve().parent
MINI = KIT.parents[1] / "backends/embedded/mini"
# Over a profile's own: the type of the embedded engine, and no more memory than the shipped model needs.
FLAGS = ["--dtype", "float32", "--max-model-len", "1024", "--kv-cache-memory-bytes", str(2**29)]
QUESTION = skill("words").problem("test", 2).question  # one whose samples differ


@contextmanager
def in_thread(server: VLLMServer) -> Iterator[VLLMServer]:
    """The server, started; its log is read in a thread, whatever the tests' own loops do."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result()
        try:
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def serving(profile: str, flags: Sequence[str], **options: Any) -> AbstractContextManager[VLLMServer]:
    """A server of the shipped model, `mini`, by a profile; it may take long to start where much else runs."""
    arguments = plan(profile, flags).arguments
    return in_thread(VLLMServer(MINI, arguments, name="mini", startup_timeout=1800, **options))


def run(main: Callable[[OpenAIBackend], Coroutine[Any, Any, None]], server: VLLMServer) -> None:
    """With a backend over the server, in an event loop of its own."""

    async def limited() -> None:
        backend = OpenAIBackend(server.url, server.name)
        try:
            async with asyncio.timeout(300):
                await main(backend)
        finally:
            await backend.aclose()

    asyncio.run(limited())


def asked(text: str = QUESTION, **options: Any) -> Request:
    return Request((Message("user", text),), **{"max_tokens": 120, "seed": 1, "temperature": 0.0, **options})


async def counter(server: VLLMServer, name: str) -> int:
    """A number of the server's own metrics, over all its labels."""

    def read() -> str:
        with urlopen(server.url.removesuffix("/v1") + "/metrics", timeout=60) as answer:
            return str(answer.read().decode())

    found = re.findall(rf"^vllm:{name}(?:{{.*}})? (\S+)$", await asyncio.to_thread(read), re.MULTILINE)
    assert found, f"no metric {name}"
    return round(sum(float(value) for value in found))


def descendants(pid: int) -> set[int]:
    """The processes below that one, by its children's own lists; without those that end while it looks."""
    found: set[int] = set()
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                for child in (task / "children").read_text().split():
                    found |= {int(child)} | descendants(int(child))
    return found


@contextmanager
def gone_afterwards(pid: int, least: int) -> Iterator[None]:
    """That all processes below that one, at least so many, end within a minute after the block."""
    pids = descendants(pid)
    assert len(pids) >= least, pids
    watched = {os.pidfd_open(each): each for each in pids}
    try:
        yield
        while watched:
            ready = select.select(list(watched), [], [], 60)[0]
            assert ready, f"still there: {sorted(watched.values())}"
            for end in ready:
                os.close(end)
                del watched[end]
    finally:
        for left in watched:
            os.close(left)
