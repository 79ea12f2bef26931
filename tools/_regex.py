"""Regular expressions of others on values of others: in bounded time, so that none holds up the event loop.

A pattern of a JSON schema, and the value that it is to fit, may both come from a server, and Python's own engine
may take more than a lifetime over them. The engine here is linear in pattern times text, both of which are counted
before it begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from pydantic_core import SchemaError, SchemaValidator, core_schema

from stratagem.core.text import encodable

_MOST_WORK: Final = 10_000_000  # for all patterns of one check: states by characters, less than a second
_COMPILING: Final = 1000  # work for each state
_WIDE: Final = 10  # states of a class that most of Unicode may be in
_LARGEST: Final = 2000  # states of one
_KEPT: Final = 64

_TOKEN: Final = re.compile(
    r"""
      (?P<close>\))
    | (?P<open>\((?!\?)|\(\?(?:P?<\w+>|[ims-]*:))
    | (?P<other>\(\?[ims-]+\)|[*+?])
    | \{\s*(?P<least>\d{0,9})\s*(?P<range>,\s*(?P<most>\d{0,9})\s*)?\}
    | (?P<wide>\\[dDwWsS]|\\[pP](?:\w|\{[^{}]*\})|\.)
    | \\[xu]\{[^{}]*\}
    | \\[^pP]
    | (?P<set>\[(?!\^?\])(?:[^\]\[\\]|\\.)+\])
    | [^\\\[{}()]
    """,
    re.VERBOSE | re.DOTALL,
)
_OPERATION: Final = re.compile(r"&&|--|~~")  # of sets, in the engine's dialect only


class _NotHere(Exception):
    """A pattern that the engine does not take, or reads otherwise than JSON schema does, or that is too much."""


@dataclass(slots=True)
class _Work:
    left: int


_work: ContextVar[_Work | None] = ContextVar("stratagem_regex_work", default=None)


@contextmanager
def one_check() -> Iterator[None]:
    """All patterns that are looked for inside the outermost such block have a bounded time together."""
    if _work.get() is not None:
        yield
        return
    token = _work.set(_Work(_MOST_WORK))
    try:
        yield
    finally:
        _work.reset(token)


def found(pattern: str, text: str) -> bool | None:
    """Whether a pattern is somewhere in a text; ``None``: that is only for its owner to say.

    So it is with what finite automata cannot do (look-around, references back), with other dialects, and where it
    would take too long.
    """
    try:
        engine, size = _compiled(pattern)
        _spend(size * (len(text) + 1))
    except _NotHere:
        return None
    return None if engine is None else engine.isinstance_python(encodable(text))


@lru_cache(_KEPT)
def _compiled(pattern: str) -> tuple[SchemaValidator | None, int]:
    """``None`` where it cannot be; what the time does not allow now it may allow later."""
    _spend(_COMPILING * len(pattern))
    try:
        size = _size(pattern)
    except _NotHere:
        return None, 0
    _spend(_COMPILING * size)
    try:
        return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex")), size
    except (SchemaError, UnicodeError):
        return None, 0


def _spend(work: int) -> None:
    now = _work.get()
    assert now is not None, "outside of a check"
    if work > now.left:
        raise _NotHere
    now.left -= work


def _size(pattern: str) -> int:
    """About how many states it has where what is counted is written out."""
    groups: list[int] = []
    total = last = at = 0
    while at < len(pattern):
        token = _TOKEN.match(pattern, at)
        if token is None:
            raise _NotHere
        at = token.end()
        if token["open"]:
            groups.append(total)
            total = last = 0
        elif token["close"]:
            if not groups:
                raise _NotHere
            last = total + 1
            total = groups.pop() + last
        elif token["least"] is not None:
            times = max(int(token["least"] or 0) + bool(token["range"]), int(token["most"] or 0), 1)
            total += last * (times - 1)
            last *= times
        elif not token["other"]:
            wide = token["wide"] or (token["set"] and (token["set"][1] == "^" or "\\" in token["set"]))
            if token["set"] and _OPERATION.search(token["set"]):
                raise _NotHere
            last = _WIDE if wide else 1
            total += last
        if total > _LARGEST:
            raise _NotHere
    if groups:
        raise _NotHere
    return total + 1
