"""What is secret in a tool's arguments and data, and its place taken by a mask."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus

from pydantic import SecretBytes, SecretStr

from stratagem.tools._schemas import resolved

MASK = "***"


def _escaped(text: str) -> str:
    return json.dumps(text)[1:-1]


def write_only(schema: Any, root: Mapping[str, Any], seen: set[str]) -> bool:
    """Whether a JSON schema, or one that it refers to in ``root``, has a ``writeOnly`` part."""
    if isinstance(schema, list):
        return any(write_only(part, root, seen) for part in schema)
    if not isinstance(schema, dict):
        return False
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference not in seen:
        seen.add(reference)
        if write_only(resolved(schema, root), root, seen):
            return True
    return schema.get("writeOnly") is True or any(
        write_only(part, root, seen)
        for key, part in schema.items()
        if key not in ("default", "const", "enum")
    )


def texts(value: Any) -> Iterator[str]:
    """All texts of a value."""
    if isinstance(value, SecretStr | SecretBytes):
        value = value.get_secret_value()
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes):
        yield value.decode(errors="replace")
    else:
        parts: Iterable[Any] = ()
        if isinstance(value, Mapping):
            parts = value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            parts = value
        elif hasattr(value, "__dict__"):
            parts = vars(value).values()
        for part in parts:
            yield from texts(part)


def masked(data: Any, secrets: Sequence[str]) -> Any:
    """Text or JSON data without the secrets; a longer one goes first, since it may hold a shorter one."""
    if not secrets:
        return data
    if isinstance(data, str):
        for secret in secrets:
            # As they stand in URLs and in JSON: libraries put both into their errors.
            for written in dict.fromkeys(
                (secret, quote(secret, safe=""), quote_plus(secret), _escaped(secret))
            ):
                data = data.replace(written, MASK)
        return data
    if isinstance(data, int | float) and not isinstance(data, bool) and str(data) in secrets:
        return MASK
    if isinstance(data, dict):
        return {masked(key, secrets): masked(part, secrets) for key, part in data.items()}
    return [masked(part, secrets) for part in data] if isinstance(data, list) else data
