"""What a vLLM server's KV cache is used for: prefixes that are shared, and how it holds them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

import stratagem as sg
from stratagem.backends.cached import Cached
from stratagem.backends.openai import OpenAIBackend
from stratagem.backends.pooled import Pooled
from stratagem.backends.vllm.metrics import Snapshot
from stratagem.backends.vllm.server import VLLMServer
from stratagem.bench.data import load
from stratagem.bench.gym import skill
from stratagem.bench.runner import run_bench
from stratagem.core.backend import Message, Request, ScoreRequest
from stratagem.core.counts import counts_of
from vllm_kit import QUESTION, asked, run
from vllm_prefix import GOAL, Asked, Noting, ideal, measured, narrowed, problems_for

pytestmark = pytest.mark.vllm
PROBLEMS = 6
# At least one of each family; benchmarks/vllm_prefix.py has all strategies.
KINDS = (
    "direct",
    "self_consistency",
    "best_of_n",
    "pruned_best_of_n",
    "tournament",
    "beam_search",
    "particle_gibbs",
    "self_refine",
    "debate",
    "dynamic_prompting",
    "allocation",
    "dta",
    "dfsdt",
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_strategy_finds_in_the_prefix_cache_what_can_be_found(server: VLLMServer, kind: str) -> None:
    strategy = narrowed(kind, 4)
    # Problems that no other test asks.
    problems = problems_for(strategy, 1000 + PROBLEMS * KINDS.index(kind), PROBLEMS)
    rates = asyncio.run(measured(server.url, server.name, strategy, problems, set()))
    print(
        f"{kind}: {rates.found:.3f} of the prompt tokens from the cache, ideal {rates.ideal:.3f}; scored anew "
        f"{rates.anew:.3f}"
    )
    assert rates.found >= GOAL * rates.ideal
    assert kind == "direct" or rates.ideal > 0.3


def test_the_ideal_by_hand() -> None:
    """Blocks of 2 tokens; a token is a character."""

    async def tokens_of(messages: tuple[Message, ...]) -> list[int]:
        return list(map(ord, "".join(m.content for m in messages)))

    def prompt(text: str, n: int = 1, completion: str | None = None, *, cut: bool = False) -> Asked:
        return Asked((Message("user", text),), n, completion, cut)

    async def found(*noted: Asked) -> tuple[int, int]:
        return await ideal(noted, 2, tokens_of, set())

    async def main() -> None:
        assert await found(prompt("abcde")) == (0, 5)
        assert await found(prompt("abcde", n=3)) == (4 + 4, 15)
        assert await found(prompt("abcd", n=2)) == (2, 8)  # its last token must be computed, and so its block
        assert await found(prompt("abcde"), prompt("abcdxyz")) == (4, 12)
        assert await found(prompt("abcde"), prompt("xbcde")) == (0, 10)
        assert await found(prompt("abc"), prompt("abc", completion="def"), prompt("abcdefgh")) == (6, 11)
        ended = prompt("abc", completion="def", cut=True)  # f was decoded, and no step has taken it in
        assert await found(prompt("abc"), ended, prompt("abcdefgh")) == (4, 11)

    asyncio.run(main())


def test_what_grows_and_what_was_left_is_noted(server: VLLMServer) -> None:
    """A judge may be asked about a sample that goes on; a step goes on with the answer so far."""
    begun = "Tina had 35 beads.\n"
    asked_before = (Message("user", QUESTION),)

    async def main() -> None:
        backend = Noting(server.url, server.name)
        request = asked(temperature=1.0).sibling(0)
        request = replace(request, messages=(*request.messages, Message("assistant", begun)))
        async with backend.stream(request) as stream:
            said = ""
            async for chunk in stream:
                said += chunk.text
                if len(said) > 4:
                    break
            so_far = Message("assistant", begun + said[:3])
            await backend.generate(Request((*asked_before, so_far, Message("user", "Right?")), max_tokens=1))
        growing, judged, answer, left = backend.noted[1:]
        assert growing == Asked(asked_before, text=so_far.content, cut=True)
        assert judged.messages[1] == so_far
        assert (answer.messages, answer.cut) == (judged.messages, True)
        assert left == Asked(asked_before, text=begun + said, cut=True)
        # What is scored is not looked up, and its blocks are there afterwards.
        [before] = (await backend.counts()).values()
        await backend.score(ScoreRequest((*asked_before, so_far), ("yes", "", "no")))
        [after] = (await backend.counts()).values()
        assert after.since(before).prefix_queries == 0
        assert after.since(before).prompt_tokens
        scored = [Asked(asked_before, text=so_far.content + each) for each in ("yes", "no")]
        assert backend.noted[5:] == scored
        await backend.aclose()

    asyncio.run(main())


def test_counts_come_through_pools_and_wrappers(server: VLLMServer) -> None:
    async def main(backend: OpenAIBackend) -> None:
        wrapped = Cached(Pooled([backend], name="pool"))
        before = await counts_of([wrapped])
        generation = await wrapped.generate(asked(n=2, temperature=1.0))
        after = await counts_of([wrapped])
        assert list(before) == list(after) == [server.url]
        between = after[server.url].since(before[server.url])
        assert isinstance(between, Snapshot)
        assert between.generation_tokens == generation.usage.completion_tokens
        assert between.figures()["sequences"] == 2
        assert between.version.startswith("vLLM 0.")

    run(main, server)


def test_a_bench_tells_what_its_server_has_counted(server: VLLMServer, tmp_path: Path) -> None:
    async def main(backend: OpenAIBackend) -> None:
        strategies = {"vote": sg.SelfConsistency(n=4)}
        results = await run_bench(load("gym:words", limit=3), strategies, {"policy": backend}, out=tmp_path)
        [served] = results.served
        assert served.server == server.url
        decoded = sum(cell.usage.completion_tokens for cell in results.cells.values())
        assert served.between["decoded tokens"] == decoded
        assert served.after["decoded tokens"] - served.before["decoded tokens"] == decoded
        assert served.between["prefix-cache hit rate"] > 0.3

    run(main, server)


def test_a_cache_of_eight_bits_holds_more_and_says_nearly_the_same(
    server: VLLMServer, eight_bits: VLLMServer
) -> None:
    """Against one of the weights' own type, float32: the tokens that the same memory holds, the greedy texts that
    stay, and how far the log-probabilities of the same texts are apart."""

    async def texts(of: OpenAIBackend) -> list[str]:
        requests = [asked(skill("words").problem("test", i).question) for i in range(24)]
        found = await asyncio.gather(*(of.generate(request) for request in requests))
        return [generation.completions[0].text for generation in found]

    async def scores(of: OpenAIBackend, told: list[str]) -> list[float]:
        asking = [
            of.score(ScoreRequest((Message("user", skill("words").problem("test", i).question),), (text,)))
            for i, text in enumerate(told)
        ]
        return [t.logprob for scoring in await asyncio.gather(*asking) for t in scoring.scores[0]]

    async def main(plain: OpenAIBackend) -> None:
        small = OpenAIBackend(eight_bits.url, eight_bits.name)
        [large], [dense] = (await plain.counts()).values(), (await small.counts()).values()
        assert large.cache["cache_dtype"] == "auto"
        assert dense.cache["cache_dtype"].startswith("fp8")
        assert large.kv_tokens is not None
        assert dense.kv_tokens is not None
        held = dense.kv_tokens / large.kv_tokens
        ours, theirs = await texts(plain), await texts(small)
        same = sum(a == b for a, b in zip(ours, theirs, strict=True))
        pairs = zip(await scores(plain, ours), await scores(small, ours), strict=True)
        gaps = sorted(abs(a - b) for a, b in pairs)
        mean, high = sum(gaps) / len(gaps), gaps[int(0.99 * len(gaps))]
        await small.aclose()
        print(
            f"KV cache fp8 over float32: {held:.2f} times the tokens, {same} of {len(ours)} greedy texts the same, "
            f"log-probabilities apart by {mean:.4f} in the mean and {high:.3f} at 99 %"
        )
        assert held == pytest.approx(4, rel=0.05)
        assert same >= len(ours) / 2
        assert mean < 0.05

    run(main, server)
