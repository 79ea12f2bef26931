"""The OpenAI-compatible backend under faults, cancellation and late answers: nothing lost, all paid for."""

import asyncio
import random
from typing import Any

import pytest

from openai_kit import ASKED, assert_covers, connected, quick, run, server_usage, settled, texts_of
from stratagem.backends import openai as module
from stratagem.backends._openai import endpoint
from stratagem.backends._openai.failure import Malformed
from stratagem.backends._openai.wire import read_usage
from stratagem.backends.openai import OpenAIBackend
from stratagem.core.backend import Request, ScoreRequest
from stratagem.core.errors import (
    BackendError,
    BackendTimeoutError,
    BudgetExhausted,
    ProtocolError,
    RateLimitedError,
    StratagemError,
    UnavailableError,
)
from stratagem.core.trace import Retried, Trace, tracing
from stratagem.core.usage import Meter, Usage
from stratagem.testing.server import (
    NAMED_FAULTS,
    Fault,
    FaultSchedule,
    SimCompletion,
    SimRequest,
    SimSettings,
)


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    """A later server may get the port of an earlier one."""
    module.forget()


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -1, "completion_tokens": 2},
        {"prompt_tokens": 1, "completion_tokens": "2"},
        {"prompt_tokens": 1.5, "completion_tokens": 2},
        {"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": -1}},
    ],
)
def test_a_usage_that_cannot_be_is_malformed(usage: dict[str, Any]) -> None:
    with pytest.raises(Malformed, match="tokens is"):
        read_usage(usage)


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


def test_a_silent_server_is_told_after_two_attempts() -> None:
    async def main() -> None:
        heard = 0

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal heard
            heard += 1
            await reader.read()
            writer.close()

        async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            backend = OpenAIBackend(f"http://127.0.0.1:{port}/v1", timeout=0.2)
            with pytest.raises(BackendTimeoutError, match="OpenAI-compatible server listens there"):
                await backend.capabilities()
            await backend.aclose()
        assert heard == 2

    run(main)


@pytest.mark.parametrize(
    ("chunk", "begun"),
    [
        ({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}, False),
        ({"choices": [{"index": 0, "delta": {"content": "a"}}]}, True),
        ({"choices": [{"index": 0, "delta": {"reasoning_content": "Let me"}}]}, True),
        ({"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 3}}, True),
        ({"choices": [{"index": 0, "delta": {}}], "usage": {"completion_tokens": 0}}, False),
    ],
)
def test_thinking_counts_as_begun(chunk: dict[str, Any], begun: bool) -> None:
    assert endpoint._has_token(chunk) is begun
