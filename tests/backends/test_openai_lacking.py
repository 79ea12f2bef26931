"""The OpenAI backend on servers that lack something: it is found out once, and made up for or refused."""

import asyncio
import json

import pytest

from openai_kit import ASKED, assert_covers, connected, quick, run, server_usage, settled, texts_of
from stratagem.backends import openai as module
from stratagem.backends.openai import OpenAIBackend
from stratagem.core.backend import Constraint, Message, Request, ScoreRequest
from stratagem.core.errors import RejectedError, UnsupportedError
from stratagem.core.usage import Meter
from stratagem.testing.server import SimSettings


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    """A later server may get the port of an earlier one."""
    module.forget()


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
            with pytest.raises(UnsupportedError, match="no logits processors"):
                await backend.generate(Request(ASKED, processors="{}"))
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


@pytest.mark.parametrize("streaming", [False, True])
def test_a_server_that_leaves_log_probabilities_out_is_found_out_once(streaming: bool) -> None:
    """One request is paid for; it is not sent again, and no further one is."""

    async def ask(backend: OpenAIBackend, request: Request, meter: Meter) -> None:
        if not streaming:
            await backend.generate(request, meter)
            return
        async with backend.stream(request, meter) as stream:
            async for _ in stream:
                pass

    async def main() -> None:
        async with connected(SimSettings(ignores_logprobs=True)) as (server, backend):
            meter = Meter()
            for _ in range(3):
                with pytest.raises(UnsupportedError, match="log-probabilities"):
                    await ask(backend, Request(ASKED, seed=1, logprobs=0), meter)
            assert server.totals().billed == 1
            assert meter.usage.calls == 1
            assert (await backend.capabilities()).logprobs < 0
            assert len(await texts_of(backend, Request(ASKED, seed=1))) == 1

    run(main)


def test_greedy_siblings_are_asked_for_one_by_one() -> None:
    async def main() -> None:
        async with connected() as (_, backend):
            assert len(set(await texts_of(backend, Request(ASKED, n=3, temperature=0.0)))) == 1

    run(main)


def test_a_reward_model_is_asked_for_no_text() -> None:
    async def main() -> None:
        async with connected(SimSettings(reward=True)) as (_, backend):
            with pytest.raises(RejectedError, match=r"does not complete chats.*PoolingBackend"):
                await backend.generate(Request(ASKED))

    run(main)


@pytest.mark.parametrize(
    ("deltas", "text"),
    [
        (("a\ud83d", "\ude00b"), "a\U0001f600b"),
        (("\ud83d", "\ud83d", "\ude00"), "\ufffd\U0001f600"),
        (("a", "\ude00\ud83d", "b"), "a\ufffd\ufffdb"),
        (("a", "\ud83d"), "a\ufffd"),
    ],
)
def test_a_server_that_tears_characters(
    deltas: tuple[str, ...], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pieces add up to the text, also where the first stream breaks off after its first delta."""
    quick(monkeypatch)
    asked = 0

    def told(request: bytes) -> bytes:
        nonlocal asked
        if b"/models" in request:
            return b'\r\n{"data": [{"id": "m"}]}'
        if b"/chat/completions" not in request:
            return b"\r\n{}"
        asked += 1
        chunks = [{"choices": [{"index": 0, "delta": {"content": each}}]} for each in deltas]
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": len(deltas)}}
        events = [*map(json.dumps, (*chunks, end, usage)), "[DONE]"]
        body = "".join(f"data: {each}\n\n" for each in (events[:1] if asked == 1 else events))
        return b"Content-Type: text/event-stream\r\n\r\n" + body.encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"content-length: " in head.lower():
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + told(head))
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            backend = OpenAIBackend(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
            async with backend.stream(Request(ASKED)) as stream:
                chunks = [chunk async for chunk in stream]
            await backend.aclose()
        assert "".join(chunk.text for chunk in chunks) == text
        completion = chunks[-1].completion
        assert completion is not None
        assert completion.text == text
        assert asked == 2

    run(main)
