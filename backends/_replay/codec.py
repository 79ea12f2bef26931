"""Completions and scores as JSON texts, each with what it cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, replace
from typing import Any

from stratagem.core.backend import Completion, TokenLogprob
from stratagem.core.errors import StoreError
from stratagem.core.usage import Usage


def dump_completion(completion: Completion, usage: Usage) -> str:
    """A completion without its index, which depends on who asks."""
    c = completion
    return _dump([c.text, c.finish, c.token_count, _tokens(c.tokens)], usage)


def load_completion(text: str, index: int) -> tuple[Completion, Usage]:
    """Raises StoreError for what `dump_completion` has not written."""
    try:
        (body, finish, count, tokens), usage = _load(text)
        return Completion(index, body, finish, count, _read_tokens(tokens)), usage
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(f"A stored completion cannot be read: {error}.") from error


def dump_scores(scores: Sequence[Sequence[TokenLogprob]], usage: Usage) -> str:
    """The tokens of all continuations."""
    return _dump([_tokens(tokens) for tokens in scores], usage)


def load_scores(text: str) -> tuple[tuple[tuple[TokenLogprob, ...], ...], Usage]:
    """Raises StoreError for what `dump_scores` has not written."""
    try:
        scores, usage = _load(text)
        return tuple(_read_tokens(tokens) for tokens in scores), usage
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(f"Stored scores cannot be read: {error}.") from error


def minus(a: Usage, b: Usage) -> Usage:
    """The difference, field by field."""
    return Usage(*(x - y for x, y in zip(astuple(a), astuple(b), strict=True)))


def _dump(value: list[Any], usage: Usage) -> str:
    return json.dumps({"value": value, "usage": asdict(usage)}, separators=(",", ":"))


def _load(text: str) -> tuple[Any, Usage]:
    data = json.loads(text)
    return data["value"], replace(Usage(), **data["usage"])


def _tokens(tokens: Sequence[TokenLogprob]) -> list[list[Any]]:
    return [[t.token, t.logprob, t.top] for t in tokens]


def _read_tokens(tokens: list[Any]) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(token, p, tuple((t, q) for t, q in top)) for token, p, top in tokens)
