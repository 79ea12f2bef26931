"""Constrained decoding: which tokens may come next under a regular expression, JSON schema or grammar.

Masks come from llguidance (https://github.com/guidance-ai/llguidance), which follows the text with an Earley
parser over a lexer of regular-expression derivatives.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import fill_next_token_bitmask
from numpy.typing import NDArray

from stratagem.core.errors import UnsupportedError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions  # in the stub only

Kind = Literal["choice", "regex", "json", "grammar"]

# JSON on one line, with or without a space after a separator: free white space lets a model run away in it.
_JSON_STYLE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ",[ ]?",
    "key_separator": ":[ ]?",
}


def _choice(value: Any) -> str:
    if not value or isinstance(value, str) or not all(isinstance(o, str) and o for o in value):
        raise UnsupportedError("A choice needs a list of non-empty strings.")
    return LLMatcher.grammar_from_lark(
        "start: " + " | ".join(json.dumps(o, ensure_ascii=False) for o in value)
    )


_COMPILE: dict[Kind, Callable[[Any], str]] = {
    "choice": _choice,
    "regex": LLMatcher.grammar_from_regex,
    "json": lambda schema: LLMatcher.grammar_from_json_schema(schema, defaults=_JSON_STYLE),
    "grammar": LLMatcher.grammar_from_lark,
}


class Grammar:
    """A compiled constraint; every sequence follows it with a cursor of its own."""

    def __init__(self, tokenizer: LLTokenizer, kind: Kind, value: Any) -> None:
        """``value``: for ``choice`` a list of strings, for ``json`` a schema (dict or text), else text
        (a grammar is in llguidance's Lark syntax).

        May take seconds for a large schema: run it in a thread.

        Raises:
            UnsupportedError: the constraint is malformed or beyond what llguidance does.
        """
        try:
            self._start = LLMatcher(tokenizer, _COMPILE[kind](value), log_level=0)
        except ValueError as error:
            raise UnsupportedError(f"The {kind} constraint cannot be read: {error}") from error
        if self._start.is_error():
            raise UnsupportedError(f"The {kind} constraint cannot be used: {self._start.get_error()}")
        self._words = (tokenizer.vocab_size + 31) // 32

    def cursor(self) -> Cursor:
        """A cursor at the start of the text."""
        return Cursor(self._start.deep_copy(), self._words)


class Cursor:
    """Where one sequence stands in its grammar."""

    __slots__ = ("_bits", "_matcher")

    def __init__(self, matcher: LLMatcher, words: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros((1, words), np.int32)

    def mask(self) -> NDArray[np.bool_]:
        """Tokens that may come next; the end token where the text may end.

        Raises:
            UnsupportedError: the grammar grew beyond the parser's limits.
        """
        try:
            fill_next_token_bitmask(self._matcher, self._bits)
        except ValueError as error:
            raise _beyond(str(error)) from error
        if self._matcher.is_error():
            raise _beyond(self._matcher.get_error())
        return np.unpackbits(self._bits.view(np.uint8)[0], bitorder="little").astype(np.bool_)

    def advance(self, token: int) -> bool:
        """Go past ``token``; returns whether the text is complete and nothing can follow.

        Raises:
            UnsupportedError: the grammar does not allow the token, or grew beyond the parser's limits.
        """
        if not self._matcher.consume_token(token):
            raise _beyond(self._matcher.get_error())
        return bool(self._matcher.is_stopped())


def _beyond(error: str) -> UnsupportedError:
    """The parser's first line says what is wrong; a dump of its state follows."""
    return UnsupportedError(
        f"The constraint cannot be followed: {error.partition(chr(10))[0]}.", remedy="Give a simpler one."
    )
