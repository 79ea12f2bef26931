"""When a majority is decided. Nothing in here waits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

Leads = Callable[[Sequence[int]], float]  # votes by class, most first -> probability that the first leads


def beta(votes: Sequence[int]) -> float:
    """P(p_1 > p_2) of the two classes with the most votes, under a uniform prior: Beta(v_1 + 1, v_2 + 1) > 1/2."""
    return _beta(votes[0], votes[1] if len(votes) > 1 else 0)


@lru_cache(4096)
def _beta(first: int, second: int) -> float:
    flips = first + second + 1  # I_{1/2}(second + 1, first + 1) as a sum of binomial probabilities
    return sum(math.comb(flips, k) for k in range(second + 1, flips + 1)) / (1 << flips)


def dirichlet(votes: Sequence[int]) -> float:
    """P(p_1 > p_j for all j) of all classes and one that nobody has named yet, under a uniform prior.

    p is Dirichlet(v + 1), the normalised vector of independent g_j ~ Gamma(v_j + 1), so that this is
    int f(g_1) prod_j F_j(g_1) dg_1, here by Simpson's rule. It is at most :func:`beta`.
    """
    return _dirichlet((*votes, 0))


@lru_cache(4096)
def _dirichlet(votes: tuple[int, ...]) -> float:
    first, *others = votes
    end = first + 1 + 10 * math.sqrt(first + 1) + 20
    steps = 600
    total = 0.0
    for i in range(1, steps):
        x = end * i / steps
        weight = 4 if i % 2 else 2
        density = math.exp(first * math.log(x) - x - math.lgamma(first + 1))
        total += weight * density * math.prod(_erlang(v, x) for v in others)
    return min(1.0, total * end / steps / 3)


def _erlang(votes: int, x: float) -> float:
    """P(Gamma(votes + 1) < x)."""
    term = below = math.exp(-x)
    for k in range(1, votes + 1):
        term *= x / k
        below += term
    return 1 - below


def labels(
    answers: Mapping[int, str | None], equal: Callable[[str, str], bool] | None
) -> dict[int, int | None]:
    """The class of each answer by its index: the first index before it with an equal answer, or its own.

    An answer's class depends on those before it alone, so that what comes later changes no decision.
    """
    heads: dict[str, int] = {}
    classes: dict[str, int] = {}
    found: dict[int, int | None] = {}
    for index in sorted(answers):
        answer = answers[index]
        if answer is None:
            found[index] = None
            continue
        text = answer.strip()
        if text not in classes:
            same = (i for head, i in heads.items() if equal is not None and equal(head, text))
            classes[text] = next(same, index)
            if classes[text] == index:
                heads[text] = index
        found[index] = classes[text]
    return found


def least(known: Mapping[int, int | None], n: int, leads: Leads, confidence: float) -> int:
    """The fewest of ``n`` samples, in order, that can decide the vote, given the classes of those known.

    If all of those are known it is decided there; if not, they are needed whatever the unknown ones say: the
    vote is decided soonest where they all agree.
    """
    guesses = {label for label in known.values() if label is not None} | {-1}
    return min(_decided(known, guess, n, leads, confidence) for guess in guesses)


def _decided(known: Mapping[int, int | None], guess: int, n: int, leads: Leads, confidence: float) -> int:
    votes: Counter[int] = Counter()
    for index in range(n):
        label = known.get(index, guess)
        if label is not None:
            votes[label] += 1
        elif not votes:
            continue
        ranked = sorted(votes.values(), reverse=True)
        ahead = ranked[0] - (ranked[1] if len(ranked) > 1 else 0)
        if ahead >= n - index:  # even if all that are left agreed on another
            return index + 1
        if beta(ranked) >= confidence and leads(ranked) >= confidence:  # beta is the greater, and quick
            return index + 1
    return n
