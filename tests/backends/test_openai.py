"""The OpenAI-compatible backend against the simulated server."""

import asyncio
import gc
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from openai_kit import ASKED, assert_covers, connected, quick, run, settled, texts_of
from stratagem.backends import openai as module
from stratagem.backends.openai import OpenAIBackend
from stratagem.core.backend import Backend, Chunk, Constraint, Message, Request, ScoreRequest
from stratagem.core.errors import (
    ConfigurationError,
    ContextLengthError,
    ProtocolError,
    RejectedError,
    UnavailableError,
    UnsupportedError,
)
from stratagem.core.usage import Meter, Prices, Usage
from stratagem.testing import laws
from stratagem.testing.server import (
    NAMED_FAULTS,
    SimCompletion,
    SimRequest,
    SimSettings,
    SimulatedProcess,
    SimulatedServer,
    ToyResponder,
)


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    """A later server may get the port of an earlier one."""
    module.forget()


def test_it_is_a_backend_and_tells_what_it_can() -> None:
    async def main() -> None:
        async with connected(prices=Prices(1, 2)) as (server, backend):
            assert isinstance(backend, Backend)
            caps = await backend.capabilities()
            assert (caps.model, caps.context, caps.prices) == ("sim", 8192, Prices(1, 2))
            assert caps.n
            assert caps.prompt_logprobs
            assert caps.exact_count
            assert caps.constraints == {"choice", "regex", "json", "grammar"}
            assert server.url in backend.name

    run(main)


@pytest.mark.parametrize("permits", [1, 3, 5, 32])
def test_texts_do_not_depend_on_the_permits(permits: int) -> None:
    async def main() -> None:
        async with connected(permits=permits) as (server, backend):
            request = Request(ASKED, n=7, seed=11)
            together = await backend.generate(request)
            assert [c.index for c in together.completions] == list(range(7))
            alone = [(await texts_of(backend, request.sibling(i)))[0] for i in range(7)]
            assert [c.text for c in together.completions] == alone
            assert together.usage.completion_tokens == sum(c.token_count for c in together.completions)
            assert max(record.n for record in server.records) == min(7, permits)

    run(main)


def test_a_stream_gives_what_generate_gives() -> None:
    async def main() -> None:
        async with connected(SimSettings(per_token=0.0005), permits=3) as (server, backend):
            request = Request(ASKED, n=5, seed=3, logprobs=2, stop=(" is",))
            whole = await backend.generate(request)
            for deltas in (True, False):
                before = server.totals()
                texts, tokens = [""] * 5, [0] * 5
                done = {}
                chunks: list[Chunk] = []
                async with backend.stream(request, deltas=deltas) as stream:
                    async for chunk in stream:
                        chunks.append(chunk)
                        texts[chunk.index] += chunk.text
                        tokens[chunk.index] += len(chunk.tokens)
                        if chunk.completion is not None:
                            done[chunk.index] = chunk.completion
                assert tuple(done[i] for i in range(5)) == whole.completions
                assert texts == [c.text for c in whole.completions]
                assert tokens == [len(c.tokens) for c in whole.completions]
                assert (len(chunks) == 5) is not deltas
                after = server.totals()
                spent = stream.usage
                assert spent.completion_tokens == after.decoded - before.decoded
                assert spent.prompt_tokens == after.prompt_tokens - before.prompt_tokens
                assert (spent.uncertain_tokens, spent.calls) == (0, after.billed - before.billed)

    run(main)


def test_pieces_that_nobody_reads_are_told_in_fewer_chunks() -> None:
    """What was decoded and not told is uncertain after an abort, as what is decoded before it is seen."""
    asked_for: list[Any] = []

    def responder(request: SimRequest) -> list[SimCompletion]:
        asked_for.append(request.body["stream_interval"])
        return [SimCompletion("a b c d " * 100)]

    async def main() -> None:
        settings = SimSettings(per_token=0.01)
        async with connected(settings, responder=responder, abort_slack=10) as (server, backend):
            for deltas in (True, False):
                async with backend.stream(Request(ASKED, max_tokens=90), deltas=deltas) as stream:
                    assert [c.completion async for c in stream][-1] is not None
            before = server.totals().decoded
            async with backend.stream(Request(ASKED, max_tokens=90), deltas=False) as stream:
                await server.until(lambda totals: totals.decoded > before + 12)
            await settled(server)
            spent = stream.usage
            decoded = server.totals().decoded - before
            assert spent.completion_tokens <= decoded <= spent.completion_tokens + spent.uncertain_tokens
            assert spent.uncertain_tokens <= 10 + 9
        assert asked_for == [1, 10, 10]

    run(main)


def test_connections_are_kept_and_no_more_than_the_permits() -> None:
    async def main() -> None:
        async with connected(SimSettings(first_token=0.005), permits=4) as (server, backend):
            await asyncio.gather(*(backend.generate(Request(ASKED, n=2)) for _ in range(30)))
            totals = server.totals()
            assert totals.peak_connections <= 4
            assert totals.connections_opened <= 4
            assert totals.peak_sequences == 4

    run(main)


def test_permits_are_never_idle_while_work_is_ready() -> None:
    """Sequences of very different lengths at 4 permits: the steps sum up to the work, give or take the tail.
    From 32 permits on some may wait, since they are handed on at least a sixteenth of all at a time."""

    def responder(request: SimRequest) -> list[SimCompletion]:
        assert request.seed is not None
        return [SimCompletion("word " * (90 if (request.seed + i) % 4 == 0 else 9)) for i in range(request.n)]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        step = 0.004
        async with connected(SimSettings(per_token=step), responder=responder, permits=4) as (
            server,
            backend,
        ):
            await backend.capabilities()
            start = loop.time()
            async with backend.stream(Request(ASKED, n=24, seed=0), deltas=False) as stream:
                arrived = [chunk.index async for chunk in stream]
            steps = (loop.time() - start) / step
            work = server.totals().decoded / 4
            assert sorted(arrived) == list(range(24))
            assert arrived != sorted(arrived)
            assert steps < 1.5 * (work + 91)
            assert server.totals().peak_sequences == 4

    run(main)


def test_siblings_share_requests_also_where_permits_come_back_one_by_one() -> None:
    """64 permits are handed on at least four at a time, but to who lacks fewer."""

    def responder(request: SimRequest) -> list[SimCompletion]:
        return [SimCompletion("word " * (5 + (request.seed or 0) % 97 + i)) for i in range(request.n)]

    async def main() -> None:
        async with connected(SimSettings(per_token=0.004), responder=responder, permits=64) as (
            server,
            backend,
        ):
            await backend.capabilities()
            before = server.totals()
            async with backend.stream(Request(ASKED, n=254, seed=0, max_tokens=400), deltas=False) as stream:
                assert len([chunk async for chunk in stream]) == 254
            after = server.totals()
            assert 1 < after.billed - before.billed <= 1 + (254 - 64) / 4 + 1
            assert after.peak_sequences == 64
            assert after.in_flight == 0

    run(main)


def test_first_come_first_served() -> None:
    async def main() -> None:
        async with connected(SimSettings(per_token=0.001, spread=0), permits=2) as (_, backend):
            await backend.capabilities()
            order: list[int] = []

            async def one(i: int) -> None:
                await backend.generate(Request(ASKED, n=3))
                order.append(i)

            await asyncio.gather(*(one(i) for i in range(6)))
            assert order == sorted(order)

    run(main)


def test_negotiation_happens_once_for_all() -> None:
    async def main() -> None:
        async with connected() as (server, backend):
            other = OpenAIBackend(server.url)
            caps = await asyncio.gather(*(b.capabilities() for b in (backend, other) * 8))
            assert len(set(map(id, caps))) >= 1
            assert all(c == caps[0] for c in caps)
            assert server.totals().other_requests == 4  # models, version, tokenize, metrics
            await other.aclose()

    run(main)


def test_bad_addresses_keys_and_models_are_named() -> None:
    async def main() -> None:
        async with connected(SimSettings(api_key="right", model="good")) as (server, backend):
            with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
                await backend.capabilities()
            missing = OpenAIBackend(server.url, model="bad", api_key="right")
            with pytest.raises(ConfigurationError, match=r"no model 'bad'\. There are: good"):
                await missing.generate(Request(ASKED))
            elsewhere = OpenAIBackend(server.url.removesuffix("/v1"), api_key="right")
            with pytest.raises(ProtocolError, match="no OpenAI-compatible server"):
                await elsewhere.capabilities()
            await missing.aclose()
            await elsewhere.aclose()
        with pytest.raises(UnavailableError, match=r"No server answers at http://127\.0\.0\.1"):
            await backend.capabilities()
        await backend.aclose()

    run(main)


def test_an_event_loop_that_ends_takes_its_connections_along() -> None:
    async def ask(backend: OpenAIBackend) -> None:
        await backend.generate(Request(ASKED))

    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def main() -> None:
        async with SimulatedServer() as server:
            backend = OpenAIBackend(server.url)

            def once() -> None:
                with asyncio.Runner() as runner:
                    loops.append(weakref.ref(runner.get_loop()))
                    runner.run(ask(backend))

            for _ in range(3):
                await asyncio.to_thread(once)
            gc.collect()  # warns of sockets that nobody has closed
            assert sum(loop() is not None for loop in loops) <= 1

    run(main)


@pytest.mark.parametrize("options", [{"permits": 0}, {"retries": -1}, {"rate": 0.0}, {"timeout": -1.0}])
def test_values_without_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        OpenAIBackend("http://127.0.0.1:1/v1", **options)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000/v1",
        "http:///v1",
        "http://[::1/v1",
        "http://localhost:99999/v1",
        "http://localhost:abc/v1",
        "http://me:s3cret/x@localhost/v1",
        "http://local\thost/v1",
    ],
)
def test_a_bad_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError, match="base URL") as caught:
        OpenAIBackend(url)
    assert "s3cret" not in f"{caught.value!r} {caught.value.__cause__}"


@pytest.mark.parametrize("key", ["käy-s3cret", "s3cret\nX-Other: 1", "s3cret\x7f"])
def test_a_key_that_cannot_be_sent_is_refused_at_once(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="API key") as caught:
        OpenAIBackend("http://127.0.0.1:1/v1", api_key=key)
    assert "s3cret" not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ConfigurationError, match="API key"):
        OpenAIBackend("http://127.0.0.1:1/v1")


def test_white_space_around_a_key_is_no_part_of_it() -> None:
    async def main() -> None:
        async with connected(SimSettings(api_key="right"), api_key=" right\n") as (_, backend):
            assert (await backend.capabilities()).model == "sim"

    run(main)


def test_a_secret_in_the_address_is_not_told() -> None:
    async def main() -> None:
        async with SimulatedServer() as server:
            secret = server.url.replace("http://", "http://user:s3cret@")
            for url, model in ((secret, "bad"), (secret.removesuffix("/v1"), None)):
                backend = OpenAIBackend(url, model)
                with pytest.raises((ConfigurationError, ProtocolError)) as caught:
                    await backend.capabilities()
                await backend.aclose()
                assert "s3cret" not in str(caught.value)
                assert "s3cret" not in backend.name
        assert "s3cret" not in OpenAIBackend("http://127.0.0.1:1/v1?api-key=s3cret").name

    run(main)


def test_scores_are_those_of_decoding() -> None:
    async def main() -> None:
        async with connected() as (server, backend):
            [drawn] = (await backend.generate(Request(ASKED, seed=4, logprobs=0))).completions
            scoring = await backend.score(ScoreRequest(ASKED, (drawn.text, "no", "")))
            assert [(t.token, t.logprob) for t in scoring.scores[0]] == [
                (t.token, t.logprob)
                for t in drawn.tokens[:-1]  # the last is the end token
            ]
            assert [t.token for t in scoring.scores[1]] == ["no"]
            assert scoring.scores[2] == ()
            assert scoring.usage.calls == 2
            begun = (*ASKED, Message("assistant", "The answer is"))
            [[token]] = (await backend.score(ScoreRequest(begun, (" yes",)))).scores
            assert token.token == " yes"
            assert_covers(scoring.usage + Usage(uncertain_tokens=9999, calls=9), server)

    run(main)


def test_scoring_without_the_server_s_tokenizer() -> None:
    async def main() -> None:
        async with connected(SimSettings(tokenize=False)) as (_, backend):
            assert not (await backend.capabilities()).exact_count
            scores = (await backend.score(ScoreRequest(ASKED, ("yes or no",)))).scores
            assert [t.token for t in scores[0]] == ["yes", " or", " no"]

    run(main)


def test_constraints_and_continuation() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}

    async def main() -> None:
        async with connected() as (server, backend):
            request = Request(ASKED, n=8, seed=0, constraint=Constraint.choice(["yes", "no"]), logprobs=5)
            generation = await backend.generate(request)
            assert {c.text for c in generation.completions} == {"yes", "no"}
            assert {token for token, _ in generation.completions[0].tokens[0].top} == {"yes", "no"}
            [text] = await texts_of(backend, Request(ASKED, constraint=Constraint.json_schema(schema)))
            assert text.startswith('{"a"')
            begun = (*ASKED, Message("assistant", "The answer"))
            await backend.generate(Request(begun))
            assert server.records[-1].prompt_tokens == await backend.count_tokens(begun)
            assert (await backend.generate(Request(ASKED, max_tokens=9000))).completions[0].finish == "stop"
            with pytest.raises(ContextLengthError, match="8192"):
                await backend.generate(Request((Message("user", "word " * 8200),)))
            with pytest.raises(RejectedError, match="surrogate"):
                await backend.generate(Request((Message("user", "\ud800"),)))
            with pytest.raises(UnsupportedError, match="at most 20"):
                await backend.generate(Request(ASKED, logprobs=50))

    run(main)


def test_the_rate_is_kept() -> None:
    """What is asked for comes at the server no earlier than 20 in any second allow. However busy the machine is,
    a request may come later than that and not earlier."""

    async def main() -> None:
        async with connected(rate=20.0) as (server, backend):
            await backend.capabilities()
            loop = asyncio.get_running_loop()
            earliest: list[float] = []

            async def ask(count: int) -> None:
                for _ in range(count):
                    # The k-th may go when it is asked for, and a second after the one 20 places before it.
                    earliest.append(max(loop.time(), earliest[-20] + 1.0 if len(earliest) >= 20 else 0.0))
                await asyncio.gather(*(backend.generate(Request(ASKED)) for _ in range(count)))

            async with asyncio.TaskGroup() as group:
                # Two bursts in one second: a limit on each second of a clock would let 30 through between them.
                group.create_task(ask(10))
                await asyncio.sleep(0.6)
                group.create_task(ask(35))
            times = sorted(record.received_at for record in server.records)
            assert len(times) == len(earliest) == 45
            assert all(time >= least for time, least in zip(times, earliest, strict=True))

    run(main)


def test_money_is_charged_at_the_upper_end() -> None:
    async def main() -> None:
        faults = {0: NAMED_FAULTS["drop-late"]}
        prices = Prices(prompt=1e6, completion=2e6)
        async with connected(faults=lambda r: faults.get(r.number), prices=prices, retries=0) as (_, backend):
            prompt = await backend.count_tokens(ASKED)
            meter = Meter()
            with pytest.raises(UnavailableError):
                await backend.generate(Request(ASKED, max_tokens=50), meter)
            assert meter.usage == Usage(uncertain_tokens=prompt + 50, calls=1, money=prompt + 100.0)
            usage = (await backend.generate(Request(ASKED))).usage
            assert usage.money == usage.prompt_tokens + 2 * usage.completion_tokens

    run(main)


def test_a_server_that_is_killed_is_one_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)

    async def main() -> None:
        async with SimulatedProcess(SimSettings(per_token=0.01)) as process:
            backend = OpenAIBackend(process.url, retries=1)
            await backend.capabilities()
            call = asyncio.create_task(backend.generate(Request(ASKED)))
            while not (await process.totals()).in_flight:
                pass
            await process.kill()
            with pytest.raises(UnavailableError):
                await call
            await backend.aclose()

    run(main)


def test_two_event_loops_may_use_it_in_turn() -> None:
    backend: list[OpenAIBackend] = []

    async def main() -> None:
        async with SimulatedServer(SimSettings(port=port)) as server:
            if not backend:
                backend.append(OpenAIBackend(server.url))
            assert (await backend[0].generate(Request(ASKED))).completions
            await backend[0].aclose()

    async def free_port() -> int:
        async with SimulatedServer() as server:
            return int(server.url.split(":")[2].partition("/")[0])

    port = asyncio.run(free_port())
    run(main)
    run(main)


def test_the_laws_of_backends() -> None:
    """All of them, against a server in another thread (the laws bring their own event loops)."""
    toy = ToyResponder(mean_tokens=16)

    def responder(request: SimRequest) -> list[SimCompletion]:
        if request.structured is not None and "regex" in request.structured:
            return [SimCompletion("42-a")] * request.n
        return toy(request)

    ready: Future[str] = Future()
    ended = threading.Event()

    async def serve() -> None:
        async with SimulatedServer(SimSettings(per_token=0.0002), responder=responder) as server:
            ready.set_result(server.url)
            await asyncio.to_thread(ended.wait)

    with ThreadPoolExecutor(1) as executor:
        serving = executor.submit(asyncio.run, serve())
        try:
            url = ready.result(timeout=60)
            laws.backend(lambda: OpenAIBackend(url, permits=6), cases=12)
        finally:
            ended.set()
            serving.result(timeout=60)
