"""The threshold of adaptive sampling, from runs in which every sample was drawn and scored.

Where samples are drawn in order until one scores at least tau, a run that draws all of them says what any tau would
have given: its first sample that reaches tau, or else the best. So one set of runs tries every threshold on the
same samples. (Manvi, Singh, Ermon 2024, arXiv 2410.02725.)

The gain is that over one plain sample, which is what best-of-n is measured against. The first sample of an annealed
run is none: it is greedy, and can alone be better than most. The later half of a run is drawn at all but the full
temperature, and its mean accuracy is that of one plain sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stratagem.bench.results import Sample
from stratagem.bench.statistics import Array, Estimate, bootstrap_mean, paired_difference
from stratagem.core.errors import DataError, MissingExtraError

_MOST = 400  # thresholds that are tried


@dataclass(frozen=True, slots=True)
class Point:
    """What a threshold gives: means over problems."""

    tau: float
    samples: float  # that count, of each problem
    accuracy: float
    share: float  # of what all samples gain over a plain one


@dataclass(frozen=True, slots=True)
class Calibration:
    """Thresholds by what they give, and the smallest that gives the share asked for."""

    points: tuple[Point, ...]  # ascending by tau, from one sample to all
    chosen: Point
    one: Estimate  # accuracy of one plain sample
    gain: Estimate  # of all samples over a plain one
    kept: Estimate  # of the chosen threshold over a plain one


def calibrate(runs: Sequence[Sequence[Sequence[Sample]]], verifier: str, target: float) -> Calibration:
    """The smallest threshold that keeps the share ``target`` of the gain of drawing all samples.

    Args:
        runs: by problem, its runs; of each run all samples, in order, with the scores of ``verifier``. One that
            has no score is never good enough.
        target: in (0, 1].

    Raises:
        DataError: there is no run, or all samples gain nothing over a plain one.
    """
    flat = [run for problem in runs for run in problem]
    if not flat:
        raise DataError("There is no finished run to calibrate by.")
    width = max(map(len, flat))
    scores, right = np.full((len(flat), width), -1.0), np.zeros((len(flat), width))
    for row, run in enumerate(flat):
        scores[row, : len(run)] = [sample.scores.get(verifier, -1.0) for sample in run]
        right[row, : len(run)] = [sample.correct for sample in run]
    lengths = np.array([len(run) for run in flat])
    problem = np.repeat(np.arange(len(runs)), [len(of) for of in runs])

    def outcome(tau: float) -> tuple[Array, Array]:
        """Per problem: how many samples count, and how often the one chosen is right."""
        good = scores >= tau
        stop = np.where(good.any(axis=1), good.argmax(axis=1), lengths - 1)
        chosen = np.where(good.any(axis=1), stop, scores.argmax(axis=1))
        return _means(stop + 1.0, problem), _means(right[np.arange(len(flat)), chosen], problem)

    later = (np.arange(width) >= lengths[:, None] // 2) & (np.arange(width) < lengths[:, None])
    one, best = _means((right * later).sum(axis=1) / later.sum(axis=1), problem), outcome(np.inf)[1]
    gain = float(best.mean() - one.mean())
    if gain <= 0:
        raise DataError(
            f"The best of {width} samples by {verifier} is right in {best.mean():.1%} of the runs, a plain one "
            f"in {one.mean():.1%}: there is no gain to keep a share of.",
            remedy="Use another verifier, a stronger model as judge, or more problems.",
        )
    tried = [(float(tau), *outcome(tau)) for tau in _thresholds(scores)]
    points = [
        Point(tau, float(samples.mean()), float(correct.mean()), float(correct.mean() - one.mean()) / gain)
        for tau, samples, correct in tried
    ]
    index = next(i for i, point in enumerate(points) if point.share >= target)
    return Calibration(
        tuple(points),
        points[index],
        bootstrap_mean(one),
        paired_difference(best, one),
        paired_difference(tried[index][2], one),
    )


def _thresholds(scores: Array) -> Array:
    """0, scores that occur, and one that none reaches."""
    found = np.unique(scores[scores >= 0])
    if len(found) > _MOST:
        found = np.quantile(found, np.linspace(0, 1, _MOST), method="nearest")
    return np.unique([0.0, *found, 2.0])


def _means(values: Array, problem: NDArray[np.intp]) -> Array:
    """Over each problem's runs."""
    totals, sizes = np.bincount(problem, weights=values), np.bincount(problem)
    return np.asarray(totals[sizes > 0] / sizes[sizes > 0], dtype=np.float64)


def save_curve(calibration: Calibration, path: Path | str) -> None:
    """A picture of accuracy against samples; the suffix says the format (png, svg, pdf).

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "bench") from None
    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    axes = figure.subplots()
    points, chosen = calibration.points, calibration.chosen
    axes.plot([p.samples for p in points], [100 * p.accuracy for p in points], color="#0072b2", linewidth=1.6)
    axes.plot([chosen.samples], [100 * chosen.accuracy], "o", color="#d55e00", markersize=8)
    axes.annotate(
        f"tau = {chosen.tau:.4g}",
        (chosen.samples, 100 * chosen.accuracy),
        (9, -4),
        textcoords="offset points",
    )
    axes.set_xlabel("Samples per problem")
    axes.set_ylabel("Accuracy, %")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=160)
