"""A mixture of two Weibull distributions, fitted by maximum likelihood: w f(x; k1, l1) + (1 - w) f(x; k2, l2).

f(x; k, l) = (k/l) (x/l)^(k-1) exp(-(x/l)^k), of mean l Gamma(1 + 1/k). The negative log-likelihood is minimised
from a fixed start within bounds, by BFGS whose variables at a bound stand still while the gradient pushes them
outwards, with backtracking along the path that the bounds bend (Bertsekas 1982, the method behind L-BFGS-B). With
five variables the whole inverse Hessian fits where L-BFGS-B keeps its last steps, and the standard library is
enough.

Shapes and scales are varied by their logarithms, which meets fewer bad optima. Where samples repeat, the likelihood
has no greatest value (a component grows ever narrower on them), so shapes and scales stay below 1e4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

# w, log k1, log l1, log k2, log l2
_START = (0.5, 0.0, 0.0, math.log(1.5), math.log(2.0))
_LOW = (0.2, *[math.log(0.01)] * 4)
_HIGH = (0.8, *[math.log(1e4)] * 4)
_STEPS = 500
_FLAT, _STILL = 1e-6, 1e-10  # where to stop: gradient per sample, relative decrease of the loss

Point = Sequence[float]


@dataclass(frozen=True, slots=True)
class Weibull:
    """One distribution, of shape k and scale l."""

    shape: float
    scale: float

    @property
    def mean(self) -> float:
        """l Gamma(1 + 1/k); infinite where that overflows."""
        log = math.log(self.scale) + math.lgamma(1 + 1 / self.shape)
        return math.exp(log) if log < 700 else math.inf

    def log_density(self, x: float) -> float:
        """log f(x), x > 0."""
        return _component(x, self.shape, self.scale)[0]


@dataclass(frozen=True, slots=True)
class Mixture:
    """``weight`` of the component with the larger mean, ``high``, and the rest of ``low``."""

    weight: float
    high: Weibull
    low: Weibull

    @classmethod
    def fitted(cls, xs: Sequence[float]) -> Self:
        """To positive numbers. CPU-bound: some 20 ms for 128 of them."""
        w, *logs = _minimised(xs)
        k1, l1, k2, l2 = map(math.exp, logs)
        first, second = Weibull(k1, l1), Weibull(k2, l2)
        return cls(w, first, second) if first.mean >= second.mean else cls(1 - w, second, first)

    def p_high(self, x: float) -> float:
        """Posterior probability that x is of the high component."""
        prior = math.log(self.weight / (1 - self.weight))
        return _sigmoid(prior + self.high.log_density(x) - self.low.log_density(x))


def improbable(ps: Sequence[float]) -> set[int]:
    """The numbers in [0, 1] that are likelier of the low component and below the mean: never all of them.

    None where all are equal, since nothing tells them apart; 0, which no Weibull distribution allows, is low.
    """
    positive = [p for p in ps if p > 0]
    if not positive or min(ps) == max(ps):
        return set()
    mean = math.fsum(ps) / len(ps)
    below = {i for i, p in enumerate(ps) if p < mean}
    if min(positive) == max(positive):
        return below
    mixture = Mixture.fitted(positive)
    return {i for i in below if ps[i] == 0 or mixture.p_high(ps[i]) < 0.5}


def _sigmoid(x: float) -> float:
    odds = math.exp(-abs(x))
    return (1 if x > 0 else odds) / (1 + odds)


def _component(x: float, k: float, scale: float) -> tuple[float, float, float]:
    """log f(x), and its derivatives by the logarithms of shape and scale."""
    log_ratio = math.log(x) - math.log(scale)
    power = math.exp(min(700.0, k * log_ratio))
    log = math.log(k / scale) + (k - 1) * log_ratio - power
    return log, 1 + k * log_ratio * (1 - power), k * (power - 1)


def _loss(at: Point, xs: Sequence[float]) -> tuple[float, list[float]]:
    """Negative log-likelihood, in nats, and its gradient."""
    w, *logs = at
    k1, l1, k2, l2 = map(math.exp, logs)
    loss, slope = 0.0, [0.0] * 5
    for x in xs:
        log1, dk1, dl1 = _component(x, k1, l1)
        log2, dk2, dl2 = _component(x, k2, l2)
        a, b = math.log(w) + log1, math.log(1 - w) + log2
        r = _sigmoid(a - b)
        loss -= max(a, b) + math.log1p(math.exp(-abs(a - b)))
        slope[0] -= r / w - (1 - r) / (1 - w)
        slope[1] -= r * dk1
        slope[2] -= r * dl1
        slope[3] -= (1 - r) * dk2
        slope[4] -= (1 - r) * dl2
    return loss, slope


def _minimised(xs: Sequence[float]) -> Point:
    """Where the loss is least, downhill from the start."""
    at: Point = _START
    loss, slope = _loss(at, xs)
    inverse = _diagonal(slope)
    fresh = True
    for _ in range(_STEPS):
        free = [
            not ((x <= low and g > 0) or (x >= high and g < 0))
            for x, g, low, high in zip(at, slope, _LOW, _HIGH, strict=True)
        ]
        if max((abs(g) for g, f in zip(slope, free, strict=True) if f), default=0.0) <= _FLAT * len(xs):
            break
        way = [
            -sum(row[j] * slope[j] for j in range(5) if free[j]) if free[i] else 0.0
            for i, row in enumerate(inverse)
        ]
        found = _searched(at, loss, slope, way, xs)
        if found is None and fresh:
            break
        if found is None:  # the curvature seen so far misleads
            inverse, fresh = _diagonal(slope), True
            continue
        before, (new, loss, new_slope) = loss, found
        inverse = _updated(inverse, _minus(new, at), _minus(new_slope, slope))
        at, slope, fresh = new, new_slope, False
        if before - loss <= _STILL * max(1.0, abs(before)):
            break
    return at


def _searched(
    at: Point, loss: float, slope: Point, way: Point, xs: Sequence[float]
) -> tuple[Point, float, list[float]] | None:
    """The first of the steps 1, 1/2, 1/4 ... along the way, kept in bounds, that lowers the loss enough."""
    for halvings in range(40):
        new = [
            min(max(x + d / 2**halvings, low), high)
            for x, d, low, high in zip(at, way, _LOW, _HIGH, strict=True)
        ]
        gain = _dot(slope, _minus(new, at))
        new_loss, new_slope = _loss(new, xs)
        if gain < 0 and new_loss <= loss + 1e-4 * gain:
            return new, new_loss, new_slope
    return None


def _diagonal(slope: Point) -> list[list[float]]:
    """A first guess of the inverse Hessian: a first step of at most 1."""
    scale = 1 / max(1.0, *map(abs, slope))
    return [[scale if i == j else 0.0 for j in range(5)] for i in range(5)]


def _updated(inverse: list[list[float]], step: Point, turn: Point) -> list[list[float]]:
    """The BFGS formula; unchanged where the curvature along the step is not positive."""
    curvature = _dot(step, turn)
    if curvature <= 1e-12 * _dot(turn, turn):
        return inverse
    image = [_dot(row, turn) for row in inverse]
    scale = (1 + _dot(turn, image) / curvature) / curvature
    return [
        [
            inverse[i][j] + scale * step[i] * step[j] - (image[i] * step[j] + step[i] * image[j]) / curvature
            for j in range(5)
        ]
        for i in range(5)
    ]


def _dot(a: Point, b: Point) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _minus(a: Point, b: Point) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]
