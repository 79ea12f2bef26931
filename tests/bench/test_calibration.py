"""The threshold: what any tau would have given is read off runs that drew every sample."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from stratagem.bench.calibration import calibrate, save_curve
from stratagem.bench.results import Sample
from stratagem.core.errors import DataError


def samples(*scored: tuple[float | None, bool]) -> list[Sample]:
    return [Sample("x", right, scores={} if s is None else {"judge": s}) for s, right in scored]


RUNS = [
    [samples((0.9, True), (0.2, False), (0.3, False))],
    [samples((0.2, False), (0.8, True), (0.6, False))],
    [samples((0.4, False), (0.3, False), (0.9, True))],
    [samples((0.7, False), (0.1, False), (0.5, True))],
]


@pytest.mark.parametrize(
    ("target", "tau", "mean", "accuracy"),
    [(0.3, 0.3, 1.25, 0.5), (0.6, 0.5, 1.75, 0.75), (1.0, 0.5, 1.75, 0.75)],
)
def test_the_smallest_threshold_that_keeps_the_share(
    target: float, tau: float, mean: float, accuracy: float
) -> None:
    """By hand: the first is right once in four, one of the later half three times in eight, the best of all three
    in four; 0.3 makes one more right than the first, 0.5 two."""
    found = calibrate(RUNS, "judge", target)
    chosen = found.chosen
    assert (chosen.tau, chosen.samples, chosen.accuracy) == (tau, mean, accuracy)
    assert (found.one.value, found.gain.value) == (0.375, 0.375)
    assert found.kept.value == accuracy - 0.375
    ends = found.points[0], found.points[-1]
    assert [(p.samples, p.share) for p in ends] == [(1.0, -1 / 3), (3.0, 1.0)]


def test_it_says_what_stopping_would_have_given() -> None:
    """Against the rule sample by sample, with several runs of a problem, unequal lengths and abstentions."""
    rng = random.Random(3)

    def sample() -> tuple[float | None, bool]:
        score = rng.random()
        return None if rng.random() < 0.1 else score, rng.random() < 0.3 + 0.5 * score

    runs = [
        [samples(*(sample() for _ in range(rng.randint(1, 6)))) for _ in range(rng.randint(1, 3))]
        for _ in range(60)
    ]
    found = calibrate(runs, "judge", 0.8)
    for point in found.points[:: max(1, len(found.points) // 40)]:
        means = []
        for problem in runs:
            used, right = [], []
            for run in problem:
                scores = [s.scores.get("judge", -1.0) for s in run]
                stop = next((i for i, s in enumerate(scores) if s >= point.tau), None)
                used.append(len(run) if stop is None else stop + 1)
                right.append(run[scores.index(max(scores)) if stop is None else stop].correct)
            means.append((math.fsum(used) / len(used), sum(right) / len(right)))
        assert point.samples == pytest.approx(math.fsum(m for m, _ in means) / len(means))
        assert point.accuracy == pytest.approx(math.fsum(r for _, r in means) / len(means))
    assert [p.tau for p in found.points] == sorted({p.tau for p in found.points})
    assert all(a.samples <= b.samples for a, b in zip(found.points, found.points[1:], strict=False))
    assert all(p.share < 0.8 for p in found.points if p.tau < found.chosen.tau)
    assert found.chosen.share >= 0.8


def test_no_gain_is_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match="no gain to keep a share of"):
        calibrate([[samples((0.9, False), (0.5, True))]], "judge", 0.5)
    with pytest.raises(DataError, match="no finished run"):
        calibrate([], "judge", 0.5)


def test_a_picture(tmp_path: Path) -> None:
    save_curve(calibrate(RUNS, "judge", 0.5), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
