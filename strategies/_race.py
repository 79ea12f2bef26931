"""Who stays in a race of samples, decided as scores come in, in whatever order. Nothing in here waits."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """Of those in the race, one is out at a checkpoint if ``places`` others are above it, by more than ``margin``.

    Without a margin a tie goes to the sample drawn first.
    """

    places: int
    margin: float | None = None


class Race:
    """The samples that are in after each checkpoint: those in after the one before that the rule leaves in.

    What is certain is told as soon as it is, from the scores that are known: a sample is out when enough others
    are above it that certainly were in, whoever is still to come. With all scores known everything is certain, and
    does not depend on the order in which they came.

    Args:
        n: samples.
        rule: of each checkpoint, by its number from 0.
        checkpoints: how many there are; ``None``: as many as anybody reaches, and one of final scores.
    """

    def __init__(self, n: int, rule: Callable[[int], Rule], checkpoints: int | None = None) -> None:
        self._n, self._rule, self._checkpoints = n, rule, checkpoints
        self._scores: list[dict[int, float]] = []  # by checkpoint, of those that have reached it
        self._final: dict[int, tuple[int, Callable[[int], float]]] = {}  # from this checkpoint on
        self._absent: set[int] = set()
        self.out: set[int] = set()  # certainly

    @classmethod
    def of_shares(cls, n: int, keep: float, checkpoints: int, least: int = 1) -> Race:
        """In which the best ``ceil(keep * m)`` of m stay at each checkpoint, and no fewer than ``least``."""
        places = [n]
        for _ in range(checkpoints):
            places.append(max(math.ceil(keep * places[-1]), min(least, n)))
        return cls(n, lambda checkpoint: Rule(places[checkpoint + 1]), checkpoints)

    def reached(self, index: int, checkpoint: int, score: float) -> None:
        """Sample ``index`` has this score at a checkpoint."""
        while len(self._scores) <= checkpoint:
            self._scores.append({})
        self._scores[checkpoint][index] = score
        self._settle()

    def ended(self, index: int, checkpoint: int, score: Callable[[int], float]) -> None:
        """Sample ``index`` has ended before it reached this checkpoint: it has these scores there and later."""
        self._final[index] = (checkpoint, score)
        self._settle()

    def absent(self, index: int) -> None:
        """Sample ``index`` is not in the race at all."""
        self._absent.add(index)
        self._settle()

    def _settle(self) -> None:
        inside = possible = set(range(self._n)) - self._absent
        count = len(self._scores) + 1 if self._checkpoints is None else self._checkpoints
        for checkpoint in range(count):
            scores = {i: s for i in possible if (s := self._score(i, checkpoint)) is not None}
            inside, possible = _after(self._rule(checkpoint), inside, possible, scores)
        self.out = set(range(self._n)) - possible

    def _score(self, index: int, checkpoint: int) -> float | None:
        final = self._final.get(index)
        if final is not None and checkpoint >= final[0]:
            return final[1](checkpoint)
        return self._scores[checkpoint].get(index) if checkpoint < len(self._scores) else None


def _after(
    rule: Rule, inside: set[int], possible: set[int], known: dict[int, float]
) -> tuple[set[int], set[int]]:
    """Who is certainly in, and who may be, after a checkpoint, from the same before it and the known scores."""
    unknown = len(possible) - len(known)

    margin = rule.margin or 0.0

    def ahead_of(rivals: list[tuple[float, int]], index: int) -> int:
        tie = -index if rule.margin is None else 0
        return len(rivals) - bisect_right(rivals, (known[index], tie))

    sure = sorted((known[i] - margin, -i) for i in inside if i in known)
    all_known = sorted((score - margin, -i) for i, score in known.items())
    out = {i for i in known if ahead_of(sure, i) >= rule.places}
    stay = {i for i in inside & known.keys() if ahead_of(all_known, i) + unknown < rule.places}
    return stay, possible - out


def gumbel(seed: int) -> float:
    """A draw of the standard Gumbel distribution: the m greatest of s_i / T + g_i are m draws of softmax(s / T),
    without putting back (Kool et al. 2019, arXiv 1903.06059)."""
    return -math.log(max(random.Random(seed).expovariate(1.0), 1e-300))
