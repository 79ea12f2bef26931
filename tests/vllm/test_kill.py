"""A real server loses its clients, and a run its server (SIGKILL)."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import stratagem as sg
from stratagem.backends.openai import OpenAIBackend
from stratagem.backends.vllm.server import VLLMServer
from stratagem.bench.gym import skill
from stratagem.core.backend import Constraint, Request
from stratagem.core.errors import UnavailableError
from stratagem.core.trace import CompletionArrived, Record, Trace
from vllm_kit import FLAGS, KIT, asked, counter, descendants, serving

pytestmark = pytest.mark.vllm
PROBLEM = skill("words").problem("test", 2)  # one whose samples differ
N, PERMITS, KILLED_AT = 12, 4, 5  # samples, of which so many at a time; arrivals until the kill


class Own:
    """A server that may be killed and started again at the same address; it logs its steps."""

    def __init__(self, folder: Path) -> None:
        self.steps = folder / "steps"
        self._stack = ExitStack()
        self._port: int | None = None
        self.start()

    def start(self) -> None:
        """Started, or started anew."""
        self._stack.close()
        self.server = self._stack.enter_context(
            serving(
                "agent",
                [*FLAGS, "--logits-processors", "step_log:StepLog"],
                port=self._port,
                environment={"STEP_LOG": str(self.steps), "PYTHONPATH": str(KIT)},
            )
        )
        self._port = urlsplit(self.server.url).port

    def kill(self) -> None:
        """The server's own process; its engine is left to whoever looks after it."""
        for pid in descendants(os.getpid()):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if words[1:3] == ["-m", "vllm.entrypoints.openai.api_server"] and str(self._port) in words:
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """Ended."""
        self._stack.close()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    started = Own(tmp_path_factory.mktemp("own"))
    yield started
    started.close()


def endless(n: int, seed: int = 1) -> Request:
    constraint = Constraint("regex", "[a-c]{900}")
    return asked(n=n, seed=seed, max_tokens=900, temperature=1.0, constraint=constraint)


def test_an_aborted_sequence_is_out_of_the_batch_within_two_steps(own: Own) -> None:
    """Of a stream that is left, while others go on: counted in the engine's own steps, from before it is left."""
    others = 8

    async def main() -> list[int]:
        backend = OpenAIBackend(own.server.url, "mini")
        left: list[int] = []
        async with backend.stream(endless(others)) as companions:
            chunks = aiter(companions)
            for seed in range(5):
                async with backend.stream(endless(1, seed)) as stream:
                    pieces = aiter(stream)
                    for _ in range(5):
                        await anext(pieces)
                    left.append(time.monotonic_ns())
                for _ in range(10 * others):  # some steps more
                    await anext(chunks)
        await backend.aclose()
        return left

    left = asyncio.run(main())
    log = [tuple(map(int, line.split())) for line in own.steps.read_text().splitlines()]
    late = []
    for moment in left:
        sizes = [size for began, size in log if began > moment]
        assert others in sizes, "it never left"
        late.append(sizes.index(others))
    print(f"steps with a sequence after it was aborted: {late}")
    assert max(late) <= 2


def kept(store: Path) -> int:
    """Completions in the journal."""
    with closing(sqlite3.connect(store)) as connection:
        return int(connection.execute("SELECT count(*) FROM stratagem_calls").fetchone()[0])


def killing(own: Own) -> Trace:
    """A trace that kills the server when some completions have arrived."""
    trace, arrived = Trace(), 0

    def hear(record: Record) -> None:
        nonlocal arrived
        if isinstance(record.event, CompletionArrived):
            arrived += 1
            if arrived == KILLED_AT:
                own.kill()

    trace.listeners.append(hear)
    return trace


async def voted(llm: sg.Backend, **options: Any) -> sg.Answer:
    """The run that is disturbed; closes the backend."""
    try:
        return await sg.solve(PROBLEM.question, sg.SelfConsistency(n=N), llm=llm, seed=3, **options)
    finally:
        await llm.aclose()


def test_a_run_whose_server_is_killed_goes_on_after_a_restart(
    own: Own, server: VLLMServer, tmp_path: Path
) -> None:
    """The completions that had arrived are not drawn again, and the answer is that of an undisturbed run."""
    store = tmp_path / "store.sqlite"

    def llm(of: VLLMServer) -> OpenAIBackend:
        return OpenAIBackend(of.url, "mini", permits=PERMITS, retries=1)

    async def first() -> None:
        with pytest.raises(UnavailableError):
            await voted(llm(own.server), store=store, run_id="r", trace=killing(own))

    async def second(safe: int) -> None:
        answer = await voted(llm(own.server), store=store, run_id="r")
        assert await counter(own.server, "request_success_total") == N - safe
        undisturbed = await voted(llm(server))
        assert answer.value == undisturbed.value
        assert [c.text for c in answer.candidates] == [c.text for c in undisturbed.candidates]

    asyncio.run(first())
    safe = kept(store)
    assert KILLED_AT <= safe < N
    own.start()
    asyncio.run(second(safe))
    assert kept(store) == N


def test_a_run_whose_server_is_killed_goes_on_at_another_endpoint(own: Own, server: VLLMServer) -> None:
    async def main() -> None:
        before = await counter(server, "request_success_total")
        pool = sg.connect([own.server.url, server.url], model="mini", permits=PERMITS)
        answer = await voted(pool, trace=killing(own))
        moved = await counter(server, "request_success_total") - before
        # What had ended when the server died is not drawn again; some of it may still have been on its way.
        assert N - KILLED_AT - PERMITS <= moved <= N - KILLED_AT
        undisturbed = await voted(OpenAIBackend(server.url, "mini"))
        assert answer.value == undisturbed.value
        assert [c.text for c in answer.candidates] == [c.text for c in undisturbed.candidates]

    asyncio.run(main())
