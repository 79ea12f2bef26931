"""The engine as its users see it: what it decodes does not depend on who else decodes, and its books are exact."""

import asyncio
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from stratagem.backends.embedded.engine import Engine, EngineStats
from stratagem.backends.embedded.requests import Handle, Result, Sample, Want
from stratagem.backends.embedded.sampling import Sampling
from stratagem.core.errors import ContextLengthError, UnsupportedError

PROMPT = "Ben has 12 + 7 apples. How many? "


def ask(engine: Engine, text: str = PROMPT) -> list[int]:
    return engine.tokenizer.render([("user", text)])


async def one(engine: Engine, prompt: Sequence[int], sampling: Sampling) -> Sample:
    return (await engine.submit(prompt, sampling).result()).samples[0]


def assert_idle(stats: EngineStats) -> None:
    assert (stats.running, stats.waiting, stats.blocks_active) == (0, 0, 0)


def test_a_seed_gives_the_same_sample_alone_in_a_batch_and_by_n(engine: Engine) -> None:
    async def main() -> None:
        prompt = ask(engine)

        def seeded(seed: int) -> Sampling:
            return Sampling(max_tokens=30, temperature=0.9, top_p=0.95, seed=seed)

        alone = [(await one(engine, prompt, seeded(100 + i))).tokens for i in range(6)]
        assert len(set(alone)) == 6
        noise = [engine.submit(ask(engine, "x" * k), Sampling(max_tokens=40, seed=k)) for k in range(1, 12)]
        handles = [engine.submit(prompt, seeded(100 + i)) for i in range(6)]
        assert [(await h.result()).samples[0].tokens for h in handles] == alone
        forked = await engine.submit(prompt, seeded(100), n=6).result()
        assert [s.tokens for s in forked.samples] == alone
        assert forked.spent.prefilled + forked.spent.cached == len(prompt)
        for handle in noise:
            await handle.result()

    asyncio.run(main())
    assert_idle(engine.stats())


def test_64_concurrent_mixed_requests_equal_one_by_one(engine: Engine, folder: Path) -> None:
    rng = random.Random(3)
    digits = engine.grammar("regex", "[0-9]{1,12}")
    schema = engine.grammar("json", {"type": "array", "items": {"enum": ["a", "bb"]}, "maxItems": 3})
    prompts = [ask(engine, "apples " * rng.randint(1, 25) + str(i)) for i in range(64)]
    samplings = [
        Sampling(
            max_tokens=rng.randint(1, 60),
            temperature=0.0,
            stop=rng.choice([(), ("e",), ("an", "swer")]),
            logprobs=rng.choice([None, 0, 3]),
            grammar=rng.choice([None, None, digits, schema]),
        )
        for _ in prompts
    ]

    async def together() -> list[Sample]:
        handles = [engine.submit(p, s) for p, s in zip(prompts, samplings, strict=True)]
        return [(await h.result()).samples[0] for h in handles]

    async def in_turn() -> list[Sample]:
        return [await one(engine, p, s) for p, s in zip(prompts, samplings, strict=True)]

    def texts(samples: list[Sample]) -> list[tuple[str, tuple[int, ...], str]]:
        return [(s.text, s.tokens, s.finish) for s in samples]

    assert texts(asyncio.run(together())) == texts(asyncio.run(in_turn()))  # in two event loops
    assert_idle(engine.stats())


def test_known_prefixes_are_not_computed_again_and_change_nothing(engine: Engine) -> None:
    async def main() -> None:
        prompt = ask(engine, "Think step by step. " * 8)
        greedy = Sampling(max_tokens=20, temperature=0.0)
        first = await engine.submit(prompt, greedy).result()
        again = await engine.submit(prompt, greedy).result()
        whole = (len(prompt) - 1) // 16 * 16
        assert (first.spent.cached, again.spent.cached) == (0, whole)
        assert again.spent.prefilled == len(prompt) - whole
        assert first.samples[0].tokens == again.samples[0].tokens
        longer = [*prompt, *first.samples[0].tokens, *engine.tokenizer.encode("yes or no")]
        follow = await engine.submit(longer, greedy).result()
        assert follow.spent.cached > whole  # what was decoded is found again too
        fresh = Engine(engine_folder, threads=1)
        assert (await one(fresh, longer, greedy)).tokens == follow.samples[0].tokens
        fresh.close()
        stats = engine.stats()
        assert stats.cached_tokens == whole + follow.spent.cached
        assert stats.prefilled_tokens == sum(r.spent.prefilled for r in (first, again, follow))

    engine_folder = engine.folder
    asyncio.run(main())


def test_a_full_cache_gives_up_the_oldest_blocks_and_stays_right(folder: Path) -> None:
    engine = Engine(folder, threads=1, max_running=2)  # 32 blocks

    async def main() -> None:
        prompts = [ask(engine, f"{i} " * 40) for i in range(12)]
        greedy = Sampling(max_tokens=25, temperature=0.0)
        first = [(await one(engine, p, greedy)).tokens for p in prompts]
        handles = [engine.submit(p, greedy, n=2) for p in prompts]
        again = [[s.tokens for s in (await h.result()).samples] for h in handles]
        assert again == [[tokens, tokens] for tokens in first]

    asyncio.run(main())
    engine.close()
    assert_idle(engine.stats())


def test_more_samples_than_places_are_all_drawn(folder: Path) -> None:
    engine = Engine(folder, threads=1, max_running=3)

    async def main() -> None:
        handles = [engine.submit(ask(engine, str(i)), Sampling(max_tokens=5, seed=i), n=8) for i in range(4)]
        scoring = engine.score(ask(engine), [engine.tokenizer.encode(f"{i} apples") for i in range(9)])
        wide = [await h.result() for h in handles]
        assert all(
            len(r.samples) == 8 and r.spent.decoded == sum(len(s.tokens) for s in r.samples) for r in wide
        )
        assert len((await scoring.result()).scores) == 9

    asyncio.run(main())
    engine.close()
    assert_idle(engine.stats())


def test_abort_frees_the_blocks_and_tells_what_was_decoded(engine: Engine) -> None:
    async def main() -> None:
        rng = random.Random(0)
        for round_ in range(20):
            before = engine.stats()
            wants: list[tuple[int, Want]] = [(1, "deltas"), (30, "samples"), (90, "result")]
            endless = Sampling(max_tokens=150, ignore_end=True)
            handles = [engine.submit(ask(engine, "a" * k), endless, n=2, want=w) for k, w in wants]
            seen = 0
            for _ in range(rng.randint(0, 30)):
                delta = await handles[0].event()
                assert delta is not None
                seen += bool(delta.text)
            for handle in rng.sample(handles, 3):
                handle.abort()
                handle.abort()
            results = [await h.result() for h in handles]
            after = engine.stats()
            assert_idle(after)
            assert after.aborted - before.aborted == 3
            decoded = [sum(len(s.tokens) for s in r.samples) for r in results]
            assert decoded == [r.spent.decoded for r in results]
            assert after.decoded_tokens - before.decoded_tokens == sum(decoded)
            prefilled = sum(r.spent.prefilled for r in results)
            assert after.prefilled_tokens - before.prefilled_tokens == prefilled
            assert all(s.finish == "abort" for r in results for s in r.samples), round_
            assert decoded[0] >= seen
        assert (await one(engine, ask(engine), Sampling(max_tokens=3))).tokens

    asyncio.run(main())


def test_what_is_aborted_before_it_starts_costs_nothing(engine: Engine) -> None:
    async def main() -> None:
        first = engine.submit(ask(engine), Sampling(max_tokens=200, ignore_end=True), n=64)
        late = engine.submit(ask(engine, "late"), Sampling(max_tokens=200))
        late.abort()
        result = await late.result()
        assert (result.aborted, result.spent.prefilled, result.spent.decoded) == (True, 0, 0)
        first.abort()
        await first.result()

    asyncio.run(main())
    assert_idle(engine.stats())


def test_a_loop_that_is_closed_with_requests_under_way_leaves_nothing_behind(engine: Engine) -> None:
    async def leave() -> Handle:
        return engine.submit(ask(engine), Sampling(max_tokens=200, ignore_end=True), n=4, want="deltas")

    async def later() -> Sample:
        return await one(engine, ask(engine), Sampling(max_tokens=230, ignore_end=True))

    handle = asyncio.run(leave())
    assert len(asyncio.run(later()).tokens) > 200  # long after the other's next delivery
    assert handle.job.spent.decoded < 4 * 200
    assert_idle(engine.stats())


def test_close_ends_the_requests_and_the_next_one_starts_again(engine: Engine) -> None:
    async def main() -> None:
        handle = engine.submit(ask(engine), Sampling(max_tokens=200, ignore_end=True))
        await asyncio.to_thread(engine.close)
        assert (await handle.result()).aborted
        assert len((await one(engine, ask(engine), Sampling(max_tokens=4, ignore_end=True))).tokens) == 4

    asyncio.run(main())


@pytest.mark.parametrize("k", [1, 3])
def test_logprobs_agree_with_scoring_and_with_enumeration(engine: Engine, k: int) -> None:
    async def main() -> tuple[Sample, Result, Result]:
        prompt = ask(engine)
        sampling = Sampling(max_tokens=24, temperature=1.3, top_p=0.9, logprobs=k, seed=7, ignore_end=True)
        sample = await one(engine, prompt, sampling)
        continuations = [sample.tokens, sample.tokens[:1], sample.tokens[:2], ()]
        scored = await engine.score(prompt, continuations, top=k).result()
        whole = await engine.score([*prompt, *sample.tokens], [], top=k, prompt_logprobs=True).result()
        return sample, scored, whole

    sample, scored, whole = asyncio.run(main())
    drawn = [t.logprob for t in sample.logprobs]
    assert [t.id for t in sample.logprobs] == list(sample.tokens)
    for k_tokens, score in zip((24, 1, 2, 0), scored.scores, strict=True):
        assert [t.logprob for t in score] == pytest.approx(drawn[:k_tokens], abs=1e-5)
        assert [[i for i, _ in t.top] for t in score] == [
            [i for i, _ in t.top] for t in sample.logprobs[:k_tokens]
        ]
    assert [t.logprob for t in whole.prompt[-24:]] == pytest.approx(drawn, abs=1e-5)
    assert len(whole.prompt) == whole.spent.prefilled - 1
    for token in sample.logprobs:
        assert len(token.top) == k
        assert [p for _, p in token.top] == sorted((p for _, p in token.top), reverse=True)
        assert token.logprob <= token.top[0][1]


def test_the_next_tokens_probabilities_sum_to_one(engine: Engine) -> None:
    async def main() -> None:
        vocabulary = range(engine.model.config.vocabulary)
        scored = await engine.score(ask(engine), [[t] for t in vocabulary]).result()
        assert sum(np.exp(t.logprob) for (t,) in scored.scores) == pytest.approx(1.0, abs=1e-9)
        assert scored.spent.prefilled == len(ask(engine))  # nothing beyond the prompt was computed

    asyncio.run(main())


def test_samples_follow_the_models_distribution(engine: Engine) -> None:
    async def main() -> None:
        prompt, n, temperature = ask(engine), 4000, 0.5
        vocabulary = range(engine.model.config.vocabulary)
        scored = await engine.score(prompt, [[t] for t in vocabulary]).result()
        exact = np.exp(np.array([t.logprob for (t,) in scored.scores]) / temperature)
        exact /= exact.sum()
        drawn = await engine.submit(
            prompt, Sampling(max_tokens=1, temperature=temperature, seed=1), n=n
        ).result()
        counts = np.bincount([s.tokens[0] for s in drawn.samples], minlength=len(exact))
        chi2 = float(((counts - n * exact) ** 2 / (n * exact)).sum())
        freedom = len(exact) - 1
        assert abs(chi2 - freedom) < 6 * (2 * freedom) ** 0.5

    asyncio.run(main())


def test_stop_strings_end_the_text_and_are_never_streamed(engine: Engine) -> None:
    async def main() -> None:
        prompt = ask(engine)
        free = await one(engine, prompt, Sampling(max_tokens=60, seed=3, ignore_end=True))
        middle = len(free.text) // 2
        for start, length in ((middle, 7), (middle - 3, 2), (0, 3), (middle, 1)):
            stop = free.text[start : start + length]
            cut = free.text.index(stop)
            for stops in ((stop,), ("never said", stop)):
                sampling = Sampling(max_tokens=60, seed=3, stop=stops, ignore_end=True)
                handle = engine.submit(prompt, sampling, want="deltas")
                pieces = []
                while (delta := await handle.event()) is not None:
                    pieces.append(delta.text)
                sample = (await handle.result()).samples[0]
                assert "".join(pieces) == sample.text == free.text[:cut]
                assert sample.finish == "stop"
                assert stop in engine.tokenizer.decode(sample.tokens)
        absent = await one(engine, prompt, Sampling(max_tokens=60, seed=3, stop=("~~~~",), ignore_end=True))
        assert (absent.text, absent.finish) == (free.text, "length")

    asyncio.run(main())


def test_streamed_pieces_are_whole_characters_and_add_up(engine: Engine) -> None:
    async def main() -> None:
        text = "naïve café 東京 🙂 — ünïcode"
        grammar = engine.grammar("choice", [text])
        handle = engine.submit(ask(engine, text), Sampling(grammar=grammar, temperature=0.0), want="deltas")
        pieces = []
        while (delta := await handle.event()) is not None:
            pieces.append(delta.text)
        sample = (await handle.result()).samples[0]
        assert "".join(pieces) == sample.text == text
        assert not any("\ufffd" in piece for piece in pieces)
        assert len(sample.tokens) > len(pieces) > 5  # some characters took several tokens

    asyncio.run(main())


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2},
    },
    "required": ["name", "count", "tags"],
    "additionalProperties": False,
}


def test_constrained_samples_of_a_random_model_are_well_formed(engine: Engine) -> None:
    async def main() -> None:
        prompt = ask(engine)

        async def samples(kind: str, value: object) -> Sequence[Sample]:
            grammar = engine.grammar(kind, value)  # type: ignore[arg-type]
            result = await engine.submit(
                prompt, Sampling(max_tokens=150, seed=1, grammar=grammar), n=12
            ).result()
            assert all(s.finish == "stop" for s in result.samples)
            return result.samples

        for sample in await samples("json", SCHEMA):
            data = json.loads(sample.text)
            assert set(data) == {"name", "count", "tags"}
            assert 0 <= data["count"] <= 99
        options = ["yes", "no", "naïve", 'say "hi"\n', "yes and no"]
        chosen = {s.text for s in await samples("choice", options)}
        assert chosen <= set(options)
        assert len(chosen) > 1
        assert all(
            re.fullmatch(r"\d{2}:[ab]+!", s.text) for s in await samples("regex", r"[0-9]{2}:[ab]{1,9}!")
        )
        lark = 'start: "(" start? ")" | NAME\nNAME: /[a-c]{1,3}/'
        assert all(re.fullmatch(r"\(*[a-c]*\)*", s.text) for s in await samples("grammar", lark))

    asyncio.run(main())


def test_a_constraint_cut_by_max_tokens_says_so(engine: Engine) -> None:
    async def main() -> None:
        sampling = Sampling(max_tokens=3, grammar=engine.grammar("regex", "[0-9]{10}"))
        sample = await one(engine, ask(engine), sampling)
        assert (sample.finish, len(sample.text)) == ("length", 3)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("choice", []),
        ("choice", "["),
        ("regex", "(["),
        ("json", "{"),
        ("json", {"type": "zzz"}),
        ("grammar", "start: x"),
    ],
)
def test_a_malformed_constraint_is_refused(engine: Engine, kind: str, value: object) -> None:
    with pytest.raises(UnsupportedError, match=kind):
        engine.grammar(kind, value)  # type: ignore[arg-type]


def test_logprobs_are_those_of_the_model_before_the_mask(engine: Engine) -> None:
    async def main() -> None:
        prompt = ask(engine)
        [yes] = engine.tokenizer.encode("y")
        grammar = engine.grammar("regex", "y")
        sample = await one(engine, prompt, Sampling(temperature=0.3, logprobs=2, grammar=grammar))
        scored = await engine.score(prompt, [[yes]], top=2).result()
        assert sample.logprobs[0].logprob == pytest.approx(scored.scores[0][0].logprob, abs=1e-5)
        assert sample.logprobs[0].logprob < -0.5  # under the mask it would be certain
        assert [i for i, _ in sample.logprobs[0].top] == [i for i, _ in scored.scores[0][0].top]

    asyncio.run(main())


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(engine: Engine) -> None:
    async def main() -> None:
        prompt = [7] * 300
        for submit in (lambda: engine.submit(prompt, Sampling()), lambda: engine.score(prompt, [[7]])):
            with pytest.raises(ContextLengthError, match=r"300 tokens.*256"):
                submit()
        edge = await one(engine, prompt[:255], Sampling(max_tokens=50, ignore_end=True))
        assert (len(edge.tokens), edge.finish) == (1, "length")
        with pytest.raises(ValueError, match="empty"):
            engine.submit([], Sampling())

    asyncio.run(main())


def test_a_long_prompt_does_not_stall_those_that_decode(folder: Path) -> None:
    engine = Engine(folder, threads=1, max_batch=64)

    async def main() -> None:
        short = engine.submit(ask(engine, "hi"), Sampling(max_tokens=200, ignore_end=True), want="deltas")
        await short.event()
        long = engine.submit([9] * 250, Sampling(max_tokens=1), want="samples")
        before = short.job.spent.decoded
        await long.event()
        # 250 tokens in chunks of at most 64 are 4 steps at least, and each also decoded for the other.
        assert short.job.spent.decoded - before >= 4
        short.abort()

    asyncio.run(main())
    engine.close()


def test_an_error_in_the_driver_fails_the_requests_and_not_the_engine(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        forward = engine.model.forward
        calls = 0

        def broken(*arguments: object) -> object:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise MemoryError("no room")
            return forward(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(engine.model, "forward", broken)
        handles = [engine.submit(ask(engine), Sampling(max_tokens=50, ignore_end=True)) for _ in range(3)]
        results = [await h.result() for h in handles]
        assert [str(r.error) for r in results] == ["no room"] * 3
        assert all(r.spent.decoded == 2 for r in results)
        assert_idle(engine.stats())
        assert len((await one(engine, ask(engine), Sampling(max_tokens=5, ignore_end=True))).tokens) == 5

    asyncio.run(main())


def test_a_grammar_that_breaks_fails_its_own_request_only(engine: Engine) -> None:
    async def main() -> None:
        grammar = engine.grammar("regex", "(a{1000}){1000}")
        bad = engine.submit(ask(engine), Sampling(max_tokens=9, grammar=grammar), n=3)
        good = engine.submit(ask(engine), Sampling(max_tokens=9, ignore_end=True), n=2)
        error = (await bad.result()).error
        assert isinstance(error, UnsupportedError)
        assert "too many expressions" in str(error)
        assert "\n" not in str(error)
        samples = (await good.result()).samples
        assert [len(sample.tokens) for sample in samples] == [9, 9]
        assert_idle(engine.stats())

    asyncio.run(main())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("stop", ("",)),
    ],
)
def test_impossible_sampling_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        Sampling(**{field: value})  # type: ignore[arg-type]


def test_the_urgent_is_begun_before_what_waits(folder: Path) -> None:
    """With room for two, and what it gives does not depend on when it came in."""

    async def main() -> None:
        engine = Engine(folder, threads=1, max_running=2)
        try:
            ended: list[str] = []

            async def ask_for(name: str, priority: int) -> Sample:
                sampling = Sampling(max_tokens=20, temperature=1.0, seed=3)
                sample = (
                    await engine.submit(ask(engine, name), sampling, priority=priority).result()
                ).samples[0]
                ended.append(name)
                return sample

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask_for(f"sample {i}", 0)) for i in range(8)]
                await asyncio.sleep(0)
                urgent = group.create_task(ask_for("judge", -1))
            assert ended.index("judge") <= 3, ended
            alone = await one(engine, ask(engine, "judge"), Sampling(max_tokens=20, temperature=1.0, seed=3))
            assert urgent.result().tokens == alone.tokens
            assert len(tasks) == 8
        finally:
            engine.close()

    asyncio.run(main())
