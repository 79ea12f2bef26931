"""Statistics of repeated, graded answers. Everything is deterministic given its arguments."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_BLOCK = 1_000_000  # indices drawn at once: bounds the memory of a bootstrap


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its confidence interval; NaN where there is nothing to estimate from."""

    value: float
    low: float
    high: float
    size: int  # problems

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def bootstrap_means(
    values: ArrayLike, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> list[Estimate]:
    """Mean of each column with its percentile bootstrap interval over rows.

    Rows are drawn with replacement, ``resamples`` times; the interval runs between the (1 - level) / 2 and
    (1 + level) / 2 quantiles of the resampled means. The same rows are drawn for all columns. (Efron &
    Tibshirani 1993, An Introduction to the Bootstrap, ch. 13.)

    Args:
        values: shape (problems, columns); each problem's mean over seeds, so that runs on one problem, which
            are not independent, count as one observation. NaN marks a missing value: its row is left out of
            that column.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"values has shape {table.shape}; (problems, columns) is expected")
    if not 0 < level < 1:
        raise ValueError(f"level = {level} is not between 0 and 1")
    if np.isnan(table).any():
        return [
            estimate
            for column in table.T
            for estimate in _means(column[~np.isnan(column)][:, None], level, resamples, seed)
        ]
    return _means(table, level, resamples, seed)


def bootstrap_mean(
    values: ArrayLike, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """Mean of values of shape (problems,); see :func:`bootstrap_means`."""
    column = np.asarray(values, dtype=np.float64)[:, None]
    return bootstrap_means(column, level=level, resamples=resamples, seed=seed)[0]


def share(estimate: Estimate, level: float = 0.95) -> Estimate:
    """The same share of problems, with an interval also where it is 0 or 1, of which a bootstrap has none: Clopper
    and Pearson's, from 1 to ((1 - level) / 2)^(1 / problems), or what is left of 1 by that."""
    if estimate.value not in (0.0, 1.0) or not estimate.size:
        return estimate
    bound = ((1 - level) / 2) ** (1 / estimate.size)
    low, high = (bound, 1.0) if estimate.value else (0.0, 1 - bound)
    return Estimate(estimate.value, low, high, estimate.size)


def paired_difference(
    a: ArrayLike, b: ArrayLike, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """Mean of a - b over the problems that both have, each of shape (problems,).

    Resampling differences keeps a and b on the same problems, so that what makes a problem hard for both
    cancels out.
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return bootstrap_mean(difference, level=level, resamples=resamples, seed=seed)


def _means(table: Array, level: float, resamples: int, seed: int) -> list[Estimate]:
    size, columns = table.shape
    if not size:
        return [Estimate(math.nan, math.nan, math.nan, 0)] * columns
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, columns))
    step = max(1, _BLOCK // size)
    for start in range(0, resamples, step):
        rows = rng.integers(size, size=(min(step, resamples - start), size))
        rows += np.arange(len(rows))[:, None] * size
        drawn = np.bincount(rows.ravel(), minlength=rows.size).reshape(rows.shape)  # how often, row by row
        # Not by BLAS, whose last digits depend on its threads.
        means[start : start + len(rows)] = np.einsum("rp,pc->rc", drawn.astype(np.float64), table) / size
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    centre = table.mean(axis=0)
    return [Estimate(float(c), float(a), float(b), size) for c, a, b in zip(centre, low, high, strict=True)]


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> Array:
    """Unbiased estimate of the chance that one of k samples is right, from c right ones of n.

    1 - C(n - c, k) / C(n, k), as the product 1 - prod_{i=n-c+1}^{n} (1 - k / i) (Chen et al. 2021, arXiv
    2107.03374, eq. 1). Arrays broadcast; NaN where n < k.
    """
    if k < 1:
        raise ValueError(f"k = {k} is below 1")
    total, right = np.broadcast_arrays(np.asarray(n, dtype=np.int64), np.asarray(c, dtype=np.int64))
    if ((right < 0) | (right > total)).any():
        raise ValueError("c does not lie between 0 and n")
    out = np.empty(total.shape)
    for index in np.ndindex(total.shape):
        size, good = int(total[index]), int(right[index])
        if size < k:
            out[index] = np.nan
        elif size - good < k:
            out[index] = 1.0
        else:
            out[index] = 1.0 - np.prod(1.0 - k / np.arange(size - good + 1, size + 1))
    return out


def majority_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int) -> float:
    """Expected accuracy of a majority vote over k of these samples, drawn without replacement; exact.

    All right answers are one class, wrong ones are classed by their text, ``None`` does not vote, and a tie
    is won by each of its t classes with chance 1 / t. For the count m of right votes and t - 1 classes tied
    with them the number of such draws is the coefficient of x^(k-m) y^(t-1) in

        C(c, m) * prod_j (sum_{i<m} C(s_j, i) x^i + y C(s_j, m) x^m) * (1 + x)^u

    with c right samples, s_j samples in wrong class j and u without an answer. NaN with fewer than k samples.
    """
    if k < 1:
        raise ValueError(f"k = {k} is below 1")
    if len(answers) != len(correct):
        raise ValueError(f"{len(answers)} answers but {len(correct)} grades")
    if len(answers) < k:
        return math.nan
    right = sum(correct)
    wrong = Counter(a for a, ok in zip(answers, correct, strict=True) if not ok)
    silent = wrong.pop(None, 0)
    won = 0.0
    for m in range(1, min(right, k) + 1):
        won += math.comb(right, m) * _ways(tuple(wrong.values()), silent, m, k - m)
    return won / math.comb(len(answers), k)


def best_at_k(scores: Sequence[float], correct: Sequence[bool], k: int) -> float:
    """Expected accuracy of the best scored of k of these samples, drawn without replacement; exact.

    Samples of one score are chosen with equal chance. A score whose g samples have h above them is the highest
    of a draw with chance (C(n - h, k) - C(n - h - g, k)) / C(n, k). NaN with fewer than k samples.
    """
    if k < 1:
        raise ValueError(f"k = {k} is below 1")
    if len(scores) != len(correct):
        raise ValueError(f"{len(scores)} scores but {len(correct)} grades")
    if len(scores) < k:
        return math.nan
    groups: dict[float, list[bool]] = {}
    for score, right in zip(scores, correct, strict=True):
        groups.setdefault(score, []).append(right)
    left, won = len(scores), 0.0
    for score in sorted(groups, reverse=True):
        size = len(groups[score])
        highest = math.comb(left, k) - math.comb(left - size, k)
        won += highest * sum(groups[score]) / size
        left -= size
    return won / math.comb(len(scores), k)


def _ways(sizes: tuple[int, ...], silent: int, m: int, rest: int) -> float:
    """Draws of ``rest`` samples in which no class has more than m, each weighted by 1 / (1 + tied classes)."""
    ways = {(i, 0): math.comb(silent, i) for i in range(min(silent, rest) + 1)}  # (drawn, tied) -> draws
    for size in sizes:
        after: Counter[tuple[int, int]] = Counter()
        for (drawn, tied), count in ways.items():
            for i in range(min(size, m, rest - drawn) + 1):
                after[drawn + i, tied + (i == m)] += count * math.comb(size, i)
        ways = dict(after)
    return sum(count / (1 + tied) for (drawn, tied), count in ways.items() if drawn == rest)


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions of about the same probability: how many, their mean, and how often they came true."""

    size: int
    predicted: float
    observed: float


def calibration_bins(
    probability: ArrayLike, outcome: ArrayLike, *, bins: int = 10, binning: Literal["width", "mass"] = "width"
) -> list[Bin]:
    """Non-empty bins of a reliability diagram.

    ``width``: bin i holds probabilities in (i / bins, (i + 1) / bins], 0 in the first (Guo et al. 2017, arXiv
    1706.04599). ``mass``: predictions in ascending order, cut into parts whose sizes differ by at most one;
    equal predictions are averaged over first, so that their order does not matter (Nguyen & O'Connor 2015,
    arXiv 1508.05154, for adaptive bins).

    Args:
        probability: predicted, in [0, 1], shape (predictions,).
        outcome: 0 or 1 (or a frequency), shape (predictions,).
    """
    p, y = _predictions(probability, outcome)
    if bins < 1:
        raise ValueError(f"bins = {bins} is below 1")
    if ((p < 0) | (p > 1)).any():
        raise ValueError("a probability lies outside [0, 1]")
    if binning == "width":
        index = np.searchsorted(np.arange(1, bins) / bins, p, side="left")
        parts = [np.flatnonzero(index == i) for i in range(bins)]
    else:
        order = np.argsort(p, kind="stable")
        _, group = np.unique(p, return_inverse=True)
        y = (np.bincount(group, weights=y) / np.bincount(group))[group] if len(p) else y
        parts = np.array_split(order, bins)
    return [Bin(len(part), float(p[part].mean()), float(y[part].mean())) for part in parts if len(part)]


def expected_calibration_error(
    probability: ArrayLike, outcome: ArrayLike, *, bins: int = 10, binning: Literal["width", "mass"] = "width"
) -> float:
    """ECE = sum_b |b| / n * |mean outcome in b - mean probability in b|; NaN without predictions.

    See :func:`calibration_bins` for the bins.
    """
    found = calibration_bins(probability, outcome, bins=bins, binning=binning)
    total = sum(b.size for b in found)
    return sum(b.size * abs(b.observed - b.predicted) for b in found) / total if total else math.nan


def area_under_curve(score: ArrayLike, outcome: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a right one scores above a wrong one, ties counting half.

    The Mann-Whitney U over the number of pairs, by mid-ranks (Hanley & McNeil 1982). NaN if all outcomes are
    the same.
    """
    s, y = _predictions(score, outcome)
    positive = y > 0.5
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return math.nan
    _, group, counts = np.unique(s, return_inverse=True, return_counts=True)
    midrank = np.cumsum(counts) - (counts - 1) / 2
    u = midrank[group][positive].sum() - n_positive * (n_positive + 1) / 2
    return float(u / (n_positive * n_negative))


def _predictions(probability: ArrayLike, outcome: ArrayLike) -> tuple[Array, Array]:
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    if p.ndim != 1 or p.shape != y.shape:
        raise ValueError(f"predictions of shape {p.shape} but outcomes of shape {y.shape}")
    if np.isnan(p).any() or np.isnan(y).any():
        raise ValueError("there is a NaN among predictions or outcomes")
    return p, y
