# ruff: noqa: RUF001 (the tables are of characters that look alike)
"""One spelling for each sign: an answer's text without typography. Every pass is linear in the text."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

MAX_CHARS: Final = 2000


class Unparsable(Exception):
    """The text is not an answer in the grammar, or is past a limit on size."""


_VULGAR: Final = {
    chr(c): unicodedata.normalize("NFKC", chr(c)).split("\u2044")
    for c in [*range(0xBC, 0xBF), *range(0x2150, 0x215F)]
}
_SUPER: Final = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n", strict=True))
_SUB: Final = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_GREEK: Final = {
    **{"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "θ": "theta", "λ": "lambda"},
    **{"μ": "mu", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi", "ω": "omega"},
}
_COMMANDS: Final = {
    **{"∞": "infty", "√": "sqrt", "∛": "sqrt[3]", "≈": "approx", "±": "pm", "∓": "mp"},
    **{"∪": "cup", "∩": "cap", "∖": "setminus", "∈": "in", "∅": "emptyset", "ℝ": "mathbb{R}"},
}
_ALIKE: Final = {
    "-": "−–—‐‑﹣",
    "*": "×·⋅∗∙",
    "/": "÷⁄∕",
    "°": "º˚",
    ":": "∶",
    '"': "“”",
    "'": "’‘",
    ",": "、",
    ".": "。",
}
_CHARS: Final = str.maketrans(
    {
        **{char: sign for sign, chars in _ALIKE.items() for char in chars},
        **{"≤": "<=", "⩽": "<=", "≥": ">=", "⩾": ">=", "≠": "!="},
        **{char: f"\\{name} " for char, name in (_COMMANDS | _GREEK).items()},
        **{char: f"\\frac{{{top}}}{{{bottom}}}" for char, (top, bottom) in _VULGAR.items()},
    }
)

_SUPER_RUN: Final = re.compile(f"[{''.join(_SUPER)}]+")
_SUB_RUN: Final = re.compile(f"[{''.join(_SUB)}]+")
_WORDS_IN: Final = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|operatorname\*?|textup)\s*\{([^{}]*)\}"
)
_DROPPED: Final = re.compile(
    r"\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?|biggl?|biggr?|displaystyle|textstyle|limits|nolimits|!)(?![A-Za-z])\.?"
)
_SPACE: Final = re.compile(r"(\\\\)|\\(?:[,;: ]|q?quad(?![A-Za-z])|enspace(?![A-Za-z]))|~|&nbsp;|\\\n")
_DEGREE: Final = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])|\^\s*°")
_LEAD: Final = re.compile(
    r"^(?:\\approx(?![a-z])|approximately|about|roughly|around|exactly|equals|is|=|~)\s*", re.IGNORECASE
)
_EDGE: Final = " \t\r\n.,;:\"'`*_"


def normal(text: str) -> str:
    """Case and spacing folded: what is compared where an answer is only words."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.replace("$", " ").strip(_EDGE).split()).strip(_EDGE)


def clean(text: str) -> str:
    """The answer without its typography: one spelling for each sign, no delimiters, spacing or fonts.

    Raises Unparsable where it is longer than MAX_CHARS.
    """
    if len(text) > MAX_CHARS:
        raise Unparsable("too long")
    text = _SUPER_RUN.sub(lambda m: "^{" + "".join(_SUPER[c] for c in m[0]) + "}", text)
    text = _SUB_RUN.sub(lambda m: "_{" + "".join(_SUB[c] for c in m[0]) + "}", text)
    text = unicodedata.normalize("NFKC", text.translate(_CHARS)).translate(_CHARS)
    text = "".join(c if c.isprintable() else " " if c.isspace() else "" for c in text)
    if len(text) > 2 * MAX_CHARS:
        raise Unparsable("too long")
    text = _DROPPED.sub("", text.replace("\\!", ""))
    text = text.replace("{,}", ",").replace("\\$", " \ufdd0")  # a noncharacter stands for a true dollar sign
    text = _SPACE.sub(lambda m: m[1] or " ", text)  # a line break, two backslashes, stays
    for _ in range(3):
        text = _WORDS_IN.sub(r" \1 ", text)
    text = _dollars(_DEGREE.sub("°", text))
    for sign in ("\\(", "\\)", "\\[", "\\]"):
        text = text.replace(sign, " ")
    text = text.strip().strip("*`\"'").strip()
    text = text.rstrip(" .,;:") if not text.endswith("\\,") else text
    return _LEAD.sub("", _LEAD.sub("", text))


def turned(text: str) -> str:
    """The text with intervals in the notation of ISO 80000-2, as ]0, 1], in the other one: (0, 1]."""
    pieces = re.split(r"([\[\]])", text)
    at = 1
    while at + 2 < len(pieces):
        if set(pieces[at + 1]).isdisjoint(",;"):
            at += 2
            continue
        pieces[at] = "[" if pieces[at] == "[" else "("
        pieces[at + 2] = "]" if pieces[at + 2] == "]" else ")"
        at += 4
    return "".join(pieces)


def _dollars(text: str) -> str:
    """Tell dollar signs that delimit mathematics from those that are money."""
    text = text.strip(" *").rstrip(" .,*").replace("$$", "$")
    signs = [k for k, c in enumerate(text) if c == "$"]
    closing = signs[1::2]
    if len(signs) % 2 == 0 and all(
        not text[k - 1].isspace() and not text[k + 1 : k + 2].isdigit() for k in closing
    ):
        text = text.replace("$", " ")
    return text.replace("\ufdd0", "$")
