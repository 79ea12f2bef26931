"""The final answer in a model's text, by the conventions that models and data sets write it in.

In order of trust: the last `\\boxed{...}`, the last `#### x` (GSM8K), the last "the answer is x" or
"answer: x", and where none is there the last formula or number. Every search is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

_BOX: Final = re.compile(r"\\(?:boxed|fbox)\s*\{")
_HASHES: Final = re.compile(r"####[ \t]*([^\n]*)")
_PHRASE: Final = re.compile(
    r"\banswer[*_]{0,2}(?:\s+to\s[^.:\n]{1,80}?)?\s*[*_]{0,2}"
    r"(?::|=|\b(?:is|was|equals|will be|would be|must be|should be)\b)[\s*_:]*(?:the option\s|option\s|choice\s)?",
    re.IGNORECASE,
)
_SENTENCE_END: Final = re.compile(r"[.!?](?=[\s*_\"')\]]|$)")
_DELIMITERS: Final = {"$$": "$$", "\\[": "\\]", "\\(": "\\)", "$": "$"}
_FORMULA: Final = re.compile(
    r"\\\((.{1,400}?)\\\)|\\\[(.{1,400}?)\\\]|\$\$([^$]{1,400})\$\$|\$(?!\s)([^$\n]{1,400})(?<!\s)\$(?!\d)",
    re.DOTALL,
)
_NUMBER: Final = re.compile(
    r"[-\u2212]?(?:\\[dt]?frac\s?\{[^{}\n]{1,80}\}\s?\{[^{}\n]{1,80}\}"
    r"|\$?(?:\d+ \d+/\d+|\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?(?:/\d+)?|\.\d+)(?:\s?\\?%)?)"
)
_MAX_ANSWER: Final = 1000
"""Characters after "the answer is" that are looked at."""
_EDGE: Final = " \t\r\n*_`\"'"


def last_boxed(text: str) -> str | None:
    """What the last `\\boxed{...}` holds; None where there is none or its braces do not balance."""
    starts = [match.end() for match in _BOX.finditer(text)]
    if not starts:
        return None
    depth, at = 1, starts[-1]
    while at < len(text):
        char = text[at]
        if char == "\\":
            at += 1  # an escaped brace does not count
        elif char in "{}":
            depth += 1 if char == "{" else -1
            if depth == 0:
                return text[starts[-1] : at].strip()
        at += 1
    return None


def extract_answer(text: str, *, choices: Sequence[str] = ()) -> str | None:
    """The final answer that the text states, as written but without mark-up; None where it states none.

    With choices the result is one of them, spelled as given: the one that the stated answer names, else the
    last one that the text names.
    """
    stated = _stated(text)
    if choices:
        return _choice(text, stated, choices)
    return stated if stated is not None else _last_value(text)


def _stated(text: str) -> str | None:
    boxed = last_boxed(text)
    if boxed:
        return tidy(boxed)
    for found in (_hashes(text), _phrase(text)):
        if found:
            return found
    return None


def _hashes(text: str) -> str | None:
    found = [tidy(match[1]) for match in _HASHES.finditer(text)]
    return next((f for f in reversed(found) if f), None)


def _phrase(text: str) -> str | None:
    ends = [match.end() for match in _PHRASE.finditer(text)]
    for end in reversed(ends):
        rest = text[end : end + _MAX_ANSWER]
        opening = next((d for d in _DELIMITERS if rest.startswith(d)), None)
        if opening is not None and not re.match(r"\$\s?\d", rest):
            closing = rest.find(_DELIMITERS[opening], len(opening))
            if closing > 0 and (formula := tidy(rest[len(opening) : closing])):
                return formula
        line = rest.split("\n", 1)[0]
        stop = _SENTENCE_END.search(line)
        if found := tidy(line[: stop.start()] if stop else line):
            return found
    return None


def tidy(answer: str) -> str:
    """The answer without Markdown emphasis, enclosing dollar signs, quotes and a final full stop."""
    before = None
    while answer != before:
        before = answer
        answer = answer.strip(_EDGE).rstrip(".,;:").strip(_EDGE)
        for opening, closing in _DELIMITERS.items():
            whole = len(answer) > len(opening) and answer.startswith(opening) and answer.endswith(closing)
            if whole and opening != "$":
                answer = answer[len(opening) : -len(closing)]
        answer = answer.removeprefix("\\$").removeprefix("$").removesuffix("\\$").removesuffix("$")
    return answer


def _last_value(text: str) -> str | None:
    formula: re.Match[str] | None = None
    for match in _FORMULA.finditer(text):
        formula = match
    number: re.Match[str] | None = None
    for match in _NUMBER.finditer(text, formula.end() if formula else 0):
        number = match
    if number is not None:
        found = number[0].replace("\u2212", "-").replace("-$", "-")
        before = text[: number.start()].rstrip()[-1:]
        # After an operand a minus is a subtraction or a dash: "10 - 3", "5-3".
        minus_is_sign = not (before.isdigit() or before == ")" or text[: number.start()][-1:].isalpha())
        return tidy(found if minus_is_sign else found.removeprefix("-"))
    if formula is not None:
        return tidy(next(group for group in formula.groups() if group is not None)) or None
    return None


def _choice(text: str, stated: str | None, choices: Sequence[str]) -> str | None:
    if stated is not None:
        for choice in choices:
            if stated.strip("() .").casefold() == choice.strip("() .").casefold():
                return choice
        named = _mentions(stated, choices, bare=True)
        if named:
            return named[0][1]
    named = _mentions(text, choices, bare=False) or _mentions(text, choices, bare=True)
    return named[-1][1] if named else None


def _mentions(text: str, choices: Sequence[str], *, bare: bool) -> list[tuple[int, str]]:
    """Where each choice is named, in order. A letter alone counts only if `bare`: "A" is also an article."""
    found: list[tuple[int, int, str]] = []
    for choice in choices:
        core = choice.strip().strip("()").rstrip(".):")
        if not core:
            continue
        body = re.escape(core)
        if len(core) == 1 and core.isalpha():
            marked = (
                rf"\({body}\)|(?:(?i:option|choice|answer)\s+|\*\*){body}\b|(?<![\w']){body}(?:[):]|\.(?!\w))"
            )
            pattern = re.compile(marked + (rf"|(?<![\w'\\]){body}(?![\w'])" if bare else ""))
        else:
            pattern = re.compile(rf"(?<![\w.]){body}(?!\w|\.\d)", re.IGNORECASE)
        found.extend((match.start(), -match.end(), choice) for match in pattern.finditer(text))
    named: list[tuple[int, str]] = []
    reached = 0
    for start, minus_end, choice in sorted(found):
        # Inside a longer choice a shorter one is not named: "not guilty" does not name "guilty".
        if -minus_end > reached:
            named.append((start, choice))
            reached = -minus_end
    return named
