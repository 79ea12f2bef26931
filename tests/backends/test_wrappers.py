"""Cached, journaled and recorded: on the toy model, and across kills of a process on the simulated server."""

import asyncio
import json
import random
import signal
import sqlite3
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stratagem.backends.cached import Cached
from stratagem.backends.journaled import Journal, Journaled
from stratagem.backends.recorded import Recorded
from stratagem.core.backend import Backend, Message, Request, ScoreRequest
from stratagem.core.errors import DataError, StoreError
from stratagem.core.usage import Meter, Usage
from stratagem.testing import laws
from stratagem.testing.server import SimRequest, SimSettings, SimulatedServer
from stratagem.testing.toy import ToyModel

ASKED = (Message("user", "How many apples are left?"),)
REQUEST = Request(ASKED, n=4, seed=20, max_tokens=24, logprobs=2)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(300):
            await main()

    asyncio.run(limited())


@pytest.mark.parametrize("kind", ["journaled", "cached", "cached in a file", "recorded"])
def test_the_laws_of_backends(kind: str, tmp_path: Path) -> None:
    def make() -> Backend:
        match kind:
            case "journaled":
                return Journaled(ToyModel(), tmp_path / "journal.sqlite", "run")
            case "cached":
                return Cached(ToyModel())
            case "cached in a file":
                return Cached(ToyModel(), tmp_path / "cache.sqlite")
            case _:
                return Recorded(tmp_path / "recording.jsonl", ToyModel())

    laws.backend(make, cases=8)


def test_a_finished_call_is_replayed_with_what_it_cost(tmp_path: Path) -> None:
    async def main() -> None:
        toy = ToyModel()
        first = Journaled(toy, tmp_path / "j.sqlite", "run")
        paid = await first.generate(REQUEST)
        scored = await first.score(ScoreRequest(ASKED, ("one", "two")))
        assert not paid.replayed
        await first.aclose()

        spent, again, meter = toy.books.usage, Journaled(toy, tmp_path / "j.sqlite", "run"), Meter()
        replayed = await again.generate(REQUEST, meter)
        assert replayed == replace(paid, replayed=True)
        assert meter.usage == paid.usage
        async with again.stream(REQUEST) as stream:
            chunks = [chunk async for chunk in stream]
        assert stream.replayed
        assert stream.usage == paid.usage
        assert tuple(chunk.completion for chunk in chunks) == paid.completions
        assert await again.score(ScoreRequest(ASKED, ("one", "two"))) == replace(scored, replayed=True)
        assert toy.books.usage == spent
        other = Journaled(toy, tmp_path / "j.sqlite", "another run")
        assert not (await other.generate(REQUEST)).replayed
        await again.aclose()
        await other.aclose()

    run(main)


def test_the_grouping_of_samples_does_not_matter(tmp_path: Path) -> None:
    """Of ten siblings those that were drawn before, in other company, are not drawn again."""

    async def main() -> None:
        toy = ToyModel()
        journaled = Journaled(toy, tmp_path / "j.sqlite", "run")
        ten = replace(REQUEST, n=10)
        await journaled.generate(replace(ten.sibling(2), n=2))
        async with journaled.stream(ten.sibling(7)) as stream:
            _ = [chunk async for chunk in stream]
        before = toy.books.usage
        generation = await journaled.generate(ten)
        assert generation.completions == (await ToyModel().generate(ten)).completions
        assert not generation.replayed
        drawn = [c for c in generation.completions if c.index not in (2, 3, 7)]
        now = toy.books.usage.completion_tokens - before.completion_tokens
        assert now == sum(c.token_count for c in drawn)
        assert generation.usage == toy.books.usage  # those from before, and those now
        assert (await journaled.generate(replace(ten.sibling(1), n=8))).replayed
        await journaled.aclose()

    run(main)


def test_a_call_that_is_paid_for_is_kept_though_its_run_is_cancelled_before_it_is_written(
    tmp_path: Path,
) -> None:
    path = tmp_path / "j.sqlite"

    async def main() -> None:
        drawn = asyncio.Event()

        class Watched(Meter):
            def add(self, usage: Usage) -> None:
                super().add(usage)
                if self.usage.calls == 3:
                    drawn.set()

        toy, meter = ToyModel(), Watched()
        journaled = Journaled(toy, path, "run")
        await journaled.generate(REQUEST.sibling(0))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # writes must wait
            tasks = [asyncio.create_task(journaled.generate(REQUEST.sibling(i), meter)) for i in (1, 2, 3)]
            # The reads come before the writes in the journal's one thread, so that all have been drawn.
            await drawn.wait()
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ends)
            other.execute("COMMIT")
        await journaled.aclose()
        again = Journaled(toy, path, "run")
        assert (await again.generate(REQUEST)).replayed
        await again.aclose()

    run(main)


@pytest.mark.parametrize(
    "dsn", ["postgresql://me:s3cr%et@127.0.0.1:1/db", "postgresql://127.0.0.1:1/db?password=a@s3cr"]
)
def test_an_unusable_postgres_does_not_tell_its_password(dsn: str) -> None:
    pytest.importorskip("psycopg")

    async def main() -> None:
        journal = Journal(dsn)
        with pytest.raises(StoreError) as caught:
            await journal.database.get("run", ["key"])
        assert "s3cr" not in "".join(traceback.format_exception(caught.value))
        await journal.aclose()

    run(main)


def test_siblings_that_ended_before_an_abort_are_kept(tmp_path: Path) -> None:
    async def main() -> None:
        toy, meter = ToyModel(), Meter()
        journaled = Journaled(toy, tmp_path / "j.sqlite", "run")
        ended = -1
        async with journaled.stream(replace(REQUEST, n=8), meter) as stream:
            async for chunk in stream:
                if chunk.completion is not None:
                    ended = chunk.index
                    break
        assert meter.usage == stream.usage == toy.books.usage
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert ended >= 0
        assert (await journaled.generate(replace(REQUEST, n=8).sibling(ended))).replayed
        await journaled.aclose()

    run(main)


def test_what_is_drawn_at_random_is_not_remembered(tmp_path: Path) -> None:
    async def main() -> None:
        for backend in (Journaled(ToyModel(), tmp_path / "j.sqlite", "run"), Cached(ToyModel())):
            free = replace(REQUEST, seed=None)
            assert not (await backend.generate(free)).replayed
            assert not (await backend.generate(free)).replayed
            greedy = replace(free, temperature=0.0)
            assert not (await backend.generate(greedy)).replayed
            assert (await backend.generate(greedy)).replayed
            await backend.aclose()

    run(main)


def test_many_runs_share_a_journal(tmp_path: Path) -> None:
    async def main() -> None:
        journal, toy = Journal(tmp_path / "j.sqlite"), ToyModel()
        for replayed in (False, True):
            backends = [Journaled(toy, journal, f"run {i}") for i in range(20)]
            done = await asyncio.gather(*(backend.generate(REQUEST) for backend in backends))
            assert all(generation.replayed is replayed for generation in done)
            for backend in backends:
                await backend.aclose()
        await journal.aclose()

    run(main)


def test_a_store_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database, however long it may be. " * 40)

    async def main() -> None:
        for path in (tmp_path / "text", tmp_path / "missing" / "j.sqlite"):
            backend = Journaled(ToyModel(), path, "run")
            with pytest.raises(StoreError, match=path.name):
                await backend.generate(REQUEST)
            await backend.aclose()

    run(main)


def test_a_cache_serves_every_run_and_forgets_the_longest_unused(tmp_path: Path) -> None:
    async def main() -> None:
        toy = ToyModel()
        cached = Cached(toy, entries=4)
        assert not (await cached.generate(REQUEST)).replayed
        assert (await cached.generate(REQUEST)).replayed
        assert (await cached.generate(REQUEST.sibling(0))).replayed
        await cached.generate(replace(REQUEST, n=2, seed=99))
        assert (await cached.generate(REQUEST.sibling(0))).replayed
        assert not (await cached.generate(REQUEST.sibling(1))).replayed
        for replayed in (False, True):
            kept = Cached(toy, tmp_path / "c.sqlite")
            assert (await kept.generate(REQUEST)).replayed is replayed
            await kept.aclose()

    run(main)


def test_a_recording_plays_without_the_model(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"

    async def talk(backend: Backend) -> list[object]:
        meter = Meter()
        async with backend.stream(REQUEST, meter, deltas=False) as stream:
            done = [chunk async for chunk in stream]
        greedy = await backend.generate(Request(ASKED, temperature=0.0, max_tokens=9), meter)
        scoring = await backend.score(ScoreRequest(ASKED, ("one",)), meter)
        count = await backend.count_tokens(ASKED)
        ends = {chunk.index: chunk.completion for chunk in done}
        said = [ends, greedy.completions, scoring.scores, count, backend.name, meter.usage]
        return [*said, await backend.capabilities()]

    async def main() -> None:
        said = await talk(Recorded(path, ToyModel()))
        assert await talk(Recorded(path)) == said
        with pytest.raises(StoreError, match="no answer to this request"):
            await Recorded(path).generate(replace(REQUEST, seed=1234))
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], lines[1][:-5], *lines[2:]]))
        with pytest.raises(DataError, match="Line 2 of the recording"):
            Recorded(path)
        with pytest.raises(DataError, match="cannot be read"):
            Recorded(tmp_path / "nowhere.jsonl")

    run(main)


PROGRAM = """
import asyncio, sys
from stratagem.backends.journaled import Journaled
from stratagem.backends.openai import OpenAIBackend
from stratagem.core.backend import Message, Request

async def one(backend, i):
    request = Request((Message("user", f"question {i % 3}"),), n=1 + i % 3, seed=1000 * i)
    generation = await backend.generate(request)
    print("done", request.seed, request.n, *(c.token_count for c in generation.completions), flush=True)

async def main(url, path):
    backend = Journaled(OpenAIBackend(url, permits=6), path, "run")
    await asyncio.gather(*(one(backend, i) for i in range(36)))
    await backend.aclose()

asyncio.run(main(*sys.argv[1:]))
"""


def test_killed_and_resumed_it_pays_for_no_finished_call_twice(tmp_path: Path) -> None:
    """kill -9 after a random number of finished calls, over and over, until the run gets to its end."""
    asked: list[int] = []

    def watch(request: SimRequest) -> None:
        assert request.seed is not None
        asked.extend(request.seed + i for i in range(request.n))

    rng = random.Random(5)
    path = tmp_path / "journal.sqlite"

    async def life(url: str, most: int) -> tuple[list[list[int]], int]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, url, str(path), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        lines: list[list[int]] = []
        async for line in process.stdout:
            lines.append([int(word) for word in line.split()[1:]])
            if len(lines) >= most:
                process.send_signal(signal.SIGKILL)
                break
        rest = (await process.stdout.read()).decode().splitlines()
        lines += [[int(word) for word in line.split()[1:]] for line in rest]
        return lines, await process.wait()

    async def main() -> None:
        settings = SimSettings(per_token=0.001, mean_tokens=20)
        async with SimulatedServer(settings, faults=watch) as server:
            finished: dict[int, list[int]] = {}
            for most in (rng.randint(3, 9), rng.randint(10, 18), rng.randint(19, 30), 10_000):
                before = len(asked)
                lines, code = await life(server.url, most)
                paid_again = set(asked[before:]) & {
                    seed + i for seed, line in finished.items() for i in range(line[1])
                }
                assert paid_again == set()
                for line in lines:
                    assert finished.setdefault(line[0], line) == line
            assert sorted(finished) == [1000 * i for i in range(36)]
            assert code == 0
            assert len(Counter(asked)) == sum(1 + i % 3 for i in range(36))
            # Everything is in the journal now: another life asks for nothing.
            before = len(asked)
            await life(server.url, 10_000)
            assert len(asked) == before

    run(main)


def test_usage_survives_the_store(tmp_path: Path) -> None:
    """What the rows say sums up to what was spent, whatever was replayed in between."""

    async def main() -> None:
        toy = ToyModel()
        for n in (1, 3, 5, 8):
            backend = Journaled(toy, tmp_path / "j.sqlite", "run")
            await backend.generate(replace(REQUEST, n=n))
            await backend.aclose()
        final = Journaled(ToyModel(), tmp_path / "j.sqlite", "run")
        generation = await final.generate(replace(REQUEST, n=8))
        assert generation.replayed
        assert generation.usage == toy.books.usage != Usage()
        await final.aclose()

    run(main)


def test_a_recording_is_lines_of_json(tmp_path: Path) -> None:
    async def main() -> None:
        await Recorded(tmp_path / "r.jsonl", ToyModel()).generate(REQUEST.sibling(0))

    run(main)
    [line] = (tmp_path / "r.jsonl").read_text().splitlines()[-1:]
    assert set(json.loads(line)) == {"key", "value"}
