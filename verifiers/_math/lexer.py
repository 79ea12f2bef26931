"""From a cleaned answer, LaTeX or plain, to tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

from stratagem.verifiers._math.notation import Unparsable

MAX_TOKENS: Final = 600
MAX_DIGITS: Final = 500
MAX_EXPONENT: Final = 400
"""Of a number in scientific notation, such as 1e400."""

Kind = Literal["number", "word", "command", "op", "open", "close", "currency"]


@dataclass(frozen=True, slots=True)
class Token:
    """`text` in normal form. `spaced`: white space stands before it. Numbers have a value and digits."""

    kind: Kind
    text: str
    spaced: bool = False
    value: Fraction = Fraction(0)
    digits: int | None = None

    @property
    def whole(self) -> bool:
        """A number written without a decimal point or exponent."""
        return self.kind == "number" and self.text.isdigit()


_NUMBER: Final = re.compile(
    r"(?P<lead>\d*)\.(?P<plain>\d*)\\overline\s*\{(?P<cycle>\d{1,40})\}"
    r"|(?P<body>\d+(?:\.\d+)?|\.\d+)(?P<exp>[eE][+-]?\d+)?",
    re.ASCII,
)
_GROUPED: Final = re.compile(r"\d{1,3}(?P<sep>[, ])\d{3}(?:(?P=sep)\d{3})*(?!\d)(?P<rest>\.\d+)?", re.ASCII)
_WORD: Final = re.compile(r"[^\W\d_]+|¢")
_COMMAND: Final = re.compile(r"\\(?:[A-Za-z]+|.)")
_OPERATOR: Final = re.compile(r"\*\*|<=|>=|!=|==|[-+*/^_<>=,;:|!%&°]")

_ALIAS: Final = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac"), "frac"),
    **{"dbinom": "binom", "tbinom": "binom", "fbox": "boxed", "varnothing": "emptyset"},
    **{"varphi": "phi", "varepsilon": "epsilon"},
}
_OPERATORS: Final = {
    **{"le": "<=", "leq": "<=", "leqslant": "<=", "lt": "<", "ge": ">=", "geq": ">=", "geqslant": ">="},
    **{"gt": ">", "ne": "!=", "neq": "!=", "equiv": "=", "approx": "=", "sim": "=", "in": "in"},
    **{
        "cdot": "*",
        "times": "*",
        "ast": "*",
        "div": "/",
        "pm": "+-",
        "mp": "-+",
        "cup": "cup",
        "bigcup": "cup",
        "cap": "cap",
        "bigcap": "cap",
        "setminus": "setminus",
    },
    **{"mid": "|", "vert": "|", "lvert": "|", "rvert": "|", "colon": ":", "lor": "or", "vee": "or"},
    **{"%": "%", "&": "&", "\\": "\\\\"},
}
_BRACKETS: Final = {"lbrace": "\\{", "rbrace": "\\}", "lbrack": "[", "rbrack": "]", "{": "\\{", "}": "\\}"}


def tokenize(text: str) -> list[Token]:
    """Tokens of a cleaned text. Raises Unparsable."""
    tokens: list[Token] = []
    at = 0
    listing: list[bool] = []  # for each open bracket, whether a comma within it separates
    while at < len(text):
        char = text[at]
        if char.isspace():
            at += 1
            continue
        spaced = at > 0 and text[at - 1].isspace()
        token, at = _token(text, at, spaced, any(listing))
        if token.kind == "open":
            last = tokens[-1] if tokens else token
            argument = token.text == "{" and (last.kind == "command" or last.text in ("}", "^", "_"))
            listing.append(not argument)
        elif token.kind == "close" and listing:
            listing.pop()
        tokens.append(token)
        if len(tokens) > MAX_TOKENS:
            raise Unparsable("too many tokens")
    return tokens


def _token(text: str, at: int, spaced: bool, listing: bool) -> tuple[Token, int]:
    char = text[at]
    if char in "0123456789" or (char == "." and text[at + 1 : at + 2] in set("0123456789") | {"\\"}):
        return _number(text, at, spaced, listing)
    if match := _WORD.match(text, at):
        return Token("word", match[0], spaced), match.end()
    if char == "\\" and (match := _COMMAND.match(text, at)):
        name = match[0][1:]
        if name in _BRACKETS:
            bracket = _BRACKETS[name]
            return Token("open" if bracket in ("\\{", "[") else "close", bracket, spaced), match.end()
        if name in _OPERATORS:
            return Token("op", _OPERATORS[name], spaced), match.end()
        return Token("command", _ALIAS.get(name, name), spaced), match.end()
    if char in "({[":
        return Token("open", char, spaced), at + 1
    if char in ")}]":
        return Token("close", char, spaced), at + 1
    if char in "$€£¥₹":
        return Token("currency", char, spaced), at + 1
    if match := _OPERATOR.match(text, at):
        return Token("op", {"**": "^", "==": "="}.get(match[0], match[0]), spaced), match.end()
    raise Unparsable(f"unexpected {char!r}")


def _number(text: str, at: int, spaced: bool, listing: bool) -> tuple[Token, int]:
    grouped = _GROUPED.match(text, at)
    if grouped and (
        not listing or grouped["sep"] == " " or any(g[0] == "0" for g in grouped[0].split(",")[1:])
    ):
        # Inside brackets a comma separates, as in (1,234), unless what follows could be no number by itself.
        body = grouped[0].replace(grouped["sep"], "")
        return _decimal(body, "", spaced), grouped.end()
    match = _NUMBER.match(text, at)
    if match is None:
        raise Unparsable("a lone point")
    if match["cycle"]:
        plain, cycle = match["plain"], match["cycle"]
        if len(match[0]) > MAX_DIGITS:
            raise Unparsable("too many digits")
        whole = Fraction(int((match["lead"] or "0") + plain), 10 ** len(plain))
        value = whole + Fraction(int(cycle), (10 ** len(cycle) - 1) * 10 ** len(plain))
        return Token("number", match[0], spaced, value), match.end()
    return _decimal(match["body"], match["exp"] or "", spaced), match.end()


def _decimal(body: str, exponent: str, spaced: bool) -> Token:
    if len(body) > MAX_DIGITS:
        raise Unparsable("too many digits")
    shift = exponent[1:].lstrip("+")
    if len(shift) > 5 or abs(int(shift or "0")) > MAX_EXPONENT:
        raise Unparsable("exponent too large")
    value = Fraction(body) * Fraction(10) ** int(shift or "0")
    point = "." in body
    digits = len(body.replace(".", "").lstrip("0")) if point else None
    return Token("number", body + exponent, spaced, value, digits)
