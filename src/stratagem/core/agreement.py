"""Which answers are the same answer: what a vote counts, and what shows one."""

from __future__ import annotations

from collections.abc import Sequence

from stratagem.core.protocols import Verifier


def classes(answers: Sequence[str | None], verifier: Verifier | None) -> list[list[int]]:
    """Indices by equal answer, in order of first appearance; those without an answer are in none.

    Without a verifier equal text is what counts. With one, answers that its ``equivalent`` joins, directly or
    through a chain, are one class (union-find: equality up to a tolerance need not be transitive); that may take
    long, and is then for a thread.
    """
    by_text: dict[str, list[int]] = {}
    for index, answer in enumerate(answers):
        if answer is not None:
            by_text.setdefault(answer.strip(), []).append(index)
    if verifier is None or len(by_text) < 2:
        return list(by_text.values())
    texts = list(by_text)
    merged: dict[int, list[int]] = {}
    for text, root in zip(texts, _union(texts, verifier), strict=True):
        merged.setdefault(root, []).extend(by_text[text])
    return sorted((sorted(indices) for indices in merged.values()), key=min)


def _union(texts: Sequence[str], verifier: Verifier) -> list[int]:
    root = list(range(len(texts)))
    for i in range(len(texts)):
        for j in range(i):
            if root[j] != root[i] and verifier.equivalent(texts[j], texts[i]):
                old, new = max(root[i], root[j]), min(root[i], root[j])
                root = [new if r == old else r for r in root]
    return root
