"""The figures of a bench: accuracy, differences, cost, and what more samples or better judges would give."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from stratagem.bench.results import Cell, Results
from stratagem.bench.statistics import (
    Array,
    Estimate,
    area_under_curve,
    best_at_k,
    bootstrap_means,
    expected_calibration_error,
    majority_at_k,
    paired_difference,
    pass_at_k,
    share,
)


@dataclass(frozen=True, slots=True)
class Cost:
    """A cost per run: its mean over problems with interval, and the total of all runs."""

    mean: Estimate
    total: float


@dataclass(frozen=True, slots=True)
class Row:
    """A strategy's figures. A failed run counts as a wrong answer."""

    strategy: str
    runs: int
    failed: int
    cut_short: int  # stopped by budget or deadline
    accuracy: Estimate
    tokens: Cost  # prompt and completion
    completion_tokens: Cost
    calls: Cost
    seconds: Cost
    money: Cost


@dataclass(frozen=True, slots=True)
class Difference:
    """Accuracy of ``a`` less that of ``b`` on the same problems."""

    a: str
    b: str
    accuracy: Estimate


@dataclass(frozen=True, slots=True)
class Curve:
    """What k of a strategy's samples would give, by k, as means over problems that have k samples."""

    strategy: str
    k: tuple[int, ...]
    any_right: tuple[float, ...]  # pass@k
    majority: tuple[float, ...]  # majority@k
    best: Mapping[str, tuple[float, ...]]  # by verifier: the sample that it scores highest


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well a probability foretells what is right."""

    strategy: str
    source: str  # a verifier's score of a sample, or "confidence" of the answer
    size: int
    auc: float
    ece: float  # 10 bins of equal width
    ece_mass: float  # 10 bins of equal mass


@dataclass(frozen=True, slots=True)
class Summary:
    """All figures of a bench, strategies in the order in which they were given."""

    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]  # of each strategy from each one before it
    curves: tuple[Curve, ...]  # of strategies that draw several samples
    calibrations: tuple[Calibration, ...]
    level: float

    def row(self, strategy: str) -> Row:
        """The figures of a strategy."""
        return next(row for row in self.rows if row.strategy == strategy)

    def difference(self, a: str, b: str) -> Estimate:
        """Accuracy of ``a`` less that of ``b``."""
        for d in self.differences:
            if (d.a, d.b) == (a, b):
                return d.accuracy
            if (d.b, d.a) == (a, b):
                e = d.accuracy
                return Estimate(-e.value, -e.high, -e.low, e.size)
        raise KeyError(f"no difference of {a!r} and {b!r}")


def summarise(results: Results, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Summary:
    """The figures of ``results``; the same cells give the same figures, in whatever order they came."""

    def table(measure: Callable[[Cell], float]) -> Array:
        """Shape (problems, strategies): the mean over seeds."""
        return np.array(
            [
                [_mean([measure(cell) for cell in results.of(s, p.id)]) for s in results.strategies]
                for p in results.problems
            ],
            dtype=np.float64,
        ).reshape(len(results.problems), len(results.strategies))

    def means(values: Array) -> list[Estimate]:
        return bootstrap_means(values, level=level, resamples=resamples, seed=seed)

    def cost(measure: Callable[[Cell], float]) -> list[Cost]:
        totals = [math.fsum(measure(c) for c in _cells(results, s)) for s in results.strategies]
        return [Cost(mean, total) for mean, total in zip(means(table(measure)), totals, strict=True)]

    right = table(lambda cell: float(cell.correct))
    cells = [_cells(results, s) for s in results.strategies]
    rows = [
        Row(
            name,
            runs=len(cells[i]),
            failed=sum(bool(c.error) for c in cells[i]),
            cut_short=sum(not c.error and c.stopped != "complete" for c in cells[i]),
            accuracy=accuracy,
            tokens=tokens,
            completion_tokens=completion,
            calls=calls,
            seconds=seconds,
            money=money,
        )
        for i, (name, accuracy, tokens, completion, calls, seconds, money) in enumerate(
            zip(
                results.strategies,
                [share(each, level) for each in means(right)],
                cost(lambda c: c.usage.tokens),
                cost(lambda c: c.usage.completion_tokens),
                cost(lambda c: c.usage.calls),
                cost(lambda c: c.seconds),
                cost(lambda c: c.usage.money),
                strict=True,
            )
        )
    ]
    differences = [
        Difference(
            results.strategies[j],
            results.strategies[i],
            paired_difference(right[:, j], right[:, i], level=level, resamples=resamples, seed=seed),
        )
        for i, j in combinations(range(len(results.strategies)), 2)
    ]
    curves = [curve for s in results.strategies if (curve := _curve(results, s)) is not None]
    calibrations = [c for s in results.strategies for c in _calibrations(results, s)]
    return Summary(tuple(rows), tuple(differences), tuple(curves), tuple(calibrations), level)


def _cells(results: Results, strategy: str) -> list[Cell]:
    return [cell for problem in results.problems for cell in results.of(strategy, problem.id)]


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _curve(results: Results, strategy: str) -> Curve | None:
    per_problem = [
        drawn
        for problem in results.problems
        if (drawn := [cell.samples for cell in results.of(strategy, problem.id) if cell.samples])
    ]
    most = max((len(samples) for drawn in per_problem for samples in drawn), default=0)
    if most < 2:
        return None
    sizes = sorted({2**i for i in range(most.bit_length())} | {most})
    any_right: list[float] = []
    majority: list[float] = []
    # Verifiers that scored any sample; one that abstained on a sample puts it last.
    judges = list(dict.fromkeys(v for drawn in per_problem for d in drawn for s in d for v in s.scores))
    best: dict[str, list[float]] = {judge: [] for judge in judges}
    for k in sizes:
        passed, voted = [], []
        chosen: dict[str, list[float]] = {judge: [] for judge in judges}
        for drawn in per_problem:
            enough = [samples for samples in drawn if len(samples) >= k]
            if not enough:
                continue
            right = [sum(s.correct for s in samples) for samples in enough]
            passed.append(float(pass_at_k([len(s) for s in enough], right, k).mean()))
            votes = (majority_at_k([s.answer for s in d], [s.correct for s in d], k) for d in enough)
            voted.append(_mean(list(votes)))
            for judge in judges:
                picks = (
                    best_at_k([s.scores.get(judge, -1.0) for s in d], [s.correct for s in d], k)
                    for d in enough
                )
                chosen[judge].append(_mean(list(picks)))
        any_right.append(_mean(passed))
        majority.append(_mean(voted))
        for judge in judges:
            best[judge].append(_mean(chosen[judge]))
    by_judge = {judge: tuple(values) for judge, values in best.items()}
    return Curve(strategy, tuple(sizes), tuple(any_right), tuple(majority), by_judge)


def _calibrations(results: Results, strategy: str) -> list[Calibration]:
    predictions: dict[str, list[tuple[float, bool]]] = {}
    for cell in _cells(results, strategy):
        if cell.confidence is not None and not cell.error:
            predictions.setdefault("confidence", []).append((cell.confidence, cell.correct))
        for sample in cell.samples:
            for source, score in sample.scores.items():
                predictions.setdefault(source, []).append((score, sample.correct))
    found = []
    for source, pairs in predictions.items():
        p, y = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs], dtype=np.float64)
        if p.min() < 0 or p.max() > 1:  # a score by which samples are ranked, but no probability
            continue
        found.append(
            Calibration(
                strategy,
                source,
                len(pairs),
                area_under_curve(p, y),
                expected_calibration_error(p, y),
                expected_calibration_error(p, y, binning="mass"),
            )
        )
    return found
