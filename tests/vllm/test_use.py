"""What strategies rely on, held against the real server's own counters."""

from __future__ import annotations

import asyncio
import math

import pytest

import stratagem as sg
from stratagem.backends.openai import OpenAIBackend
from stratagem.backends.vllm.server import VLLMServer
from stratagem.bench.gym import skill
from stratagem.core.backend import Constraint, Message
from vllm_kit import QUESTION, asked, counter, run
from vllm_prefix import Noting

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("strategy", ["direct", "self_consistency", "best_of_n", "weighted_vote"])
def test_what_it_costs_is_what_the_server_has_counted(server: VLLMServer, strategy: str) -> None:
    async def main(backend: OpenAIBackend) -> None:
        await backend.capabilities()
        prompt, decoded = [await counter(server, f"{kind}_tokens_total") for kind in ("prompt", "generation")]
        problem = skill("words").problem("test", 5)
        noting = Noting(server.url, server.name)
        answer = await sg.solve(problem.question, strategy, llm=noting)
        await noting.aclose()
        assert answer.usage.uncertain_tokens == 0
        assert await counter(server, "generation_tokens_total") - decoded == answer.usage.completion_tokens
        # An answer counts the prompt once for all siblings in it, the metrics count it for each of them.
        prompts = [note for note in noting.noted if note.text is None]
        sizes = [each.n * await backend.count_tokens(each.messages) for each in prompts]
        assert await counter(server, "prompt_tokens_total") - prompt == sum(sizes)
        assert answer.usage.prompt_tokens <= sum(sizes)

    run(main, server)


def test_a_seed_repeats_and_seeds_differ(server: VLLMServer) -> None:
    async def main(backend: OpenAIBackend) -> None:
        async def texts(seed: int) -> list[str]:
            generation = await backend.generate(asked(n=8, temperature=1.0, seed=seed))
            return [completion.text for completion in generation.completions]

        first, again, other = await asyncio.gather(texts(3), texts(3), texts(300))
        assert first == again
        assert first != other

    run(main, server)


def test_log_probabilities_are_the_embedded_engines(server: VLLMServer) -> None:
    async def main(backend: OpenAIBackend) -> None:
        request = asked(logprobs=5, max_tokens=30)
        embedded = sg.connect()
        [theirs] = (await backend.generate(request)).completions
        [ours] = (await embedded.generate(request)).completions
        await embedded.aclose()
        assert theirs.text == ours.text
        assert len(theirs.tokens) == len(ours.tokens)
        for token, reference in zip(theirs.tokens, ours.tokens, strict=True):
            assert token.logprob == pytest.approx(reference.logprob, abs=2e-3)
            assert [p for _, p in token.top] == sorted((p for _, p in token.top), reverse=True)
            assert sum(math.exp(p) for _, p in token.top) <= 1 + 1e-6
            assert len(token.top) == 5

    run(main, server)


def test_a_prompt_asked_again_comes_from_the_prefix_cache(server: VLLMServer) -> None:
    async def main(backend: OpenAIBackend) -> None:
        request = asked(f"A new beginning. {QUESTION} And with one more? {QUESTION}", max_tokens=1)
        first = (await backend.generate(request)).usage
        again = (await backend.generate(request)).usage
        block = 32
        assert first.cached_tokens < block
        # Every whole block but, at most, the last one: its end has to be computed for the first token.
        assert again.cached_tokens >= (again.prompt_tokens - 1) // block * block
        assert again.prompt_tokens == first.prompt_tokens > 2 * block

    run(main, server)


def test_its_own_last_message_is_continued(server: VLLMServer) -> None:
    async def main(backend: OpenAIBackend) -> None:
        request = asked()
        whole = (await backend.generate(request)).completions[0].text
        begun, line, rest = whole.partition("\n")
        assert rest
        messages = (*request.messages, Message("assistant", begun + line))
        continued = await backend.generate(sg.Request(messages, max_tokens=120, temperature=0.0))
        assert continued.completions[0].text == rest
        assert continued.usage.prompt_tokens == await backend.count_tokens(messages)

    run(main, server)


def test_an_abandoned_stream_stops_in_the_engine(server: VLLMServer) -> None:
    """The sequence is freed, and what it has decoded lies within what was said."""

    async def main(backend: OpenAIBackend) -> None:
        await backend.capabilities()
        decoded = await counter(server, "generation_tokens_total")
        endless = Constraint("regex", "[a-c]{900}")
        async with backend.stream(asked(n=4, max_tokens=900, temperature=1.0, constraint=endless)) as stream:
            async for _ in stream:
                break
        said = stream.usage
        # A request that takes some steps itself: what was aborted before it is out of the batch when it ends.
        other = await backend.generate(asked(max_tokens=8, constraint=endless))
        assert await counter(server, "num_requests_running") == 0
        assert await counter(server, "num_requests_waiting") == 0
        spent = await counter(server, "generation_tokens_total") - decoded - other.usage.completion_tokens
        assert said.completion_tokens <= spent <= said.completion_tokens + said.uncertain_tokens
        assert spent < 4 * 900 / 2, "it was stopped, it has not ended"

    run(main, server)


def test_what_an_unread_stream_has_cost_is_known_within_its_slack(server: VLLMServer) -> None:
    """Also where nobody reads the pieces, the server's word on what it has decoded is kept."""

    async def main(backend: OpenAIBackend) -> None:
        await backend.capabilities()
        decoded = await counter(server, "generation_tokens_total")
        endless = Constraint("regex", "[a-c]{900}")
        request = asked(n=4, max_tokens=900, temperature=1.0, constraint=endless)
        async with backend.stream(request, deltas=False) as stream:
            beside = await backend.generate(asked(max_tokens=40, constraint=endless))  # some steps
        said = stream.usage
        after = await backend.generate(asked(max_tokens=8, constraint=endless))
        others = beside.usage.completion_tokens + after.usage.completion_tokens
        spent = await counter(server, "generation_tokens_total") - decoded - others
        assert said.completion_tokens <= spent <= said.completion_tokens + said.uncertain_tokens
        assert said.uncertain_tokens <= 4 * (32 + 31)

    run(main, server)


def test_cancelled_runs_leave_nothing_in_the_engine(server: VLLMServer) -> None:
    async def main(backend: OpenAIBackend) -> None:
        endless = Constraint("regex", "[a-c]{900}")
        tasks = [
            asyncio.create_task(
                backend.generate(asked(n=2, max_tokens=900, temperature=1.0, seed=seed, constraint=endless))
            )
            for seed in range(6)
        ]
        await asyncio.wait(tasks, timeout=0.5)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        await backend.generate(asked(max_tokens=8, constraint=endless))
        assert await counter(server, "num_requests_running") == 0
        assert await counter(server, "num_requests_waiting") == 0

    run(main, server)


def test_many_runs_at_once(server: VLLMServer) -> None:
    """64 at the same time answer, and are billed to the token together."""

    async def main(backend: OpenAIBackend) -> None:
        await backend.capabilities()
        decoded = await counter(server, "generation_tokens_total")
        problems = [skill("words").problem("test", index) for index in range(64)]
        answers = await asyncio.gather(
            *(
                sg.solve(problem.question, sg.SelfConsistency(n=4), llm=backend, seed=index)
                for index, problem in enumerate(problems)
            )
        )
        told = sum(answer.usage.completion_tokens for answer in answers)
        assert await counter(server, "generation_tokens_total") - decoded == told
        right = sum(a.value == p.answer for a, p in zip(answers, problems, strict=True))
        print(f"self-consistency of 4 on vLLM: {right} of {len(problems)} right")
        assert right >= 20

    run(main, server)
