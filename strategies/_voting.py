"""Votes over extracted answers: classes of equal answers and their weights."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from stratagem.core.protocols import Verifier
from stratagem.core.task import Answer, Candidate


async def classes(candidates: Sequence[Candidate], verifier: Verifier | None) -> list[list[int]]:
    """Indices of candidates by equal answer, in order of first appearance; those without an answer are in none.

    With a verifier, answers that its ``equivalent`` joins, directly or through a chain, are one class
    (union-find: equality up to a tolerance need not be transitive). Runs in a thread.
    """
    by_text: dict[str, list[int]] = {}
    for index, candidate in enumerate(candidates):
        if candidate.answer is not None:
            by_text.setdefault(candidate.answer.strip(), []).append(index)
    if verifier is None or len(by_text) < 2:
        return list(by_text.values())
    texts = list(by_text)
    root = await asyncio.to_thread(_union, texts, verifier)
    merged: dict[int, list[int]] = {}
    for position, text in enumerate(texts):
        merged.setdefault(root[position], []).extend(by_text[text])
    return sorted((sorted(indices) for indices in merged.values()), key=min)


def _union(texts: Sequence[str], verifier: Verifier) -> list[int]:
    root = list(range(len(texts)))
    for i in range(len(texts)):
        for j in range(i):
            if root[j] != root[i] and verifier.equivalent(texts[j], texts[i]):
                old, new = max(root[i], root[j]), min(root[i], root[j])
                root = [new if r == old else r for r in root]
    return root


async def elect(
    candidates: Sequence[Candidate], log_weights: Sequence[float], verifier: Verifier | None
) -> Answer:
    """The answer whose class has the greatest sum of weights; a tie goes to the class seen first.

    Its text is that of the heaviest member, its confidence the class's share of the weight of all
    candidates, those without an answer included. ``log_weights`` may be -inf.
    """
    groups = await classes(candidates, verifier)
    peak = max(log_weights)
    weights = [math.exp(w - peak) if peak > -math.inf else 1.0 for w in log_weights]
    if not groups:
        best = max(range(len(candidates)), key=lambda i: (weights[i], -i))
        return Answer.of(candidates[best], tuple(candidates), 0.0)
    group = max(groups, key=lambda g: (sum(weights[i] for i in g), -g[0]))
    best = max(group, key=lambda i: (weights[i], -i))
    share = math.fsum(weights[i] for i in group) / math.fsum(weights)
    return Answer.of(candidates[best], tuple(candidates), min(1.0, share))
