"""The OpenAI-compatible backend against the simulated server."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest

from stratagem.backends import openai as module
from stratagem.backends.openai import OpenAIBackend
from stratagem.core.backend import Backend, Chunk, Constraint, Message, Request, ScoreRequest
from stratagem.core.errors import (
    BackendError,
    BackendTimeoutError,
    BudgetExhausted,
    ConfigurationError,
    ContextLengthError,
    ProtocolError,
    RateLimitedError,
    RejectedError,
    StratagemError,
    UnavailableError,
    UnsupportedError,
)
from stratagem.core.trace import Retried, Trace, tracing
from stratagem.core.usage import Meter, Prices, Usage
from stratagem.testing import laws
from stratagem.testing.server import (
    NAMED_FAULTS,
    Fault,
    FaultSchedule,
    SimCompletion,
    SimRequest,
    SimSettings,
    SimulatedProcess,
    SimulatedServer,
    ToyResponder,
)

ASKED = (Message("user", "How many apples are there?"),)


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    """A later server may get the port of an earlier one."""
    module.forget()


@asynccontextmanager
async def connected(
    settings: SimSettings | None = None,
    *,
    faults: Callable[[SimRequest], Fault | None] | None = None,
    responder: Callable[[SimRequest], list[SimCompletion]] | None = None,
    **options: Any,
) -> AsyncIterator[tuple[SimulatedServer, OpenAIBackend]]:
    async with SimulatedServer(settings, faults=faults, responder=responder) as server:
        backend = OpenAIBackend(server.url, jitter_seed=0, **options)
        try:
            yield server, backend
        finally:
            await backend.aclose()


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(300):
            await main()

    asyncio.run(limited())


async def settled(server: SimulatedServer) -> None:
    async with asyncio.timeout(20):
        await server.until(lambda totals: totals.in_flight == 0)


async def texts_of(backend: Backend, request: Request) -> list[str]:
    return [completion.text for completion in (await backend.generate(request)).completions]


def assert_covers(usage: Usage, server: SimulatedServer) -> None:
    """The server's own count lies within what was reported."""
    totals = server.totals()
    billed = totals.prompt_tokens + totals.decoded
    assert usage.tokens <= billed <= usage.tokens + usage.uncertain_tokens
    assert totals.billed <= usage.calls


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delays between attempts of a hundredth of the usual."""
    monkeypatch.setattr("stratagem.backends._openai.sender._FIRST_DELAY", 0.005)


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


RETRIED = {
    "429": False,
    "503": False,
    "500": True,
    "500-late": True,
    "drop": True,
    "drop-mid": True,
    "drop-late": True,
    "malformed": True,
    "malformed-mid": True,
    "content-type": True,
    "hang": True,
    "hang-mid": True,
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", RETRIED)
def test_every_fault_is_survived_and_paid(
    name: str, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)

    def faults(request: SimRequest) -> Fault | None:
        return NAMED_FAULTS[name] if request.number in (1, 2) else None

    async def main() -> None:
        options: dict[str, Any] = {"timeout": 1.0} if name.startswith("hang") else {}
        async with connected(SimSettings(per_token=0.0005), faults=faults, **options) as (server, backend):
            request = Request(ASKED, n=2, seed=5, max_tokens=300)
            expected = await texts_of(backend, request)
            meter, trace = Meter(server_usage(server)), Trace()
            with tracing(trace):
                if streaming:
                    texts = ["", ""]
                    async with backend.stream(request, meter) as stream:
                        async for chunk in stream:
                            texts[chunk.index] += chunk.text
                else:
                    generation = await backend.generate(request, meter)
                    texts = [completion.text for completion in generation.completions]
            assert texts == expected
            await settled(server)
            assert_covers(meter.usage, server)
            assert meter.usage.uncertain_tokens <= (2 * (300 * 2 + 10) if RETRIED[name] else 0)
            events = trace.of(Retried)
            # Of a stream that breaks when all has been said nothing is missing.
            resent = 0 if streaming and name in ("drop-late", "malformed") else 2
            assert [event.maybe_billed for event in events] == [RETRIED[name]] * resent
            assert [event.attempt for event in events] == [1, 2][:resent]

    run(main)


def server_usage(server: SimulatedServer) -> Usage:
    """What the server has billed up to now, to start a meter from."""
    totals = server.totals()
    return Usage(totals.prompt_tokens, totals.decoded, calls=totals.billed)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("429", RateLimitedError),
        ("503", UnavailableError),
        ("500", BackendError),
        ("drop-late", UnavailableError),
        ("malformed", ProtocolError),
        ("content-type", ProtocolError),
        ("hang", BackendTimeoutError),
    ],
)
def test_when_retries_run_out_the_error_is_typed(
    name: str, error: type[StratagemError], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)

    async def main() -> None:
        async with connected(faults=lambda _: NAMED_FAULTS[name], retries=2, timeout=0.5) as (
            server,
            backend,
        ):
            meter = Meter()
            with pytest.raises(error, match=r"127\.0\.0\.1") as raised:
                await backend.generate(Request(ASKED), meter)
            assert type(raised.value) is error
            assert len(server.records) == 3
            await settled(server)
            assert_covers(meter.usage, server)

    run(main)


def test_what_may_have_been_billed_is_resent_only_if_the_caller_affords_it() -> None:
    async def main() -> None:
        async with connected(faults=lambda _: NAMED_FAULTS["drop-late"]) as (server, backend):
            with pytest.raises(BudgetExhausted):
                await backend.generate(Request(ASKED), Meter(again=lambda: False))
            assert len(server.records) == 1

    run(main)


def test_a_stream_that_broke_resumes_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    answers = ["one two three four", "one two three four five", "something else"]

    def responder(request: SimRequest) -> list[SimCompletion]:
        return [SimCompletion(answers[request.number])]

    async def main() -> None:
        faults = {0: NAMED_FAULTS["drop-mid"]}
        async with (
            connected(
                SimSettings(per_token=0.001), faults=lambda r: faults.get(r.number), responder=responder
            ) as (_, backend),
            backend.stream(Request(ASKED, seed=1)) as stream,
        ):
            assert "".join([chunk.text async for chunk in stream]) == answers[1]

        del answers[1]
        async with (
            connected(
                SimSettings(per_token=0.001), faults=lambda r: faults.get(r.number), responder=responder
            ) as (_, backend),
            backend.stream(Request(ASKED)) as stream,
        ):
            with pytest.raises(BackendError, match="another text"):
                _ = [chunk.text async for chunk in stream]

    run(main)


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_holds_back_every_request(as_date: bool) -> None:
    wait = 2.0 if as_date else 0.4  # a date has whole seconds

    def faults(request: SimRequest) -> Fault | None:
        if request.number:
            return None
        return Fault("status", status=429, retry_after=wait, retry_after_date=as_date)

    async def main() -> None:
        async with connected(faults=faults) as (server, backend):
            await backend.capabilities()
            first = asyncio.create_task(backend.generate(Request(ASKED)))
            await server.until(lambda totals: totals.failed == 1)
            await asyncio.sleep(0.05)
            await backend.generate(Request(ASKED))
            await first
            limited, *others = server.records
            assert limited.ended_at is not None
            least = wait - 1.0 if as_date else wait
            assert all(record.received_at >= limited.ended_at + least for record in others)
            assert len(others) == 2

    run(main)


def test_a_server_that_asks_for_too_long_a_wait_is_given_up() -> None:
    async def main() -> None:
        fault = Fault("status", status=429, retry_after=3600)
        async with connected(faults=lambda _: fault, timeout=5) as (server, backend):
            with pytest.raises(RateLimitedError):
                await backend.generate(Request(ASKED))
            assert len(server.records) == 1

    run(main)


def test_a_slow_first_token_is_too_late_for_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)

    async def main() -> None:
        slow = Fault("slow", delay=5.0)
        async with connected(
            SimSettings(first_token=0.01, per_token=0.002, spread=0, mean_tokens=300),
            faults=lambda request: slow if request.number == 0 else None,
            first_token_timeout=0.4,
        ) as (server, backend):
            async with backend.stream(Request(ASKED, seed=1)) as stream:
                done = [chunk async for chunk in stream][-1].completion
            assert done is not None
            assert done.token_count == 301  # which took longer than the limit for the first
            await settled(server)
            assert [record.outcome for record in server.records] == ["aborted", "finished"]

    run(main)


def test_cancelled_anywhere_it_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """240 calls, each cancelled at a random moment, some among faults."""
    quick(monkeypatch)
    rng = random.Random(7)

    async def call(backend: OpenAIBackend, kind: str, meter: Meter) -> None:
        request = Request(ASKED, n=rng.randint(1, 6), seed=rng.randrange(99), max_tokens=200)
        if kind == "generate":
            await backend.generate(request, meter)
        elif kind == "score":
            await backend.score(ScoreRequest(ASKED, ("yes", "no", "maybe so")), meter)
        else:
            async with backend.stream(request, meter, deltas=rng.random() < 0.5) as stream:
                async for chunk in stream:
                    if rng.random() < 0.01:
                        break
                    assert chunk.index < request.n

    async def main() -> None:
        schedule = FaultSchedule(3, {"429": 0.1, "drop-mid": 0.1, "500": 0.1})
        settings = SimSettings(per_token=0.0005, first_token=0.002, max_sequences=6)
        async with connected(settings, faults=schedule, permits=8) as (server, backend):
            await backend.capabilities()
            meters = []
            for _ in range(60):
                tasks = []
                for kind in ("generate", "score", "stream", "stream"):
                    meters.append(Meter())
                    tasks.append(asyncio.create_task(call(backend, kind, meters[-1])))
                for task in tasks:
                    await asyncio.sleep(rng.expovariate(1 / 0.004))
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await settled(server)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert_covers(sum((meter.usage for meter in meters), Usage()), server)
            assert server.totals().aborted > 20
            # All permits are back: eight sequences go out as one request.
            while (await backend.generate(Request(ASKED, n=8))).usage.calls > 1:
                pass
            await settled(server)
            finished = [r.n for r in server.records if r.outcome == "finished"]
            assert finished[-1] == 8
            assert server.totals().running_sequences == server.totals().waiting_sequences == 0

    run(main)


@pytest.mark.slow
def test_usage_is_exact_over_runs_with_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    rng = random.Random(1)

    async def one(backend: OpenAIBackend, meter: Meter) -> None:
        request = Request(ASKED, n=rng.randint(1, 4), seed=rng.randrange(50), max_tokens=120)
        try:
            match rng.randrange(3):
                case 0:
                    assert (await backend.generate(request, meter)).usage == meter.usage
                case 1:
                    await backend.score(ScoreRequest(ASKED, ("a", "b c")), meter)
                case _:
                    async with backend.stream(request, meter) as stream:
                        async for _ in stream:
                            pass
                    assert stream.usage == meter.usage
        except BackendError:
            pass  # retries ran out; what it cost is in the meter all the same

    async def main() -> None:
        rates = {name: 0.04 for name in RETRIED if not name.startswith("hang")}
        settings = SimSettings(mean_tokens=30)
        async with connected(settings, faults=FaultSchedule(5, rates), permits=16) as (server, backend):
            meters = [Meter() for _ in range(1000)]
            await asyncio.gather(*(one(backend, meter) for meter in meters))
            total = sum((meter.usage for meter in meters), Usage())
            assert_covers(total, server)
            assert server.totals().failed > 100
            # Without what broke the count is exact to the token.
            clean = [meter.usage for meter in meters if not meter.usage.uncertain_tokens]
            assert len(clean) > 50
            lost = [r for r in server.records if r.outcome == "failed"]
            slack = sum(r.prompt_tokens + r.decoded for r in lost)
            billed = server.totals().prompt_tokens + server.totals().decoded
            assert billed - slack <= total.tokens <= billed

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
    """Sequences of very different lengths at 4 permits: the steps sum up to the work, give or take the tail."""

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
            assert server.totals().other_requests == 3  # models, version, tokenize
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


@pytest.mark.parametrize("options", [{"permits": 0}, {"retries": -1}, {"rate": 0.0}, {"timeout": -1.0}])
def test_values_without_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        OpenAIBackend("http://127.0.0.1:1/v1", **options)


def test_a_key_in_the_address_is_not_in_the_name() -> None:
    assert "secret" not in OpenAIBackend("http://user:secret@127.0.0.1:1/v1", model="m").name


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


def test_a_plain_openai_server() -> None:
    """No /version: what only vLLM has is refused, and seeded siblings are asked for one by one."""

    async def main() -> None:
        async with connected(SimSettings(flavour="openai", per_token=0.0005)) as (server, backend):
            caps = await backend.capabilities()
            assert (set(caps.constraints), caps.exact_count, caps.context) == ({"json"}, False, None)
            for constraint in (Constraint.choice(["a"]), Constraint("regex", "a+")):
                with pytest.raises(UnsupportedError, match="json"):
                    await backend.generate(Request(ASKED, constraint=constraint))
            with pytest.raises(UnsupportedError):
                await backend.score(ScoreRequest(ASKED, ("a",)))
            with pytest.raises(UnsupportedError):
                await backend.generate(Request((*ASKED, Message("assistant", "The"))))
            bound = await backend.count_tokens(ASKED)
            seeded = await backend.generate(Request(ASKED, n=3, seed=2))
            assert [record.n for record in server.records] == [1, 1, 1]
            assert server.records[0].prompt_tokens <= bound
            async with backend.stream(Request(ASKED, n=3, seed=2)) as stream:
                done = {c.index: c.completion async for c in stream if c.completion is not None}
            assert tuple(done[i] for i in range(3)) == seeded.completions
            free = await backend.generate(Request(ASKED, n=3))
            assert server.records[-1].n == 3
            assert sum(c.token_count for c in free.completions) == server.records[-1].decoded
            assert stream.usage.completion_tokens == seeded.usage.completion_tokens
            before = server_usage(server)
            async with backend.stream(Request(ASKED, n=2, max_tokens=100)) as stream:
                async for _ in stream:
                    break
            await settled(server)
            assert_covers(before + stream.usage, server)

    run(main)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_server_that_ignores_n(streaming: bool) -> None:
    async def main() -> None:
        async with connected(SimSettings(ignores_n=True)) as (server, backend):
            request = Request(ASKED, n=4, seed=9)
            if streaming:
                async with backend.stream(request) as stream:
                    done = {c.index: c.completion async for c in stream if c.completion is not None}
                texts = [completion.text for _, completion in sorted(done.items()) if completion]
            else:
                texts = await texts_of(backend, request)
            assert texts == [(await texts_of(backend, request.sibling(i)))[0] for i in range(4)]
            assert server.totals().billed == 8

    run(main)


def test_greedy_siblings_are_asked_for_one_by_one() -> None:
    async def main() -> None:
        async with connected() as (_, backend):
            assert len(set(await texts_of(backend, Request(ASKED, n=3, temperature=0.0)))) == 1

    run(main)


def test_the_rate_is_kept() -> None:
    async def main() -> None:
        async with connected(rate=20.0) as (server, backend):
            await backend.capabilities()
            await asyncio.gather(*(backend.generate(Request(ASKED)) for _ in range(45)))
            times = sorted(record.received_at for record in server.records)
            # In no window of a second more than 20 requests (less what the way to the server may vary).
            assert all(times[i + 20] - times[i] > 0.8 for i in range(len(times) - 20))

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
