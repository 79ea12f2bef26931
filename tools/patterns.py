"""Regular expressions that admit well-formed calls in the plan notation, made of the tools' schemas.

A regular expression ends somewhere: containers nest up to six deep where their schema says what is in them, three
deep where it does not or where it is recursive, and less where the whole would be too long for an engine.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from stratagem.tools._schemas import resolved
from stratagem.tools.notation import WORDS
from stratagem.tools.tool import Tool


def _but(excluded: str) -> str:
    """Small letters without some, as they stand in a character class."""
    rest = re.split(f"[{excluded}]", string.ascii_lowercase)
    return "".join(each if len(each) < 3 else f"{each[0]}-{each[-1]}" for each in rest)


def _names(words: Sequence[str]) -> str:
    """Names of calls, but for words that begin with different letters: engines have no look-ahead."""
    beginnings = [(word[:i], word[i : i + 1]) for word in words for i in range(1, len(word) + 1)]
    others = "|".join(f"{start}[{_but(letter) if letter else 'a-z'}0-9_]" for start, letter in beginnings)
    short = "|".join(start for start, letter in beginnings if letter)
    return f"(?:(?:[{_but(''.join(word[0] for word in words))}]|{others})[a-z0-9_]{{0,15}}|{short})"


_KEY: Final = "[A-Za-z_][A-Za-z0-9_]{0,31}"
NAME: Final = _names([word for word in WORDS if word.islower()])
STRING: Final = r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])*"'
_PATH: Final = rf"(?:\.{_KEY}|\[[0-9]{{1,4}}\]){{0,4}}"
REFERENCE: Final = NAME + _PATH
_BARE: Final = "[a-z][a-z0-9_]{0,15}"
_INNER: Final = (
    f"(?:{_BARE}|(?:(?:[a-eg-mo-su-z]|[fnt](?:[b-qstv-z0-9_]|[aru][a-km-tv-z0-9_]))[a-z0-9_]{{0,14}}|[fnt][aru]?)"
    + _PATH.replace("{0,4}", "{1,4})")
)
"""In a container, where most references stand, and it has to be shorter: there ``true`` may take the place of a
reference without a path, and one with a path has no name like ``truck`` or ``fault``, with two of the three letters
that a word begins with."""
_INTEGER: Final = "-?(?:0|[1-9][0-9]{0,18})"
_SCALARS: Final[Mapping[str, str]] = {
    "string": STRING,
    "integer": _INTEGER,
    "number": rf"{_INTEGER}(?:\.[0-9]{{1,17}})?(?:[eE][+-]?[0-9]{{1,2}})?",
    "boolean": "(?:true|false)",
    "null": "null",
}
_ANY: Final = ("string", "number", "boolean", "null", "array", "object")
_FALLBACK: Final = (
    f"(?: else (?:skip|stop|ask|{'|'.join(_SCALARS[k] for k in ('string', 'number', 'boolean', 'null'))}))?"
)
_DEEPEST: Final = 6
_LONGEST: Final = 32_000  # characters for one tool
_MOST_PARTS: Final = 2_000  # written for one tool


def pattern(tools: Iterable[Tool], *, named: bool = True, fallbacks: bool = False) -> str:
    """A regular expression for one call of one of the tools.

    Required arguments stand in order, then those with defaults by key, in order. Any argument may be a reference.
    Whether a reference leads to a call no regular expression can say; :class:`~stratagem.tools.dag.Plan` does. Nor
    does one say that a further argument of a tool that takes any stands once.

    Args:
        named: with ``name = `` before it.
        fallbacks: with what is to be done after a failure, ``else ...``, behind it.
    """
    calls = "|".join(_call(each, fallbacks) for each in tools)
    return f"{f'{NAME} = ' if named else ''}(?:{calls})"


class _TooLong(Exception):
    """The regular expression of a tool."""


def _call(tool: Tool, fallbacks: bool) -> str:
    for depth in range(_DEEPEST, 0, -1):
        try:
            call = _Writer(tool.parameters, depth).call(tool.name)
            break
        except _TooLong:
            continue
    else:  # anything in place of each argument
        properties: dict[str, Any] = {key: {} for key in tool.parameters["properties"]}
        call = _Writer({**tool.parameters, "properties": properties}, 1, math.inf).call(tool.name)
    return f"{call}(?: else {call})?{_FALLBACK}" if fallbacks else call


class _Writer:
    """Writes what schemas admit, down to a depth and up to a length."""

    def __init__(self, root: Mapping[str, Any], depth: int, longest: float = _LONGEST) -> None:
        self._root = root
        self._depth = depth
        self._longest = longest
        self._known: dict[tuple[str, int, frozenset[str]], str] = {}

    def _of(self, text: str) -> str:
        if len(text) > self._longest or len(self._known) > _MOST_PARTS:
            raise _TooLong
        return text

    def call(self, name: str) -> str:
        """All arguments of a call."""
        required: list[str] = []
        optional: list[str] = []
        for key, schema in self._root["properties"].items():
            value = self._argument(schema, 0, frozenset())
            if key not in self._root["required"]:
                optional.append(f"{re.escape(key)}={value}")
            else:
                required.append(value if not optional else f"{re.escape(key)}={value}")
        others = ""
        if more := self._root.get("additionalProperties"):
            other = f"{_KEY}={self._argument(more, 0, frozenset())}"
            others = f"{other}(?:, {other}){{0,7}}"
        return self._of(rf"{re.escape(name)}\({_series(required, optional, others)}\)")

    def _argument(self, schema: Any, depth: int, inside: frozenset[str]) -> str:
        innermost = depth > max(2, self._depth - 2) and schema in ({}, True)  # most of the length
        reference = REFERENCE if not depth else _BARE if innermost else _INNER
        return f"(?:{reference}|{self._value(schema, depth, inside)})"

    def _value(self, schema: Any, depth: int, inside: frozenset[str]) -> str:
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if reference is None:
            return self._plain(resolved(schema, self._root), depth, inside)
        if reference in inside:  # recursion soon ends
            depth += 1
            if depth > self._depth:
                return "null"
        place = reference, depth, inside
        if place not in self._known:
            inside |= {reference}
            self._known[place] = self._plain(resolved(schema, self._root), depth, inside)
        return self._known[place]

    def _plain(self, schema: Mapping[str, Any], depth: int, inside: frozenset[str]) -> str:
        if "const" in schema or "enum" in schema:
            options = schema.get("enum") or [schema.get("const")]
            return self._of("|".join(re.escape(json.dumps(each, ensure_ascii=False)) for each in options))
        for key in ("anyOf", "oneOf"):
            if key in schema:
                parts = [self._value(each, depth, inside) for each in schema[key]]
                return self._of("|".join(dict.fromkeys(parts)))
        kinds: Sequence[str] = schema.get("type", ())
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if not kinds:  # anything
            depth += 1
        return self._of("|".join(self._of_kind(kind, schema, depth, inside) for kind in kinds or _ANY))

    def _of_kind(self, kind: str, schema: Mapping[str, Any], depth: int, inside: frozenset[str]) -> str:
        if kind in _SCALARS:
            return _SCALARS[kind]
        if depth >= self._depth:
            return r"\[\]" if kind == "array" else r"\{\}"
        if kind == "array":
            items = schema.get("items", {})
            item = self._argument({} if isinstance(items, list) else items, depth + 1, inside)
            return rf"\[(?:{item}(?:, {item}){{0,63}})?\]"
        fields = schema.get("properties")
        if fields:
            needed = schema.get("required", ())
            parts = {
                key: f"{re.escape(json.dumps(key))}: {self._argument(each, depth + 1, inside)}"
                for key, each in fields.items()
            }
            required = [part for key, part in parts.items() if key in needed]
            optional = [part for key, part in parts.items() if key not in needed]
            return rf"\{{{_series(required, optional)}\}}"
        more = schema.get("additionalProperties", {})
        item = f"{STRING}: {self._argument(more, depth + 1, inside)}"
        return rf"\{{(?:{item}(?:, {item}){{0,15}})?\}}"


def _series(required: Sequence[str], optional: Sequence[str], others: str = "") -> str:
    """The required ones, then some of the optional ones, then maybe others, with commas between."""
    optional = [*optional, others] if others else optional
    more = [f"(?:, {each})?" for each in optional]
    if required or not optional:
        return ", ".join(required) + "".join(more)
    # Without one that is always there, the comma belongs to all but the first that is given.
    return f"(?:{'|'.join(each + ''.join(more[i:]) for i, each in enumerate(optional, 1))})?"
