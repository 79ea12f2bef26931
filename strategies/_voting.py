"""Votes over extracted answers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from stratagem.core.agreement import classes
from stratagem.core.protocols import Verifier
from stratagem.core.task import Answer, Candidate


async def elect(
    candidates: Sequence[Candidate],
    log_weights: Sequence[float],
    verifier: Verifier | None,
    groups: Sequence[Sequence[int]] | None = None,
) -> Answer:
    """The answer whose class has the greatest sum of weights; a tie goes to the class seen first.

    Its text is that of the heaviest member, its confidence the class's share of the weight of all
    candidates, those without an answer included. ``log_weights`` may be -inf. ``groups``: the classes, where they
    are known.
    """
    answers = [candidate.answer for candidate in candidates]
    if groups is None and verifier is None:
        groups = classes(answers, None)
    elif groups is None:
        groups = await asyncio.to_thread(classes, answers, verifier)
    peak = max(log_weights)
    weights = [math.exp(w - peak) if peak > -math.inf else 1.0 for w in log_weights]
    if not groups:
        best = max(range(len(candidates)), key=lambda i: (weights[i], -i))
        return Answer.of(candidates[best], tuple(candidates), 0.0)
    group = max(groups, key=lambda g: (sum(weights[i] for i in g), -g[0]))
    best = max(group, key=lambda i: (weights[i], -i))
    share = math.fsum(weights[i] for i in group) / math.fsum(weights)
    return Answer.of(candidates[best], tuple(candidates), min(1.0, share))
