"""What strategies share that write an answer anew after words about it."""

from __future__ import annotations

from collections.abc import Sequence

from stratagem.core.task import Answer, Candidate


def objects(words: str, no_error: str) -> bool:
    """Whether a critique asks for a change: it says something, and not that there is no error."""
    return bool(words.strip()) and no_error.casefold() not in words.casefold()


def latest(versions: Sequence[Candidate]) -> Answer:
    """The last version that states an answer; the last of all where none does."""
    chosen = next((v for v in reversed(versions) if v.answer is not None), versions[-1])
    return Answer.of(chosen, tuple(versions))
