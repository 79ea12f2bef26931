"""Text from outside: what servers, models and tools give may hold what no UTF-8 can."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


def encodable(data: T) -> T:
    """Text, or lists, tuples and dictionaries of it, with U+FFFD for each lone surrogate: half a character, which
    JSON can escape (``"\\ud800"``) and neither a file, a request nor a JSON dump can hold. Two halves that belong
    together become their character. Data without any is given back itself; what is of another type stays as it is.
    """
    clean: T = _encodable(data)
    return clean


def _encodable(data: Any) -> Any:
    if isinstance(data, str):
        if data.isascii():
            return data
        try:
            data.encode()
        except UnicodeEncodeError:
            return data.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return data
    if type(data) is dict:
        items = {_encodable(key): _encodable(value) for key, value in data.items()}
        same = all(a is b and data[b] is items[a] for a, b in zip(items, data, strict=False))
        return data if same and len(items) == len(data) else items
    if type(data) is list or type(data) is tuple:
        parts = [_encodable(each) for each in data]
        same = all(a is b for a, b in zip(parts, data, strict=True))
        return data if same else type(data)(parts)
    return data
