"""JSON schemas, as far as the plan notation has to read them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

_ANYTHING: Mapping[str, Any] = {}
_NOTHING: Mapping[str, Any] = {"enum": []}
_DATA = ("default", "const", "enum", "examples")
_DEFINED = ("$defs", "definitions")


def resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that ``schema`` is, or refers to within ``root``: of JSON schema's booleans ``{}`` and an empty
    ``enum``, of a reference that leads nowhere, or round in a circle, ``{}``."""
    seen: set[str] = set()
    while isinstance(schema, Mapping) and isinstance(reference := schema.get("$ref"), str):
        if reference in seen or not (reference == "#" or reference.startswith("#/")):
            return _ANYTHING
        seen.add(reference)
        schema = _at(reference[1:], root)
    if isinstance(schema, Mapping):
        return schema
    return _NOTHING if schema is False else _ANYTHING


def size(schema: Any, root: Mapping[str, Any]) -> int:
    """How many parts a schema has where each reference stands for what it leads to, once."""
    sizes: dict[str, int] = {}

    def of(part: Any) -> int:
        if isinstance(part, list):
            return sum(map(of, part))
        if not isinstance(part, Mapping):
            return 0
        total = 1 + sum(of(each) for key, each in part.items() if key not in _DATA)
        if isinstance(reference := part.get("$ref"), str):
            if reference not in sizes:
                sizes[reference] = 1  # a type that is in itself
                sizes[reference] = of(resolved(part, root))
            total += sizes[reference]
        return total

    return of({key: each for key, each in schema.items() if key not in _DEFINED})


def _at(pointer: str, root: Any) -> Any:
    """What a JSON pointer (RFC 6901) leads to; ``None``: nothing."""
    place = root
    for step in unquote(pointer).split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, Mapping):
            place = place.get(key)
        elif isinstance(place, list) and key.isdecimal() and int(key) < len(place):
            place = place[int(key)]
        else:
            return None
    return place


def written(keys: Iterable[str]) -> dict[str, str]:
    """By key, a name that the plan notation can write; of two that would be the same the later has a ``_`` more."""
    names: dict[str, str] = {}
    for key in keys:
        name = re.sub(r"\W", "_", key, flags=re.ASCII)
        name = name if name[:1].isalpha() or name[:1] == "_" else f"_{name}"
        while name in names.values():
            name += "_"
        names[key] = name
    return names
