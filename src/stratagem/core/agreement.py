"""Which answers are the same answer: what a vote counts, and what shows one."""

from __future__ import annotations

from collections.abc import Sequence

from stratagem.core.protocols import Verifier


def classes(answers: Sequence[str | None], verifier: Verifier | None) -> list[list[int]]:
    """Indices by equal answer, in order of first appearance; those without an answer are in none.

    Without a verifier equal text is what counts. With one, its ``equivalent``, which need not be transitive: 50%
    equals 0.5 and 50, which differ. So a class takes only what equals each of its members, the most frequent texts
    first, which find their class before what may be either. That may take long, and is then for a thread.
    """
    by_text: dict[str, list[int]] = {}
    for index, answer in enumerate(answers):
        if answer is not None:
            by_text.setdefault(answer.strip(), []).append(index)
    if verifier is None or len(by_text) < 2:
        return list(by_text.values())
    joined: list[list[str]] = []
    for text in sorted(by_text, key=lambda text: -len(by_text[text])):
        fitting = (same for same in joined if all(verifier.equivalent(other, text) for other in same))
        if (found := next(fitting, None)) is not None:
            found.append(text)
        else:
            joined.append([text])
    return sorted((sorted(i for text in same for i in by_text[text]) for same in joined), key=min)
