"""Statistics against enumeration, hand-made cases and known distributions."""

import itertools
import math
import random

import numpy as np
import pytest

from stratagem.bench.statistics import (
    area_under_curve,
    best_at_k,
    bootstrap_mean,
    bootstrap_means,
    calibration_bins,
    expected_calibration_error,
    majority_at_k,
    paired_difference,
    pass_at_k,
    share,
)


def test_bootstrap_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    trials, size = 600, 120
    for level in (0.8, 0.95):
        hits = 0
        for trial in range(trials):
            # Accuracy of three seeds on problems of different difficulty, whose mean is 0.6.
            difficulty = rng.beta(3, 2, size)
            right = rng.binomial(3, difficulty) / 3
            found = bootstrap_mean(right, level=level, resamples=400, seed=trial)
            hits += found.low <= 0.6 <= found.high
        error = math.sqrt(level * (1 - level) / trials)
        assert abs(hits / trials - level) < 4 * error + 0.01  # 400 resamples and 120 rows cost a little


def test_bootstrap_width_is_that_of_the_normal_limit() -> None:
    values = np.random.default_rng(2).normal(5, 2, 400)
    found = bootstrap_mean(values)
    expected = 1.96 * values.std() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.value == pytest.approx(expected, rel=0.05)
    assert found.value - found.low == pytest.approx(expected, rel=0.05)


def test_a_share_of_all_or_none_has_an_interval_too() -> None:
    """Clopper and Pearson: 6 of 6 is at least 0.541 at 95 %, 0 of 6 at most 0.459 (tables)."""
    for values, low, high in (([1.0] * 6, 0.5407, 1.0), ([0.0] * 6, 0.0, 0.4593)):
        found = share(bootstrap_mean(values))
        assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    some = bootstrap_mean([0.0, 1.0, 1.0])
    assert share(some) == some


def test_bootstrap_is_seeded_and_independent_of_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).random((50, 2))
    whole = bootstrap_means(values)
    assert whole == bootstrap_means(values)
    assert whole != bootstrap_means(values, seed=1)
    monkeypatch.setattr("stratagem.bench.statistics._BLOCK", 1000)
    assert bootstrap_means(values) == whole


def test_missing_values_leave_their_row_out_of_their_column_only() -> None:
    both = bootstrap_means([[1.0, 0.0], [math.nan, 1.0], [0.0, 0.0], [1.0, 1.0]])
    assert both[0].size == 3
    assert both[0].value == pytest.approx(2 / 3)
    assert both[1].size == 4
    assert both[1].value == 0.5
    assert math.isnan(bootstrap_mean([math.nan]).value)
    assert not bootstrap_mean([]).excludes_zero


def test_paired_differences_are_narrower_than_independent_ones_and_signed() -> None:
    rng = np.random.default_rng(4)
    hardness = rng.random(300)
    a, b = (hardness > 0.3).astype(float), (hardness > 0.4).astype(float)
    paired = paired_difference(a, b)
    assert paired.value == pytest.approx((a - b).mean())
    assert paired.excludes_zero
    assert paired.low > 0
    apart = [bootstrap_mean(x) for x in (a, b)]
    independent = math.hypot(*(e.high - e.low for e in apart))
    assert paired.high - paired.low < 0.6 * independent
    swapped = paired_difference(b, a)
    assert swapped.value == -paired.value
    # Exactly equal strategies are no different, whatever they score.
    assert paired_difference(a, a).low == paired_difference(a, a).high == 0.0


def test_pass_at_k_is_the_share_of_draws_with_a_right_one() -> None:
    for n, c, k in itertools.product(range(1, 8), range(8), range(1, 8)):
        if c > n:
            continue
        found = pass_at_k(n, c, k)[()]
        if k > n:
            assert math.isnan(found)
            continue
        draws = list(itertools.combinations(range(n), k))
        assert found == pytest.approx(sum(min(d) < c for d in draws) / len(draws))


def test_pass_at_k_broadcasts_and_stays_exact_where_binomials_overflow_floats() -> None:
    found = pass_at_k([10_000, 10_000, 10_000], [0, 1, 10_000], 5_000)
    assert found[0] == 0.0
    assert found[1] == pytest.approx(0.5)
    assert found[2] == 1.0
    with pytest.raises(ValueError, match="c does not lie"):
        pass_at_k(3, 4, 1)
    with pytest.raises(ValueError, match="k = 0"):
        pass_at_k(3, 1, 0)


def majority_by_enumeration(answers: list[str | None], correct: list[bool], k: int) -> float:
    won = 0.0
    draws = list(itertools.combinations(range(len(answers)), k))
    for draw in draws:
        votes: dict[str, int] = {}
        for i in draw:
            answer = "right" if correct[i] else answers[i]
            if answer is not None:
                votes[answer] = votes.get(answer, 0) + 1
        best = [a for a, count in votes.items() if count == max(votes.values())]
        won += ("right" in best) / len(best) if best else 0.0
    return won / len(draws)


def test_best_at_k_is_the_mean_over_all_draws() -> None:
    rng = random.Random(5)
    for _ in range(20):
        size = rng.randint(1, 7)
        scores = [rng.choice([-1.0, 0.2, 0.5, 0.9]) for _ in range(size)]
        correct = [rng.random() < 0.5 for _ in range(size)]
        for k in range(1, size + 1):
            values = []
            for draw in itertools.combinations(range(size), k):
                top = max(scores[i] for i in draw)
                tied = [correct[i] for i in draw if scores[i] == top]
                values.append(sum(tied) / len(tied))
            assert best_at_k(scores, correct, k) == pytest.approx(sum(values) / len(values))
    assert math.isnan(best_at_k([0.5], [True], 2))
    with pytest.raises(ValueError, match="2 scores but 1"):
        best_at_k([0.5, 0.5], [True], 1)


def test_majority_at_k_is_the_mean_over_all_draws() -> None:
    rng = random.Random(5)
    for _ in range(150):
        answers = [rng.choice(["a", "b", "c", "d", None]) for _ in range(rng.randint(1, 9))]
        correct = [a in ("a", "d") for a in answers]  # two spellings of the right answer are one class
        k = rng.randint(1, len(answers))
        expected = majority_by_enumeration(answers, correct, k)
        assert majority_at_k(answers, correct, k) == pytest.approx(expected)


def test_majority_of_all_samples_is_the_vote_and_of_too_few_is_unknown() -> None:
    answers = ["7"] * 5 + ["8"] * 4 + [None] * 7
    assert majority_at_k(answers, [a == "7" for a in answers], 16) == 1.0
    assert majority_at_k(answers, [a == "8" for a in answers], 16) == 0.0
    assert math.isnan(majority_at_k(["7"], [True], 2))


def test_calibration_error_of_a_hand_made_case() -> None:
    probability = [0.05, 0.15, 0.15, 0.95, 0.95, 0.95, 0.95]
    outcome = [0, 1, 0, 1, 1, 1, 0]
    # Bins of width 0.1: |0 - 0.05| of one, |0.5 - 0.15| of two, |0.75 - 0.95| of four.
    expected = (1 * 0.05 + 2 * 0.35 + 4 * 0.2) / 7
    assert expected_calibration_error(probability, outcome) == pytest.approx(expected)
    # Two parts of equal mass, 4 and 3; equal predictions share their outcomes: 0.95s are right 0.75 of the time.
    low = abs((0.05 + 0.15 + 0.15 + 0.95) / 4 - (0 + 0.5 + 0.5 + 0.75) / 4)
    expected = (4 * low + 3 * abs(0.95 - 0.75)) / 7
    found = expected_calibration_error(probability, outcome, bins=2, binning="mass")
    assert found == pytest.approx(expected)


def test_edges_of_bins_belong_to_the_bin_below() -> None:
    for i in range(1, 11):
        edge = i / 10
        bins = calibration_bins([edge, edge - 0.05], [1, 0])
        assert [b.size for b in bins] == [2], edge
    assert [b.size for b in calibration_bins([0.0, 1.0], [0, 1])] == [1, 1]


def test_a_calibrated_forecaster_has_little_error_and_order_does_not_matter() -> None:
    rng = np.random.default_rng(6)
    p = rng.random(40_000).round(2)
    y = rng.random(40_000) < p
    for binning in ("width", "mass"):
        error = expected_calibration_error(p, y, binning=binning)
        assert error < 0.012
        order = rng.permutation(len(p))
        assert expected_calibration_error(p[order], y[order], binning=binning) == pytest.approx(error)
        skewed = expected_calibration_error(p**2, y, binning=binning)
        assert skewed == pytest.approx(np.abs(p - p**2).mean(), abs=0.012)
    assert math.isnan(expected_calibration_error([], []))


def test_area_under_the_curve_is_the_share_of_pairs_in_order() -> None:
    rng = random.Random(7)
    for _ in range(100):
        score = [rng.randint(0, 5) / 5 for _ in range(rng.randint(2, 20))]
        outcome = [rng.randint(0, 1) for _ in score]
        pairs = [
            (s > t) + 0.5 * (s == t)
            for s, right in zip(score, outcome, strict=True)
            if right
            for t, other in zip(score, outcome, strict=True)
            if not other
        ]
        found = area_under_curve(score, outcome)
        if pairs:
            assert found == pytest.approx(sum(pairs) / len(pairs))
        else:
            assert math.isnan(found)


@pytest.mark.parametrize(
    ("probability", "outcome", "message"),
    [([0.5], [1, 0], "shape"), ([math.nan], [1], "NaN"), ([1.5], [1], "outside")],
)
def test_predictions_that_are_none_are_refused(
    probability: list[float], outcome: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(probability, outcome)
