"""What a vLLM server's KV cache is used for: prefixes that are shared, and how it holds them."""

from __future__ import annotations

import asyncio
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
from stratagem.core.backend import Message, ScoreRequest
from stratagem.core.counts import counts_of
from vllm_kit import asked, run
from vllm_prefix import GOAL, SINGLE, STRATEGIES, Asked, ideal, measured

pytestmark = pytest.mark.vllm
PROBLEMS = 12


@pytest.mark.parametrize("kind", STRATEGIES)
def test_a_strategy_finds_in_the_prefix_cache_what_can_be_found(server: VLLMServer, kind: str) -> None:
    strategy = sg.Strategy.load({"kind": kind} if kind in SINGLE else {"kind": kind, "n": 4})
    start = 1000 + PROBLEMS * STRATEGIES.index(kind)  # questions that no other test asks
    questions = [skill("words").problem("test", start + i).question for i in range(PROBLEMS)]
    rates = asyncio.run(measured(server.url, server.name, strategy, questions))
    print(f"{kind}: {rates.found:.3f} of the prompt tokens from the cache, ideal {rates.ideal:.3f}")
    assert rates.found >= GOAL * rates.ideal
    assert kind in SINGLE or rates.ideal > 0.3


def test_the_ideal_by_hand() -> None:
    """Blocks of 2 tokens; a token is a character."""

    async def tokens_of(messages: tuple[Message, ...]) -> list[int]:
        return list(map(ord, "".join(m.content for m in messages)))

    def prompt(text: str, n: int = 1, completion: str | None = None) -> Asked:
        return Asked((Message("user", text),), n, completion)

    async def found(*noted: Asked) -> tuple[int, int]:
        return await ideal(noted, 2, tokens_of)

    async def main() -> None:
        assert await found(prompt("abcde")) == (0, 5)
        assert await found(prompt("abcde", n=3)) == (4 + 4, 15)
        assert await found(prompt("abcd", n=2)) == (2, 8)  # its last token must be computed, and so its block
        assert await found(prompt("abcde"), prompt("abcdxyz")) == (4, 12)
        assert await found(prompt("abcde"), prompt("xbcde")) == (0, 10)
        assert await found(prompt("abc"), prompt("abc", completion="def"), prompt("abcdefgh")) == (6, 11)

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
