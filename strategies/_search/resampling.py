"""Resampling: N offspring of N weighted particles, without bias: E[offspring of i] = N W_i.

Systematic, stratified and multinomial resampling put N points on the cumulative weights: ``(i + u) / N`` with one u
~ U(0, 1), with one for each i, or N uniform points. Residual resampling takes floor(N W_i) copies of each and draws
the rest from what is left of the weights. Variance falls from multinomial to residual to stratified; systematic
mostly has the least, and gives each floor(N W_i) or ceil(N W_i) copies. Source: Douc, Cappe, Moulines 2005 (arXiv
cs/0507025). The effective sample size is ESS = (sum W)^2 / sum W^2.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

Scheme = Literal["systematic", "stratified", "residual", "multinomial"]


def scaled(log_weights: Sequence[float]) -> tuple[list[float], float]:
    """Weights whose greatest is 1, and the logarithm of the mean weight; where all are 0, all 1 and -inf."""
    peak = max(log_weights)
    if peak == -math.inf:
        return [1.0] * len(log_weights), peak
    weights = [math.exp(w - peak) for w in log_weights]
    return weights, peak + math.log(math.fsum(weights) / len(weights))


def effective_size(weights: Sequence[float]) -> float:
    """How many equally weighted particles are worth these: from 1 to their number."""
    return math.fsum(weights) ** 2 / math.fsum(w * w for w in weights)


def resample(scheme: Scheme, weights: Sequence[float], n: int, rng: random.Random) -> list[int]:
    """The parents of ``n`` offspring, as indices. Weights need not sum to 1; some weight is positive."""
    if scheme == "residual":
        total = math.fsum(weights)
        # A product that misses its whole number by rounding is that number.
        shares = [n * w / total for w in weights]
        whole = [math.floor(share + 1e-9) for share in shares]
        kept = [i for i, count in enumerate(whole) for _ in range(count)][:n]
        rest = [max(0.0, share - count) for share, count in zip(shares, whole, strict=True)]
        return kept + (resample("multinomial", rest, n - len(kept), rng) if len(kept) < n else [])
    match scheme:
        case "systematic":
            u = rng.random()
            points = [(i + u) / n for i in range(n)]
        case "stratified":
            points = [(i + rng.random()) / n for i in range(n)]
        case "multinomial":
            points = [rng.random() for _ in range(n)]
    cumulative = list(accumulate(weights))
    last = max(i for i, w in enumerate(weights) if w > 0)  # rounding may put a point behind it
    return [min(last, bisect_right(cumulative, point * cumulative[-1])) for point in points]
