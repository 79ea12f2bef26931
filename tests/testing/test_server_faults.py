"""The simulated server's faults and its books about them, seen by the real openai client and raw sockets."""

import asyncio
import json

import openai
import pytest
from openai import AsyncOpenAI

from server_kit import QUESTION, ask, client_of, serve, settled, stream_of
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
    tokenize,
)

STRUCK = {
    "429": openai.RateLimitError,
    "500": openai.InternalServerError,
    "500-late": openai.InternalServerError,
    "503": openai.InternalServerError,
    "drop": openai.APIConnectionError,
    "drop-mid": openai.APIConnectionError,
    "drop-late": openai.APIConnectionError,
    "malformed": json.JSONDecodeError,
    "malformed-mid": json.JSONDecodeError,
    "hang": openai.APITimeoutError,
    "hang-mid": openai.APITimeoutError,
}


@pytest.mark.parametrize("name", STRUCK)
def test_every_fault_of_a_plain_request(name: str) -> None:
    fault = NAMED_FAULTS[name]

    async def check(server: SimulatedServer, client: AsyncOpenAI) -> None:
        with pytest.raises(STRUCK[name]):
            await ask(client, seed=1, timeout=0.3 if fault.kind == "hang" else 20)
        await settled(server)
        record = server.records[0]
        assert record.fault == fault
        assert record.outcome == ("aborted" if fault.kind == "hang" else "failed")
        assert record.billed == (fault.after != 0)
        if fault.after is not None:
            assert record.decoded == fault.after
        assert record.delivered == 0
        assert (await ask(client)).choices  # the server is whole

    serve(check, faults=lambda request: fault if request.number == 0 else None)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("500-late", openai.APIError),
        ("drop-mid", Exception),
        ("malformed-mid", json.JSONDecodeError),
        ("hang-mid", Exception),
    ],
)
def test_faults_in_mid_stream(name: str, error: type[Exception]) -> None:
    async def check(server: SimulatedServer, client: AsyncOpenAI) -> None:
        seen = ""

        async def read() -> None:
            nonlocal seen
            async with await stream_of(client, timeout=0.3 if name == "hang-mid" else 20) as stream:
                async for chunk in stream:
                    seen += chunk.choices[0].delta.content or ""

        with pytest.raises(error):
            await read()
        await settled(server)
        record = server.records[0]
        assert (len(tokenize(seen)), record.decoded, record.delivered) == (3, 3, 3)

    serve(check, faults=lambda request: NAMED_FAULTS[name])


def test_retry_after_in_both_forms() -> None:
    def faults(request: SimRequest) -> Fault:
        return Fault("status", status=429, retry_after=2, retry_after_date=request.number == 1)

    async def check(server: SimulatedServer, client: AsyncOpenAI) -> None:
        headers = []
        for _ in range(2):
            with pytest.raises(openai.RateLimitError) as limited:
                await ask(client)
            headers.append(limited.value.response.headers["retry-after"])
        assert headers[0] == "2"
        assert headers[1].endswith("GMT")

    serve(check, faults=faults)


def test_a_slow_first_token_and_a_wrong_content_type() -> None:
    faults = {0: Fault("slow", delay=0.2), 1: NAMED_FAULTS["content-type"]}

    async def check(server: SimulatedServer, client: AsyncOpenAI) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        await ask(client)
        assert loop.time() - start >= 0.19
        raw = await client.chat.completions.with_raw_response.create(model="sim", messages=QUESTION)  # type: ignore[arg-type]
        assert raw.headers["content-type"] == "text/html"

    serve(check, faults=lambda request: faults[request.number])


def test_the_schedule_is_a_function_of_seed_and_number() -> None:
    def request(number: int) -> SimRequest:
        return SimRequest(number=number, id="", endpoint="chat", prompt="", prompt_tokens=(), max_tokens=1)

    schedule = FaultSchedule(3, {"429": 0.3, "drop": 0.2})
    drawn = [schedule(request(i)) for i in range(2000)]
    assert drawn == [FaultSchedule(3, {"429": 0.3, "drop": 0.2})(request(i)) for i in range(2000)]
    assert 500 < drawn.count(NAMED_FAULTS["429"]) < 700
    assert 320 < drawn.count(NAMED_FAULTS["drop"]) < 480
    with pytest.raises(ValueError, match="fault rates"):
        FaultSchedule(0, {"no-such": 0.1})


def test_connections_are_kept_alive_and_counted() -> None:
    async def check(server: SimulatedServer, client: AsyncOpenAI) -> None:
        for _ in range(5):
            await ask(client)
        assert server.totals().connections_opened == 1
        await asyncio.gather(*(ask(client) for _ in range(6)))
        totals = server.totals()
        assert totals.connections_opened == totals.peak_connections <= 6

    serve(check, SimSettings(first_token=0.02))


def test_a_broken_responder_is_the_test_s_own_error() -> None:
    def broken(request: SimRequest) -> list[SimCompletion]:
        raise KeyError("mine")

    async def check(server: SimulatedServer, client: AsyncOpenAI) -> None:
        with pytest.raises(openai.APIConnectionError):
            await ask(client)

    with pytest.raises(KeyError, match="mine"):
        serve(check, responder=broken)


def test_garbage_on_the_wire_ends_the_connection_only() -> None:
    async def check(server: SimulatedServer, client: AsyncOpenAI) -> None:
        port = int(server.url.split(":")[2].partition("/")[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x00\x01 garbage\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        assert (await ask(client)).choices

    serve(check)


def test_lengths_follow_the_settings() -> None:
    request = SimRequest(
        number=0, id="", endpoint="chat", prompt="q", prompt_tokens=("q",), n=400, seed=1, max_tokens=9
    )
    lengths = [len(tokenize(c.text)) for c in ToyResponder(60, 0.8)(request)]
    assert 50 < sum(lengths) / 400 < 70
    assert max(lengths) > 3 * min(lengths)
    assert {len(tokenize(c.text)) for c in ToyResponder(60, 0)(request)} == {60}


def test_a_process_of_its_own_keeps_books_and_can_be_killed() -> None:
    async def main() -> None:
        async with (
            SimulatedProcess(SimSettings(per_token=0.001, mean_tokens=20, faults={"500": 0.5})) as process,
            client_of(process.url) as client,
        ):
            results = await asyncio.gather(*(ask(client) for _ in range(20)), return_exceptions=True)
            totals = await process.totals()
            failed = sum(isinstance(result, openai.InternalServerError) for result in results)
            assert (totals.failed, totals.finished) == (failed, 20 - failed)
            assert 0 < failed < 20
            assert len(await process.records()) == 20
            await process.kill()
            with pytest.raises(openai.APIConnectionError):
                await ask(client)

    asyncio.run(main())
