"""Pruned best-of-N: what it decodes to the token, who stays, and that no order of arrival changes it."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest

import stratagem as sg
from stratagem.core.backend import Chunk, TokenLogprob
from stratagem.core.protocols import Strategy
from stratagem.strategies._prefixes import Prefixes
from stratagem.strategies._race import Race, Rule
from stratagem.strategies.pruned_best_of_n import PrunedBestOfN
from stratagem.testing.loops import run
from stratagem.testing.toy import CAPABLE, ToyModel, jittered

TASK = sg.Task.of("Which?")
GRADES = {f"{grade}": grade / 10 for grade in range(10)}


class Grade(sg.Verifier):
    """The first figure of a text, in tenths: it can be told from the beginning of an answer."""

    kind: ClassVar[str] = "grade_in_tests"

    async def __call__(
        self, task: sg.Task, candidates: Sequence[sg.Candidate], run: sg.Run
    ) -> list[sg.Verdict]:
        return [sg.Verdict(GRADES[c.text[0]]) for c in candidates]


class Lines(sg.Verifier):
    """The last figure of a text, in tenths: it changes from line to line."""

    kind: ClassVar[str] = "lines_in_tests"

    async def __call__(
        self, task: sg.Task, candidates: Sequence[sg.Candidate], run: sg.Run
    ) -> list[sg.Verdict]:
        return [sg.Verdict(GRADES[next(c for c in reversed(x.text) if c.isdigit())]) for x in candidates]


def marked(tokens: int) -> ToyModel:
    """Answers of a figure and so many tokens in all; a token takes a second."""

    async def pace(_: object) -> None:
        await asyncio.sleep(1)

    def language(_: object, said: tuple[str, ...]) -> dict[str, float]:
        if not said:
            return dict.fromkeys(GRADES, 0.1)
        return {" so": 1.0} if len(said) < tokens - 1 else {"": 1.0}

    return ToyModel(language, pace=pace)


def drawn_by_lines(_: object, said: tuple[str, ...]) -> dict[str, float]:
    """Three to six lines of a figure each."""
    lines = len(said)
    if lines < 3:
        return {f"Step {figure}\n": 0.1 for figure in GRADES}
    return {"": 0.3 if lines < 6 else 1.0} | ({f"Step {f}\n": 0.07 for f in GRADES} if lines < 6 else {})


@pytest.mark.parametrize(("least", "tokens"), [(1, 16 * 64 + 4 * 64 + 128), (2, 16 * 64 + 4 * 64 + 2 * 128)])
def test_some_stay_for_the_last_verdict(least: int, tokens: int) -> None:
    async def main() -> None:
        toy = marked(256)
        strategy = PrunedBestOfN(n=16, unit="token", checkpoints=(64, 128), least=least, verifier=Grade())
        await sg.solve(TASK, strategy, llm=toy)
        assert toy.books.usage.completion_tokens == tokens

    run(main())


def test_a_quarter_kept_at_64_of_256_tokens_decodes_1792() -> None:
    async def main() -> None:
        toy = marked(256)
        strategy = PrunedBestOfN(n=16, unit="token", checkpoints=(64,), keep=0.25, verifier=Grade())
        answer = await sg.solve(TASK, strategy, llm=toy)
        assert toy.books.usage.completion_tokens == 16 * 64 + 4 * 192 == 1792  # of 4096: 56.25 % saved
        assert (toy.books.aborted, toy.books.in_flight) == (12, 0)
        assert answer.usage == toy.books.usage
        assert asyncio.get_running_loop().time() == 256  # nobody has waited
        whole = await sg.solve(TASK, sg.BestOfN(n=16, verifier=Grade()), llm=marked(256))
        assert answer.text == whole.text
        texts = [c.text for c in whole.candidates]
        assert [c.text for c in answer.candidates] == sorted(texts, key=lambda t: -GRADES[t[0]])[:4] or (
            len(answer.candidates) == 4 and all(c.text in texts for c in answer.candidates)
        )

    run(main())


def test_the_rest_of_a_text_does_not_know_that_it_was_judged() -> None:
    """Same seed, same texts as best-of-n without pruning, and greedily the same as one sample."""

    async def main() -> None:
        for seed in range(5):
            pruned = await sg.solve(TASK, PrunedBestOfN(n=8), llm=ToyModel(), seed=seed)
            whole = await sg.solve(TASK, sg.BestOfN(n=8, verifier=sg.Restart()), llm=ToyModel(), seed=seed)
            texts = [c.text for c in whole.candidates]
            kept = [c.text for c in pruned.candidates]
            assert 0 < len(kept) < 8
            assert not Counter(kept) - Counter(texts)
        greedy = await sg.solve(TASK, PrunedBestOfN(n=2, temperature=0.0), llm=ToyModel())
        one = await sg.solve(TASK, sg.ChainOfThought(temperature=0.0), llm=ToyModel())
        assert greedy.text == one.text

    run(main())


def test_halves_stay_by_lines() -> None:
    async def main() -> None:
        for seed in range(20):
            model = ToyModel(drawn_by_lines, pace=jittered(seed))
            strategy = PrunedBestOfN(n=8, checkpoints=(1, 2), keep=0.5, verifier=Lines())
            answer = await sg.solve(TASK, strategy, llm=model, seed=seed)
            whole = await sg.solve(TASK, sg.SelfConsistency(n=8), llm=ToyModel(drawn_by_lines), seed=seed)
            left = list(range(8))
            for line, places in enumerate((4, 2)):
                figures = {i: whole.candidates[i].steps[line][-1] for i in left}
                left = sorted(sorted(left, key=lambda i: (-int(figures[i]), i))[:places])
            assert [c.text for c in answer.candidates] == [whole.candidates[i].text for i in left]
            last = [int(c.steps[-1][-1]) for c in answer.candidates]
            assert answer.confidence == max(last) / 10
            assert answer.text == answer.candidates[last.index(max(last))].text

    run(main())


def test_continuously_who_trails_is_stopped_at_once() -> None:
    async def main() -> None:
        toy = marked(40)
        strategy = PrunedBestOfN(n=12, unit="token", every=5, margin=0.15, verifier=Grade())
        answer = await sg.solve(TASK, strategy, llm=toy, seed=2)
        figures = [int(c.text[0]) for c in answer.candidates]
        assert min(figures) >= max(figures) - 1
        kept = len(figures)
        assert 0 < kept < 12
        assert toy.books.aborted == 12 - kept
        assert toy.books.usage.completion_tokens == 40 * kept + 5 * (12 - kept)

    run(main())


def test_who_falls_behind_later_is_stopped_later() -> None:
    async def main() -> None:
        for seed in range(10):
            strategy = PrunedBestOfN(n=8, every=1, margin=0.45, verifier=Lines())
            model = ToyModel(drawn_by_lines, pace=jittered(seed))
            answer = await sg.solve(TASK, strategy, llm=model, seed=seed)
            whole = await sg.solve(TASK, sg.SelfConsistency(n=8), llm=ToyModel(drawn_by_lines), seed=seed)
            steps = [[int(s[-1]) for s in c.steps] for c in whole.candidates]
            left = list(range(8))
            for line in range(7):  # who has ended stays with the last figure
                at = {i: steps[i][min(line, len(steps[i]) - 1)] for i in left}
                left = [i for i in left if at[i] >= max(at.values()) - 4]
            assert [c.text for c in answer.candidates] == [whole.candidates[i].text for i in left]

    run(main())


def test_exploration_keeps_with_probability_of_softmax() -> None:
    """One of two stays: the better one with 1 / (1 + exp(-(difference of scores) / T))."""
    rows = {
        "": {"2": 0.5, "5": 0.5},
        "2": {"\n": 1.0},
        "5": {"\n": 1.0},
        "2\n": {"x": 1.0},
        "5\n": {"x": 1.0},
    }
    strategy = PrunedBestOfN(n=2, checkpoints=(1,), keep=0.5, least=1, explore=0.5, verifier=Grade())
    hits = runs = 0

    async def main() -> None:
        nonlocal hits, runs
        toy = ToyModel(rows)
        for seed in range(1500):
            inside = sg.Run({"policy": toy}, seed=seed)
            both = {
                c.text[0]
                for c in await sg.Run({"policy": toy}, seed=seed).sample(
                    strategy.prompt(TASK), 2, sampling=strategy.sampling()
                )
            }
            if len(both) == 2:
                runs += 1
                hits += (await strategy(TASK, inside)).text.startswith("5")

    asyncio.run(main())
    p = 1 / (1 + math.exp(-0.3 / 0.5))
    assert runs > 600
    assert abs(hits / runs - p) <= 4 * math.sqrt(p * (1 - p) / runs)


def settled(scores: list[list[float]], rule: Any) -> set[int]:
    """Who is out in the end, rung by rung, all scores known."""
    left = set(range(len(scores)))
    for checkpoint in range(len(scores[0])):
        at: Rule = rule(checkpoint)
        here = {i: scores[i][checkpoint] for i in left}
        if at.margin is None:
            left = set(sorted(left, key=lambda i: (-here[i], i))[: at.places])
        else:
            left = {i for i in left if here[i] >= max(here.values()) - at.margin}
    return set(range(len(scores))) - left


@pytest.mark.parametrize("margin", [None, 0.0, 0.25])
def test_what_is_certain_early_is_true_in_the_end(margin: float | None) -> None:
    rng = random.Random(1)
    early = 0
    for _ in range(300):
        n, checkpoints = rng.randint(1, 9), rng.randint(1, 4)
        places = sorted((rng.randint(1, n) for _ in range(checkpoints)), reverse=True)

        def rule(checkpoint: int, places: list[int] = places) -> Rule:
            return Rule(places[checkpoint]) if margin is None else Rule(1, margin)

        scores = [[rng.randint(0, 9) / 10 for _ in range(checkpoints)] for _ in range(n)]
        out = settled(scores, rule)
        events = [(i, c) for i in range(n) for c in range(checkpoints)]
        rng.shuffle(events)
        race = Race(n, rule, checkpoints)
        for k, (index, checkpoint) in enumerate(events):
            race.reached(index, checkpoint, scores[index][checkpoint])
            assert race.out <= out
            early += race.out == out and bool(out) and k < len(events) - 1
        assert race.out == out
    assert early > 100


def test_a_judge_that_does_not_fit_beside_the_streams_is_waited_for() -> None:
    """The budget holds the samples' worst case and no more: judges come when one has ended, and none is refused."""

    async def main() -> None:
        toy = ToyModel(pace=jittered(3))
        prompt = toy.prompt_tokens(TASK.ask(sg.ChainOfThought().instruction))
        strategy = PrunedBestOfN(n=4, max_tokens=400)
        budget = sg.Budget(tokens=4 * (prompt + 400))
        answer = await sg.solve(TASK, strategy, llm=toy, budget=budget)
        free = await sg.solve(TASK, strategy, llm=ToyModel())
        assert (answer.stopped, answer.text) == ("complete", free.text)

    run(main())


def test_prefixes_do_not_depend_on_pieces() -> None:
    text = "one\n\n two  \nthree\nfour"
    tokens = [TokenLogprob(c, 0.0) for c in text]

    def prefixes(unit: Any, sizes: Sequence[int]) -> list[tuple[int, str]]:
        found, start = [], 0
        reader = Prefixes(unit, lambda i: (1, 3, 4)[i] if i < 3 else None)
        for size in sizes:
            end = start + size
            found += reader.add(Chunk(0, text[start:end], tuple(tokens[start:end])))
            start = end
        return found

    whole = [len(text)]
    rng = random.Random(0)
    assert prefixes("line", whole) == [(0, "one"), (1, "one\n\n two  \nthree")]
    assert prefixes("token", whole) == [(0, "o"), (1, "one"), (2, "one\n")]
    for _ in range(50):
        sizes = [rng.randint(1, 6) for _ in range(len(text))]
        assert prefixes("line", sizes) == prefixes("line", whole)
        assert prefixes("token", sizes) == prefixes("token", whole)


def test_tokens_need_a_model_that_tells_them() -> None:
    toy = ToyModel(capabilities=replace(CAPABLE, logprobs=-1))
    with pytest.raises(sg.StratagemError, match="Use unit: line"):
        run(sg.solve(TASK, PrunedBestOfN(unit="token", verifier=Grade()), llm=toy))
    assert toy.books.usage.calls == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoints": [2, 2]}, "ascend"),
        ({"checkpoints": [0]}, "at least 1"),
        ({"checkpoints": []}, "at least one"),
        ({"keep": 0}, "keep"),
    ],
)
def test_bad_settings_are_told_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(sg.ConfigurationError, match=message):
        Strategy.load({"kind": "pruned_best_of_n", **settings})
