"""The simulated server, driven by the real openai client."""

import asyncio
import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from server_kit import QUESTION, ask, client_of, serve, settled, stream_of, texts
from stratagem.testing.server import (
    SimCompletion,
    SimRequest,
    SimSettings,
    SimulatedServer,
    tokenize,
)


def test_pieces_are_lossless_and_each_has_a_byte() -> None:
    text = "<|user|>Ünïcode 日本語 x_1  =\t12.5\n\nantidisestablishmentarianism 🙂<|end|>"
    assert "".join(tokenize(text)) == text
    assert all(tokenize(text))
    assert tokenize("<|user|>12 cats") == ["<|user|>", "1", "2", " cats"]


def test_child_seeds_make_grouping_irrelevant() -> None:
    async def check(server: SimulatedServer, client: AsyncOpenAI) -> None:
        together = await ask(client, n=4, seed=7)
        alone = [await ask(client, seed=7 + i) for i in range(4)]
        assert texts(together) == [texts(answer)[0] for answer in alone]
        assert len(set(texts(together))) == 4
        assert together.usage is not None
        assert together.usage.completion_tokens == sum(a.usage.completion_tokens for a in alone if a.usage)

    serve(check)


def test_usage_equals_the_books_and_counts_the_end_token() -> None:
    async def check(server: SimulatedServer, client: AsyncOpenAI) -> None:
        answer = await ask(client, n=2, seed=1)
        assert answer.usage is not None
        record = server.records[0]
        assert record.decoded == answer.usage.completion_tokens
        assert record.decoded == sum(len(tokenize(text)) + 1 for text in texts(answer))
        assert record.prompt_tokens == answer.usage.prompt_tokens == len(tokenize(QUESTION[0]["content"])) + 3
        assert (record.outcome, record.delivered, record.billed) == ("finished", record.decoded, True)

    serve(check)


def test_max_tokens_and_stop_strings_end_the_decoding() -> None:
    def responder(request: SimRequest) -> list[SimCompletion]:
        return [SimCompletion("one two three four")] * request.n

    async def check(server: SimulatedServer, client: AsyncOpenAI) -> None:
        for limit, finish, count in [(3, "length", 3), (4, "length", 4), (5, "stop", 5)]:
            answer = await ask(client, max_tokens=limit)
            assert answer.usage is not None
            assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == (finish, count)
        stopped = await ask(client, stop=["r", "o t"])
        assert texts(stopped) == ["one tw"]
        assert stopped.usage is not None
        assert stopped.usage.completion_tokens == 3  # "o t" is complete with the third piece
        assert server.totals().decoded == 3 + 4 + 5 + 3

    serve(check, responder=responder)


@pytest.mark.parametrize("stop", [None, ["The answer", " is"]])
def test_a_stream_carries_the_same_answer(stop: list[str] | None) -> None:
    async def check(server: SimulatedServer, client: AsyncOpenAI) -> None:
        options: dict[str, Any] = {"n": 3, "seed": 5, "logprobs": True, "top_logprobs": 2}
        if stop:
            options["stop"] = stop
        whole = await ask(client, **options)
        usage_options = {"include_usage": True, "continuous_usage_stats": True}
        stream = await stream_of(client, stream_options=usage_options, **options)
        got, scores, counts = ["", "", ""], [0, 0, 0], [0, 0, 0]
        finishes: dict[int, str] = {}
        last = None
        async for chunk in stream:
            assert chunk.usage is not None
            last = chunk.usage
            for choice in chunk.choices:
                got[choice.index] += choice.delta.content or ""
                scores[choice.index] += len(choice.logprobs.content or []) if choice.logprobs else 0
                counts[choice.index] = chunk.usage.completion_tokens
                if choice.finish_reason:
                    finishes[choice.index] = choice.finish_reason
        assert got == texts(whole)
        assert last is not None
        assert whole.usage is not None
        assert last.total_tokens == whole.usage.total_tokens
        assert scores == counts == [len(c.logprobs.content or []) for c in whole.choices if c.logprobs]
        assert len(finishes) == 3

    serve(check, SimSettings(per_token=0.0005))


def test_leaving_a_stream_stops_decoding() -> None:
    def responder(request: SimRequest) -> list[SimCompletion]:
        return [SimCompletion("word " * 4000)] * request.n

    async def check(server: SimulatedServer, client: AsyncOpenAI) -> None:
        stream = await stream_of(client, n=2)
        async with stream:
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    break
        await settled(server)
        record = server.records[0]
        assert record.outcome == "aborted"
        assert 2 <= record.decoded < 2000
        assert record.delivered <= record.decoded
        assert server.totals().running_sequences == 0
        later = server.records[0].decoded
        await asyncio.sleep(0.02)
        assert server.records[0].decoded == later

    serve(check, SimSettings(per_token=0.002), responder)


def test_cancelling_a_plain_request_stops_decoding_and_frees_the_queue() -> None:
    def responder(request: SimRequest) -> list[SimCompletion]:
        return [SimCompletion("word " * (4000 if request.number == 0 else 3))]

    async def check(server: SimulatedServer, client: AsyncOpenAI) -> None:
        first = asyncio.create_task(ask(client))
        await server.until(lambda totals: totals.decoded > 0)
        second = asyncio.create_task(ask(client))
        third = asyncio.create_task(ask(client))
        await server.until(lambda totals: totals.waiting_sequences == 2)
        third.cancel()
        first.cancel()
        await second
        await asyncio.gather(first, third, return_exceptions=True)
        await settled(server)
        outcomes = [record.outcome for record in server.records]
        assert sorted(outcomes) == ["aborted", "aborted", "finished"]
        never_ran = [record for record in server.records if not record.billed]
        assert [(r.prompt_tokens, r.decoded, r.outcome) for r in never_ran] == [(0, 0, "aborted")]
        assert server.totals().peak_sequences == 1

    serve(check, SimSettings(per_token=0.002, max_sequences=1), responder)


def test_running_sequences_advance_together() -> None:
    """Sixteen answers of fifty tokens at once take as long as one, and not sixteen times that."""

    def responder(request: SimRequest) -> list[SimCompletion]:
        return [SimCompletion("word " * 49)] * request.n

    async def check(server: SimulatedServer, client: AsyncOpenAI) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        await asyncio.gather(*(ask(client, n=2) for _ in range(8)))
        assert 0.05 * 0.9 + 50 * 0.004 * 0.9 <= loop.time() - start < 8 * 50 * 0.004
        totals = server.totals()
        assert (totals.peak_sequences, totals.peak_requests, totals.in_flight) == (16, 8, 0)

    serve(check, SimSettings(per_token=0.004, first_token=0.05), responder)


def test_choice_constraint_answers_one_of_them_with_probabilities() -> None:
    async def check(server: SimulatedServer, client: AsyncOpenAI) -> None:
        answer = await ask(
            client,
            n=20,
            seed=0,
            logprobs=True,
            top_logprobs=5,
            extra_body={"structured_outputs": {"choice": ["yes", "no"]}},
        )
        assert set(texts(answer)) == {"yes", "no"}
        for choice in answer.choices:
            assert choice.logprobs is not None
            assert choice.logprobs.content is not None
            first = {top.token: top.logprob for top in choice.logprobs.content[0].top_logprobs}
            assert set(first) == {"yes", "no"}
            assert choice.logprobs.content[0].logprob == first[choice.message.content or ""]

    serve(check)


def test_json_schema_in_both_dialects() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}}

    async def check(server: SimulatedServer, client: AsyncOpenAI) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
        for options in ({"response_format": form}, {"extra_body": {"structured_outputs": {"json": schema}}}):
            value = json.loads(texts(await ask(client, seed=3, **options))[0])
            assert isinstance(value["a"], int)
            assert value["b"] in ("x", "y")
        with pytest.raises(openai.BadRequestError, match="responder"):
            await ask(client, extra_body={"structured_outputs": {"regex": "a+"}})

    serve(check)


def test_scoring_agrees_with_decoding() -> None:
    """The log-probabilities of a decoded text are those that its scoring as a continuation gives."""

    async def check(server: SimulatedServer, client: AsyncOpenAI) -> None:
        answer = await ask(client, seed=2, logprobs=True)
        assert answer.choices[0].logprobs is not None
        decoded = answer.choices[0].logprobs.content or []
        scored = await ask(
            client,
            messages=[*QUESTION, {"role": "assistant", "content": texts(answer)[0]}],
            max_tokens=1,
            extra_body={
                "prompt_logprobs": 0,
                "continue_final_message": True,
                "add_generation_prompt": False,
            },
        )
        entries = getattr(scored, "prompt_logprobs")  # noqa: B009 - an extension that the client's type lacks
        assert entries[0] is None
        tail = [next(iter(entry.values())) for entry in entries[-len(decoded) + 1 :]]
        assert [(e["decoded_token"], e["logprob"]) for e in tail] == [
            (t.token, t.logprob) for t in decoded[:-1]
        ]

        echoed = await client.completions.create(
            model="sim", prompt=["one two", "one two three"], max_tokens=0, echo=True, logprobs=1
        )
        assert [choice.text for choice in echoed.choices] == ["one two", "one two three"]
        logprobs = echoed.choices[1].logprobs
        assert logprobs is not None
        assert logprobs.tokens == ["one", " two", " three"]
        assert logprobs.token_logprobs is not None
        assert logprobs.token_logprobs[0] is None
        assert logprobs.text_offset == [0, 3, 7]

    serve(check)


def test_prefix_cache_counts_whole_blocks() -> None:
    async def check(server: SimulatedServer, client: AsyncOpenAI) -> None:
        long = [{"role": "user", "content": "word " * 40}]
        cached = []
        for _ in range(2):
            usage = (await ask(client, messages=long)).usage
            assert usage is not None
            assert usage.prompt_tokens_details is not None
            cached.append(usage.prompt_tokens_details.cached_tokens)
        assert cached == [0, 32]

    serve(check)


def test_refusals_have_the_server_s_own_form() -> None:
    async def check(server: SimulatedServer, client: AsyncOpenAI) -> None:
        with pytest.raises(openai.NotFoundError, match="The model `other` does not exist") as missing:
            await ask(client, model="other")
        assert missing.value.body == {
            "message": "The model `other` does not exist.",
            "type": "NotFoundError",
            "param": "model",
            "code": 404,
        }
        with pytest.raises(openai.BadRequestError, match="maximum context length is 50 tokens"):
            await ask(client, max_tokens=49)
        with pytest.raises(openai.BadRequestError, match="maximum context length is 50 tokens"):
            await ask(client, messages=[{"role": "user", "content": "word " * 60}])
        with pytest.raises(openai.BadRequestError, match="n: "):
            await ask(client, n=0)
        with pytest.raises(openai.BadRequestError, match="continue_final_message"):
            await ask(client, extra_body={"continue_final_message": True, "add_generation_prompt": True})
        async with client_of(server.url, "wrong") as stranger:
            with pytest.raises(openai.AuthenticationError):
                await ask(stranger)
        totals = server.totals()
        assert (totals.refused, totals.billed, totals.decoded) == (6, 0, 0)

    serve(check, SimSettings(api_key="none", max_model_len=50))


def test_the_openai_flavour_lacks_what_vllm_adds() -> None:
    async def check(server: SimulatedServer, client: AsyncOpenAI) -> None:
        for field in ("structured_outputs", "prompt_logprobs", "continue_final_message"):
            with pytest.raises(
                openai.BadRequestError, match=f"Unrecognized request argument supplied: {field}"
            ):
                await ask(client, extra_body={field: 1})
        model = (await client.models.list()).data[0]
        assert model.id == "sim"
        assert not hasattr(model, "max_model_len")
        for path in ("/version", "/tokenize", "/health"):
            with pytest.raises(openai.NotFoundError):
                await client.get(server.url.removesuffix("/v1") + path, cast_to=object)
        answer = await ask(client)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == len(tokenize(texts(answer)[0]))

    serve(check, SimSettings(flavour="openai"))


def test_tokenize_counts_as_the_prompt_is_counted() -> None:
    async def check(server: SimulatedServer, client: AsyncOpenAI) -> None:
        base = server.url.removesuffix("/v1")
        body = {"model": "sim", "messages": QUESTION}
        counted: Any = await client.post(base + "/tokenize", body=body, cast_to=object)
        usage = (await ask(client)).usage
        assert usage is not None
        assert counted["count"] == len(counted["tokens"]) == usage.prompt_tokens
        assert counted["max_model_len"] == 8192
        again = await client.completions.create(model="sim", prompt=counted["tokens"], max_tokens=2)
        assert again.usage is not None
        assert again.usage.prompt_tokens == counted["count"]

    serve(check)
