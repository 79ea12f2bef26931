"""The embedded engine through core's protocol."""

import asyncio
import gc
import random
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from stratagem.backends.embedded.backend import MINI, EmbeddedBackend
from stratagem.backends.embedded.engine import Engine
from stratagem.core.asking import Sampling
from stratagem.core.backend import Backend, Constraint, Message, Request, ScoreRequest, Stream
from stratagem.core.budget import Budget, Ledger
from stratagem.core.errors import (
    BackendError,
    BudgetExhausted,
    ConfigurationError,
    ContextLengthError,
    RejectedError,
    UnavailableError,
    UnsupportedError,
)
from stratagem.core.run import Run
from stratagem.core.task import Task
from stratagem.core.usage import Meter, Usage
from stratagem.testing import laws

ASK = (Message("user", "Ben has 12 + 7 apples. How many?"),)


@asynccontextmanager
async def opened(folder: Path | None) -> AsyncIterator[EmbeddedBackend]:
    backend = EmbeddedBackend(folder)
    try:
        yield backend
    finally:
        await backend.aclose()


async def consume(stream: Stream) -> None:
    async for _ in stream:
        pass


def assert_idle(backend: EmbeddedBackend) -> None:
    stats = backend.stats()
    assert (stats.running, stats.waiting, stats.blocks_active) == (0, 0, 0)


def test_it_is_a_backend_that_can_do_everything(folder: Path) -> None:
    async def main() -> None:
        async with opened(folder) as backend:
            protocol: Backend = backend
            able = await protocol.capabilities()
            for able_to in ("n", "seed", "prompt_logprobs", "continue_final", "exact_count", "exact_abort"):
                assert getattr(able, able_to), able_to
            assert able.constraints == {"choice", "regex", "json", "grammar"}
            assert (able.context, able.logprobs) == (256, 320)

    asyncio.run(main())


def test_the_shipped_model_writes_text_and_its_end_is_a_token() -> None:
    async def main() -> None:
        async with opened(None) as backend:
            assert (await backend.capabilities()).model == "stratagem-mini"
            request = Request(ASK, n=4, max_tokens=60, temperature=0.7, seed=1, logprobs=1)
            for i, completion in enumerate((await backend.generate(request)).completions):
                assert completion.index == i
                assert completion.token_count == len(completion.tokens)
                assert (completion.tokens[-1].token == "") == (completion.finish == "stop")
                assert "".join(t.token for t in completion.tokens) == completion.text

    asyncio.run(main())


def test_a_request_for_n_equals_its_siblings_and_streams_the_same(folder: Path) -> None:
    async def main() -> None:
        async with opened(folder) as backend:
            request = Request(
                ASK, n=5, max_tokens=20, temperature=0.8, top_p=0.9, seed=11, stop=("e",), logprobs=2
            )
            whole = await backend.generate(request)
            siblings = [await backend.generate(request.sibling(i)) for i in range(5)]
            assert [c.text for c in whole.completions] == [g.completions[0].text for g in siblings]
            for deltas in (True, False):
                meter = Meter()
                pieces = [""] * 5
                counts = [0] * 5
                ended = {}
                async with backend.stream(request, meter, deltas=deltas) as stream:
                    async for chunk in stream:
                        pieces[chunk.index] += chunk.text
                        counts[chunk.index] += 1
                        if chunk.completion:
                            ended[chunk.index] = chunk.completion
                texts = [c.text for c in whole.completions]
                assert [ended[i].text for i in range(5)] == texts == pieces
                assert [ended[i].token_count for i in range(5)] == [c.token_count for c in whole.completions]
                assert deltas or counts == [1] * 5
                assert meter.usage == stream.usage
                assert meter.usage.completion_tokens == whole.usage.completion_tokens
            assert_idle(backend)

    asyncio.run(main())


def test_the_prompt_is_counted_exactly(folder: Path) -> None:
    async def main() -> None:
        async with opened(folder) as backend:
            for messages in (ASK, (*ASK, Message("assistant", "Ben has")), (Message("system", "é 🙂"), *ASK)):
                meter = Meter()
                generation = await backend.generate(Request(messages, n=3, max_tokens=2, seed=0), meter)
                assert generation.usage.prompt_tokens == await backend.count_tokens(messages)
                assert generation.usage == meter.usage
                assert generation.usage.completion_tokens == sum(
                    c.token_count for c in generation.completions
                )
                assert generation.usage.calls == 1

    asyncio.run(main())


def test_usage_equals_the_engines_books_over_random_cancellations(folder: Path) -> None:
    """Whatever is cancelled at whatever moment: the sum of what was reported is what was worked off."""

    async def main() -> None:
        rng = random.Random(5)
        meter = Meter()
        async with opened(folder) as backend:
            await backend.capabilities()

            async def generate(i: int) -> None:
                await backend.generate(Request(ASK, n=rng.randint(1, 3), max_tokens=60, seed=i), meter)

            async def stream(i: int) -> None:
                async with backend.stream(Request(ASK, n=2, max_tokens=60, seed=i), meter) as s:
                    most = rng.randint(0, 40)
                    async for _ in s:
                        most -= 1
                        if most <= 0:
                            break

            async def score(_: int) -> None:
                await backend.score(ScoreRequest(ASK, ("yes", "no apples at all", "")), meter)

            async def cancelled(i: int) -> None:
                task = asyncio.create_task(rng.choice([generate, stream, score])(i))
                await asyncio.sleep(rng.choice([0, rng.random() * 0.05]))
                if rng.random() < 0.7:
                    task.cancel()
                await asyncio.wait([task])

            for start in range(0, 120, 20):
                async with asyncio.TaskGroup() as group:
                    for i in range(start, start + 20):
                        group.create_task(cancelled(i))
                assert_idle(backend)
                stats = backend.stats()
                assert meter.usage.completion_tokens == stats.decoded_tokens
                assert meter.usage.cached_tokens == stats.cached_tokens
                assert meter.usage.prompt_tokens == stats.prefilled_tokens + stats.cached_tokens
            assert backend.stats().aborted > 10

    asyncio.run(main())


def test_cancelling_the_awaiting_task_stops_the_engine(folder: Path) -> None:
    async def main() -> None:
        async with opened(folder) as backend:
            meter = Meter()
            request = Request(ASK, n=8, max_tokens=220, constraint=Constraint("regex", "[a-z]{240}"))
            task = asyncio.create_task(backend.generate(request, meter))
            async with backend.stream(Request(ASK, max_tokens=200, constraint=request.constraint)) as stream:
                async for _ in stream:
                    if stream.usage.completion_tokens > 5:
                        break
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert backend.stats().running == 1
            assert_idle(backend)
            assert 0 < meter.usage.completion_tokens < 8 * 220
            assert (
                backend.stats().decoded_tokens
                == meter.usage.completion_tokens + stream.usage.completion_tokens
            )

    asyncio.run(main())


def test_backends_share_one_engine_across_loops_and_let_it_go(folder: Path) -> None:
    first, second = EmbeddedBackend(folder), EmbeddedBackend(str(folder))

    async def main(seed: int, *backends: EmbeddedBackend) -> str:
        texts = [
            (await b.generate(Request(ASK, max_tokens=9, seed=seed))).completions[0].text for b in backends
        ]
        assert texts[0] == texts[1]
        return texts[0]

    assert asyncio.run(main(1, first, second)) == asyncio.run(main(1, second, first))
    assert first.stats() == second.stats()
    assert first.stats().decoded_tokens > 0
    assert first.name == second.name
    asyncio.run(first.aclose())
    assert first.stats().decoded_tokens == 0
    assert second.stats().decoded_tokens > 0
    assert asyncio.run(main(2, first, second))  # a closed backend opens again
    asyncio.run(first.aclose())
    del second
    gc.collect()
    third = EmbeddedBackend(folder)
    asyncio.run(third.capabilities())
    assert third.stats().decoded_tokens == 0  # a new engine: the last user had gone
    asyncio.run(third.aclose())


def test_a_load_that_is_cancelled_leaves_no_engine_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = threading.Event(), threading.Event()
    build = Engine.__init__

    def slow(*arguments: Any) -> None:
        reading.set()
        assert go_on.wait(60)
        build(*arguments)

    monkeypatch.setattr(Engine, "__init__", slow)

    def engines() -> set[threading.Thread]:
        return {t for t in threading.enumerate() if t.name == "stratagem-engine"}

    async def main() -> None:
        before = engines()  # those of other tests, until their garbage is collected
        backend = EmbeddedBackend(folder)
        task = asyncio.create_task(backend.capabilities())
        await asyncio.to_thread(reading.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        asyncio.get_running_loop().call_later(0.01, go_on.set)
        await backend.aclose()
        assert engines() <= before

    asyncio.run(main())


def test_closing_ends_the_requests_under_way_with_an_error_and_their_cost(folder: Path) -> None:
    async def main() -> None:
        backend, meter = EmbeddedBackend(folder), Meter()
        request = Request(ASK, n=4, max_tokens=200, constraint=Constraint("regex", "[a-z]{240}"))

        async with backend.stream(request, meter) as stream:
            assert (await anext(aiter(stream))).index == 0
            await backend.aclose()
            with pytest.raises(UnavailableError, match="closed"):
                await consume(stream)
        assert meter.usage == stream.usage
        assert meter.usage.completion_tokens > 0

    asyncio.run(main())


def test_an_engine_failure_is_a_backend_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with opened(folder) as backend:
            await backend.capabilities()

            def broken(*_: object) -> object:
                raise MemoryError("no room")

            with monkeypatch.context() as patch:
                patch.setattr("stratagem.backends.embedded.forward.Model.forward", broken)
                with pytest.raises(BackendError, match="no room"):
                    await backend.generate(Request(ASK))
                async with backend.stream(Request(ASK)) as stream:
                    with pytest.raises(BackendError, match="no room"):
                        await consume(stream)
            assert (await backend.generate(Request(ASK, max_tokens=1))).completions

    asyncio.run(main())


def test_a_constraint_beyond_the_parser_is_unsupported(folder: Path) -> None:
    async def main() -> None:
        async with opened(folder) as backend:
            request = Request(ASK, n=2, constraint=Constraint("regex", "(a{1000}){1000}"))
            with pytest.raises(UnsupportedError, match=r"cannot be followed: [^\n]*\. Give a simpler one\.$"):
                await backend.generate(request)
            with pytest.raises(UnsupportedError):
                async with backend.stream(request) as stream:
                    [_ async for _ in stream]
            assert_idle(backend)

    asyncio.run(main())


def test_siblings_are_one_call_of_the_budget(folder: Path) -> None:
    async def main() -> None:
        async with opened(folder) as backend:
            run = Run({"policy": backend}, ledger=Ledger(Budget(calls=2)))
            drawn = await run.sample(Task.of("How many?"), 16, sampling=Sampling(max_tokens=4))
            assert len(drawn) == 16
            scored = await run.score("How many?", ["one", "two", "three"])
            assert len(scored.scores) == 3
            assert run.ledger.spent.calls == 2
            with pytest.raises(BudgetExhausted):
                await run.sample("And now?", sampling=Sampling(max_tokens=4))

    asyncio.run(main())


def test_bad_requests_are_refused_by_type(folder: Path) -> None:
    async def main() -> None:
        async with opened(folder) as backend:
            long = (Message("user", "apples " * 400),)
            for bad, error in (
                (Request(long), ContextLengthError),
                (Request(ASK, n=0), RejectedError),
                (Request(ASK, max_tokens=0), RejectedError),
                (Request(ASK, temperature=-1.0), RejectedError),
                (Request(ASK, logprobs=9999), UnsupportedError),
                (Request(ASK, constraint=Constraint("regex", "([")), UnsupportedError),
                (Request(ASK, constraint=Constraint("choice", "not json")), RejectedError),
                (Request((Message("tool", "x"),)), UnsupportedError),
                (Request((Message("user", "\ud800"),)), RejectedError),
            ):
                meter = Meter()
                with pytest.raises(error):
                    await backend.generate(bad, meter)
                with pytest.raises(error):
                    async with backend.stream(bad, meter):
                        pass
                assert meter.usage == Usage()
            with pytest.raises(ContextLengthError):
                await backend.score(ScoreRequest(long, ("yes",)))
            with pytest.raises(RejectedError, match="surrogate"):
                await backend.score(ScoreRequest(ASK, ("\ud800",)))
            with pytest.raises(RejectedError, match="surrogate"):
                await backend.count_tokens((Message("user", "\ud800"),))
            assert_idle(backend)

    asyncio.run(main())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named_at_once(name: str, make_model: Callable[..., Path]) -> None:
    folder = make_model("m")
    (folder / name).unlink()
    with pytest.raises(ConfigurationError, match=name):
        EmbeddedBackend(folder)


def test_it_keeps_the_laws_of_backends(folder: Path) -> None:
    def idle(backend: Backend) -> bool:
        assert isinstance(backend, EmbeddedBackend)
        stats = backend.stats()
        return (stats.running, stats.waiting, stats.blocks_active) == (0, 0, 0)

    def usage(backend: Backend) -> Usage:
        assert isinstance(backend, EmbeddedBackend)
        stats = backend.stats()
        prompt = stats.prefilled_tokens + stats.cached_tokens
        return Usage(prompt, stats.decoded_tokens, stats.cached_tokens, calls=stats.ended)

    laws.backend(lambda: EmbeddedBackend(folder), idle=idle, usage=usage, cases=25)


def test_the_shipped_model_is_where_the_package_looks() -> None:
    assert EmbeddedBackend().folder == MINI.resolve()
