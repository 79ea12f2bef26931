"""Languages for the toy model: conditional probabilities of the next token, written down."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

from stratagem.core.backend import Message

Distribution = Mapping[str, float]
Language = Callable[[tuple[Message, ...], tuple[str, ...]], Distribution]  # conversation, tokens so far -> p

END = ""
_DIGITS = "12345"


def table(rows: Mapping[str, Distribution]) -> Language:
    """A language that ignores the conversation: {text so far: {token: probability}}; no row means the end."""
    for prefix, row in rows.items():
        if abs(sum(row.values()) - 1.0) > 1e-9 or min(row.values()) < 0:
            raise ValueError(f"the probabilities after {prefix!r} are no distribution: {dict(row)}")

    def language(_: tuple[Message, ...], tokens: tuple[str, ...]) -> Distribution:
        return rows.get("".join(tokens), {END: 1.0})

    return language


def right_answer(question: str) -> str:
    """The digit, 1 to 5, that :func:`arithmetic` counts as right: fixed by the question's first line."""
    return _DIGITS[zlib.crc32(question.partition("\n")[0].encode()) % len(_DIGITS)]


def arithmetic(messages: tuple[Message, ...], tokens: tuple[str, ...]) -> Distribution:
    """Answers questions with a step or two of work and a digit, and judges such answers.

    It counts (0.5, right with 0.7) or guesses (0.5, right with 0.3), checks (0.4, which makes it right with 0.8
    or 0.5) or not, and ends with "The answer is N."; asked to give only the answer it does (right with 0.4). The
    wrong digits share the rest 4 : 3 : 2 : 1. Asked yes or no after an answer, it says yes with 0.9 where the
    last line of that answer names the right digit, 0.6 where it names none, else 0.2; of whether it would do
    better if it started over it says no with these probabilities.
    """
    question = messages[-1].content.casefold()
    right = right_answer(next(m.content for m in messages if m.role == "user"))
    if "yes or no" in question:
        return {END: 1.0} if tokens else _verdict(messages, question, right)
    text = "".join(tokens)
    if text.endswith("."):
        return {END: 1.0}
    if text.endswith("is "):
        return _digits(right, text, only="only the answer" in question)
    if text[-1:].isdigit():
        return {".": 1.0}
    said = {"The answer is ": 1.0}
    if "only the answer" in question or text.endswith("check.\n"):
        return said
    return {"I check.\n": 0.4, "The answer is ": 0.6} if text else {"I count.\n": 0.5, "I guess.\n": 0.5}


def _digits(right: str, text: str, *, only: bool) -> Distribution:
    checked, counted = "check" in text, "count" in text
    p = 0.4 if only else (0.8 if counted else 0.5) if checked else (0.7 if counted else 0.3)
    wrong = [d for d in _DIGITS if d != right]
    return {right: p} | {d: (1 - p) * share for d, share in zip(wrong, (0.4, 0.3, 0.2, 0.1), strict=True)}


def _verdict(messages: tuple[Message, ...], question: str, right: str) -> Distribution:
    answer = next((m.content for m in reversed(messages) if m.role == "assistant"), "")
    last = (answer.splitlines() or [""])[-1]
    named = [c for c in last if c.isdigit()]
    good = 0.6 if not named else 0.9 if named[-1] == right else 0.2
    return {"no": good, "yes": 1 - good} if "started over" in question else {"yes": good, "no": 1 - good}
