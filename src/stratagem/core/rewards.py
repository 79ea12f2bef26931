"""How the rewards of steps become the reward of an answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Aggregate = Literal["min", "product", "last", "mean"]


def aggregated(how: Aggregate, rewards: Sequence[float]) -> float:
    """One score of the rewards of steps, of which there is at least one, each in [0, 1].

    ``product`` is the probability that all steps are right, where each reward is that of its step given that those
    before it are.
    """
    match how:
        case "min":
            return min(rewards)
        case "product":
            return math.prod(rewards)
        case "last":
            return rewards[-1]
        case "mean":
            return math.fsum(rewards) / len(rewards)
