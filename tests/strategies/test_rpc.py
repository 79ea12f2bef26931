"""RPC against the numbers of its specification, scipy's optimiser, and enumeration."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations_with_replacement, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

import stratagem as sg
from stratagem.core.errors import UnsupportedError
from stratagem.strategies._weibull import Mixture, Weibull, improbable
from stratagem.strategies.rpc import RPC, _log_weights
from stratagem.testing.toy import CAPABLE, ToyModel

# The length-normalised probability of a text is the root: its end is a second token, and certain.
TEXTS = {
    "The answer is 1.": 0.36,
    "So the answer is 2.": 0.0625,
    "Hence the answer is 2.": 0.0576,
    "It follows that the answer is 2.": 0.2,
    "I do not know.": 0.3199,
}
ANSWER = {text: text[-2] if text[-2].isdigit() else None for text in TEXTS}


def answers(strategy: RPC, runs: int, model: ToyModel) -> list[sg.Answer]:
    async def main() -> list[sg.Answer]:
        return [await sg.solve("Which?", strategy, llm=model, seed=seed) for seed in range(runs)]

    return asyncio.run(main())


def within_4_standard_errors(count: int, p: float, runs: int) -> bool:
    return abs(count / runs - p) <= 4 * math.sqrt(p * (1 - p) / runs) + 1e-12


def test_identical_texts_count_once() -> None:
    """Test 1 of the specification: A 0.60, and the same again, B 0.25, B 0.24."""
    a, b, c, *_ = TEXTS
    drawn = sorted([a, a, b, c])
    of_these = (
        answer
        for answer in answers(RPC(n=4), 2000, ToyModel({"": TEXTS}))
        if sorted(c.text for c in answer.candidates) == drawn
    )
    answer = next(of_these)
    assert answer.value == "1"
    assert answer.confidence == pytest.approx(0.60 / (0.60 + 0.25 + 0.24))
    assert sorted(c.scores["rpc"] for c in answer.candidates) == pytest.approx([0.24, 0.25, 0.6, 0.6])


def test_two_populations_are_told_apart() -> None:
    """Test 2 of the specification."""
    rng = random.Random(5)
    high = [min(1.0, rng.weibullvariate(0.9, 8)) for _ in range(40)]
    low = [min(1.0, rng.weibullvariate(0.3, 8)) for _ in range(24)]
    fitted = Mixture.fitted(high + low)
    assert fitted.high.mean == pytest.approx(0.87, abs=0.04)
    assert fitted.low.mean == pytest.approx(0.29, abs=0.03)
    assert fitted.weight == pytest.approx(0.6, abs=0.05)
    ps = high + low
    gone, mean = improbable(ps), math.fsum(ps) / len(ps)
    assert {i for i, p in enumerate(ps) if p < 0.4} <= gone
    assert all(ps[i] < mean for i in gone)


def test_equal_probabilities_are_a_majority_of_distinct_texts() -> None:
    """Test 3 of the specification."""
    same = dict.fromkeys(["The answer is 1.", "The answer is 2.", "So the answer is 2.", "Or 2."], 0.25)
    for answer in answers(RPC(n=10), 50, ToyModel({"": same})):
        texts = {c.text for c in answer.candidates}
        twos = len(texts - {"The answer is 1."})
        assert answer.confidence == pytest.approx(max(twos, 1) / len(texts))
        assert all(c.scores["rpc"] == pytest.approx(0.5) for c in answer.candidates)  # none is pruned
        if twos >= 2:
            assert answer.value == "2"
    assert improbable([0.1] * 3) == set()


@pytest.mark.parametrize(("shape", "scale"), [(2.0, 1.0), (8.0, 0.3), (1.3, 1.5)])
def test_the_density_integrates_to_one_and_has_its_mean(shape: float, scale: float) -> None:
    """Test 4 of the specification."""
    density = Weibull(shape, scale)

    def moment(power: int) -> float:
        return float(integrate.quad(lambda x: x**power * math.exp(density.log_density(x)), 1e-12, 60)[0])

    assert moment(0) == pytest.approx(1, abs=1e-6)
    assert moment(1) == pytest.approx(density.mean, rel=1e-5)
    assert Weibull(2.0, 1.0).mean == pytest.approx(0.8862, abs=1e-4)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_pruning_never_removes_all_nor_what_is_above_the_mean(ps: list[float]) -> None:
    """Test 5 of the specification."""
    gone = improbable(ps)
    assert len(gone) < len(ps)
    assert all(ps[i] < math.fsum(ps) / len(ps) for i in gone)


def density(x: np.ndarray, w: float, k1: float, l1: float, k2: float, l2: float) -> np.ndarray:
    one, other = stats.weibull_min.pdf(x, k1, scale=l1), stats.weibull_min.pdf(x, k2, scale=l2)
    return np.asarray(w * one + (1 - w) * other)


@pytest.mark.parametrize("seed", range(12))
def test_the_fit_is_as_good_as_scipy_s(seed: int) -> None:
    rng = random.Random(seed)
    n = rng.choice([16, 40, 64])
    xs = [min(1.0, rng.weibullvariate(0.9, 8)) for _ in range(n * 5 // 8)]
    xs += [min(1.0, rng.weibullvariate(0.3, 8)) for _ in range(n - len(xs))]
    data = np.array(xs)

    def loss(at: Sequence[float]) -> float:
        return -float(np.log(np.maximum(density(data, *at), 1e-300)).sum())

    start = (0.5, 1, 1, 1.5, 2)  # start and bounds of the specification
    found = optimize.minimize(loss, start, method="L-BFGS-B", bounds=[(0.2, 0.8), *[(0.01, None)] * 4])
    ours = Mixture.fitted(xs)
    at = (ours.weight, ours.high.shape, ours.high.scale, ours.low.shape, ours.low.scale)
    assert loss(at) <= found.fun + 1e-4
    slopes = np.asarray(optimize.approx_fprime(np.array(at), loss, 1e-7))
    inside = [0.2 < ours.weight < 0.8, True, True, True, True]
    assert all(abs(s) < 0.05 * n for s, free in zip(slopes, inside, strict=True) if free)


def winner(drawn: Sequence[str], gone: set[int]) -> str | None:
    """The vote of the docstring, said again."""
    kept = {text for i, text in enumerate(drawn) if i not in gone}
    totals: Counter[str] = Counter()
    for text in sorted(kept):
        if (answer := ANSWER[text]) is not None:
            totals[answer] += math.sqrt(TEXTS[text])  # type: ignore[assignment]
    return max(totals, key=lambda a: (totals[a], -[ANSWER[t] for t in drawn].index(a)), default=None)


def agrees(strategy: RPC, exact: Mapping[str | None, float], runs: int) -> None:
    found = Counter(answer.value for answer in answers(strategy, runs, ToyModel({"": TEXTS})))
    assert found.keys() <= exact.keys()
    for value, p in exact.items():
        assert within_4_standard_errors(found[value], p, runs), (value, found[value] / runs, p)


def test_perplexity_consistency_agrees_with_enumeration() -> None:
    exact: Counter[str | None] = Counter()
    for drawn in product(TEXTS, repeat=4):
        exact[winner(drawn, set())] += math.prod(TEXTS[t] for t in drawn)  # type: ignore[assignment]
    agrees(RPC(n=4, prune=False), exact, 1000)
    agrees(RPC(n=4), exact, 300)  # too few to be pruned


def test_rpc_agrees_with_enumeration() -> None:
    exact: Counter[str | None] = Counter()
    for drawn in combinations_with_replacement(TEXTS, 8):  # no two scores are equal: order decides nothing
        counts = Counter(drawn)
        orders = math.factorial(8) // math.prod(map(math.factorial, counts.values()))
        gone = improbable([math.sqrt(TEXTS[t]) for t in drawn])
        exact[winner(drawn, gone)] += orders * math.prod(TEXTS[t] for t in drawn)  # type: ignore[assignment]
    agrees(RPC(n=8), exact, 400)


def test_equality_of_a_verifier_pools_the_probability_of_equal_answers() -> None:
    model = ToyModel({"": {"The answer is 1/2.": 0.3, "The answer is 0.5.": 0.3, "The answer is 3.": 0.4}})
    joined = Counter(one.value for one in answers(RPC(n=15, prune=False, equality=sg.Math()), 20, model))
    apart = Counter(one.value for one in answers(RPC(n=15, prune=False), 20, model))
    assert apart["3"] > 15  # sqrt 0.4 against sqrt 0.3
    assert joined["3"] == 0  # against twice that


def test_a_model_without_log_probabilities_is_refused_before_it_is_asked() -> None:
    model = ToyModel(capabilities=replace(CAPABLE, logprobs=-1))
    with pytest.raises(UnsupportedError, match=r"gives no log-probabilities, by which rpc .* Use a backend"):
        sg.solve_sync("Which?", RPC(n=4), llm=model)
    assert model.books.usage.calls == 0


def test_a_copy_that_is_pruned_does_not_silence_one_that_is_not() -> None:
    """A server may give equal texts probabilities that differ; the first one that stays counts."""

    def drawn(text: str, p: float) -> sg.Candidate:
        return sg.Candidate(text, text, token_count=1, logprob=math.log(p))

    three = [drawn("a", 0.3), drawn("a", 0.35), drawn("b", 0.9)]
    for gone, expected in (({0}, [0.0, 0.35, 0.9]), (set[int](), [0.3, 0.0, 0.9]), ({0, 1}, [0.0, 0.0, 0.9])):
        assert [math.exp(w) for w in _log_weights(three, gone)] == pytest.approx(expected)
