"""Early-stopping consistency: the posterior against known values, the vote against enumeration, nothing wasted."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest

import stratagem as sg
from stratagem.core.protocols import Strategy
from stratagem.strategies._stopping import beta, dirichlet, labels, least
from stratagem.strategies.early_stopping_consistency import EarlyStoppingConsistency
from stratagem.testing.loops import run
from stratagem.testing.toy import ToyModel, jittered

TASK = sg.Task.of("Which?")
ANSWERS = {"The answer is 1.": 0.6, "The answer is 2.": 0.25, "The answer is 3.": 0.15}


@pytest.mark.parametrize(
    ("votes", "p"),
    [((3,), 1 - 2**-4), ((4,), 1 - 2**-5), ((4, 0), 1 - 2**-5), ((5, 1), 1 - 8 / 128), ((2, 2), 0.5)],
)
def test_beta_is_the_tail_of_a_binomial(votes: tuple[int, ...], p: float) -> None:
    assert beta(votes) == pytest.approx(p, abs=1e-12)


def test_dirichlet_of_one_class_is_beta_and_of_more_is_less() -> None:
    for first in range(12):
        assert dirichlet((first,)) == pytest.approx(beta((first, 0)), abs=2e-6)
        for second in range(first + 1):
            assert dirichlet((first, second)) < beta((first, second))


def test_dirichlet_agrees_with_simulation() -> None:
    rng, votes, runs = random.Random(0), (5, 3, 1), 40_000
    hits = 0
    for _ in range(runs):
        first, *others = (rng.gammavariate(v + 1, 1) for v in (*votes, 0))
        hits += first > max(others)
    p = dirichlet(votes)
    assert abs(hits / runs - p) < 4 * math.sqrt(p * (1 - p) / runs)


def stops(texts: Sequence[str], confidence: float) -> int:
    """The rule written down once more, sample by sample."""
    for k in range(1, len(texts) + 1):
        ranked = [count for _, count in Counter(texts[:k]).most_common()] + [0]
        left = len(texts) - k
        a, b = ranked[0] + 1, ranked[1] + 1
        tail = sum(math.comb(a + b - 1, j) for j in range(b, a + b)) / 2 ** (a + b - 1)
        if ranked[0] - ranked[1] > left or tail >= confidence:
            return k
    return len(texts)


@pytest.mark.parametrize("confidence", [0.7, 0.9])
def test_it_agrees_with_enumeration(confidence: float) -> None:
    exact: Counter[tuple[str, int]] = Counter()
    for texts in product(ANSWERS, repeat=6):
        k = stops(texts, confidence)
        drawn = texts[:k]
        winner = max(drawn, key=lambda a: (drawn.count(a), -drawn.index(a)))
        exact[winner, k] += math.prod(ANSWERS[text] for text in texts)  # type: ignore[assignment]
    strategy = EarlyStoppingConsistency(n=6, confidence=confidence)
    toy, runs = ToyModel({"": ANSWERS}), 1200

    async def main() -> Counter[tuple[str, int]]:
        answers = [await strategy(TASK, sg.Run({"policy": toy}, seed=seed)) for seed in range(runs)]
        return Counter((answer.text, len(answer.candidates)) for answer in answers)

    found = asyncio.run(main())
    assert sum(exact.values()) == pytest.approx(1)
    assert found.keys() <= exact.keys()
    for outcome, p in exact.items():
        assert abs(found[outcome] / runs - p) <= 4.5 * math.sqrt(p * (1 - p) / runs), outcome


def test_its_samples_are_the_first_of_self_consistency() -> None:
    async def main() -> None:
        for seed in range(10):
            stopped = await sg.solve(TASK, EarlyStoppingConsistency(n=32), llm=ToyModel(), seed=seed)
            whole = await sg.solve(TASK, sg.SelfConsistency(n=32), llm=ToyModel(), seed=seed)
            k = len(stopped.candidates)
            assert [c.text for c in stopped.candidates] == [c.text for c in whole.candidates][:k]
            assert k == stops([str(c.answer) for c in whole.candidates], 0.95)

    run(main())


@pytest.mark.parametrize("posterior", ["beta", "dirichlet"])
def test_nothing_is_decoded_that_does_not_count(posterior: Any) -> None:
    async def main() -> list[int]:
        sizes: list[int] = []
        for seed in range(20):
            toy = ToyModel(pace=jittered(seed, most=9))
            strategy = EarlyStoppingConsistency(n=32, posterior=posterior)
            answer = await sg.solve(TASK, strategy, llm=toy, seed=seed)
            assert answer.usage.completion_tokens == sum(c.token_count for c in answer.candidates)
            assert toy.books.aborted == 0
            sizes.append(len(answer.candidates))
        return sizes

    sizes = run(main())
    assert min(sizes) >= 4
    assert sum(sizes) < 0.6 * 32 * len(sizes)


def test_ahead_trades_tokens_for_time_and_what_is_in_flight_is_aborted() -> None:
    rows = {"": {"a ": 0.5, "b ": 0.5}} | {
        w + "so " * k: {"so ": 0.8, "1.": 0.15, "2.": 0.05} for w in ("a ", "b ") for k in range(60)
    }

    async def main(ahead: int, seed: int) -> tuple[str | None, int, float, int, int]:
        async def pace(_: object) -> None:
            await asyncio.sleep(1)

        toy = ToyModel(rows, pace=pace)
        strategy = EarlyStoppingConsistency(n=32, ahead=ahead, max_tokens=64)
        answer = await sg.solve(TASK, strategy, llm=toy, seed=seed)
        assert toy.books.in_flight == 0
        assert answer.usage == toy.books.usage
        seconds = asyncio.get_running_loop().time()
        return (
            answer.text,
            len(answer.candidates),
            seconds,
            toy.books.aborted,
            toy.books.usage.completion_tokens,
        )

    lean = [run(main(0, seed)) for seed in range(8)]
    quick = [run(main(8, seed)) for seed in range(8)]
    assert [each[:2] for each in lean] == [each[:2] for each in quick]  # the same samples count
    assert all(q[2] <= one[2] for q, one in zip(quick, lean, strict=True))
    assert sum(q[2] for q in quick) < 0.9 * sum(one[2] for one in lean)
    assert sum(q[4] for q in quick) > sum(one[4] for one in lean)
    assert sum(one[3] for one in lean) == 0 < sum(q[3] for q in quick)


def test_what_is_certainly_needed_begins_at_once() -> None:
    """Four that agree decide at 0.95: they run side by side, and take as long as one."""

    async def main() -> tuple[float, int, int]:
        async def pace(_: object) -> None:
            await asyncio.sleep(1)

        toy = ToyModel({"": {"The answer is 7.": 1.0}}, pace=pace)
        answer = await sg.solve(TASK, EarlyStoppingConsistency(n=32), llm=toy)
        assert (answer.value, answer.confidence) == ("7", 1.0)
        return asyncio.get_running_loop().time(), len(answer.candidates), toy.books.usage.calls

    assert run(main()) == (2.0, 4, 1)


def test_a_slow_sample_holds_up_nobody() -> None:
    """Answers that came before it are counted: it is seen that more will be needed, and they begin."""
    known = {1: 1, 2: 2, 3: 3}
    assert least({}, 32, beta, 0.95) == 4
    assert least(known, 32, beta, 0.95) > 6  # whatever sample 0 will say
    assert least({**known, 0: 1}, 32, beta, 0.95) == least(known, 32, beta, 0.95)


def test_the_rest_that_cannot_change_the_winner_is_not_drawn() -> None:
    answer = run(
        sg.solve(TASK, EarlyStoppingConsistency(n=5, confidence=0.999), llm=ToyModel({"": {"It is 4.": 1.0}}))
    )
    assert (answer.value, len(answer.candidates)) == ("4", 3)


def test_answers_that_cannot_be_extracted_do_not_vote() -> None:
    model = ToyModel({"": {"I cannot say.": 0.7, "The answer is 7.": 0.3}})
    answer = run(sg.solve(TASK, EarlyStoppingConsistency(n=32), llm=model, seed=3))
    votes = sum(c.answer == "7" for c in answer.candidates)
    assert (answer.value, votes) == ("7", 4)
    assert answer.confidence == pytest.approx(4 / len(answer.candidates))
    nobody = run(sg.solve(TASK, EarlyStoppingConsistency(n=8), llm=ToyModel({"": {"Who knows.": 1.0}})))
    assert (nobody.value, len(nobody.candidates)) == (None, 8)


def test_equality_of_a_verifier_joins_classes() -> None:
    """In the order of the samples: what comes later changes no class."""
    near = {("1", "2"), ("2", "3")}
    answers = {0: "1", 1: "3", 2: "2", 3: None, 4: "1"}
    assert labels(answers, lambda a, b: (a, b) in near) == {0: 0, 1: 1, 2: 0, 3: None, 4: 0}
    assert labels(answers, None) == {0: 0, 1: 1, 2: 2, 3: None, 4: 0}

    async def main() -> tuple[int, int]:
        model = ToyModel({"": {"The answer is 1/2.": 0.5, "The answer is 0.5.": 0.5}})
        apart = await sg.solve(TASK, EarlyStoppingConsistency(n=16), llm=model, seed=2)
        joined = await sg.solve(TASK, EarlyStoppingConsistency(n=16, equality=sg.Math()), llm=model, seed=2)
        assert joined.confidence == 1.0
        return len(joined.candidates), len(apart.candidates)

    joined, apart = run(main())
    assert joined == 4 < apart


def test_a_budget_for_some_samples_votes_among_them() -> None:
    toy = ToyModel({"": ANSWERS})
    strategy = EarlyStoppingConsistency(n=32, confidence=0.99, max_tokens=64)
    answer = run(sg.solve(TASK, strategy, llm=toy, budget=sg.Budget(tokens=150)))
    whole = run(sg.solve(TASK, sg.SelfConsistency(n=32, max_tokens=64), llm=ToyModel({"": ANSWERS})))
    k = len(answer.candidates)
    assert 4 < k < 16
    assert answer.stopped == "budget"
    assert not Counter(c.text for c in answer.candidates) - Counter(c.text for c in whole.candidates)


@pytest.mark.parametrize("confidence", [0.5, 1.0])
def test_a_confidence_that_cannot_be_is_told_at_once(confidence: float) -> None:
    with pytest.raises(sg.ConfigurationError, match="confidence"):
        Strategy.load({"kind": "early_stopping_consistency", "confidence": confidence})
