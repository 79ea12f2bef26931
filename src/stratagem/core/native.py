"""Native calls of tools as text: a line ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` for each.

The convention is that of Hermes models. Servers that give calls in fields of their own are translated to it and
back, so that caches, journals and traces hold nothing but text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from stratagem.core.text import encodable

OPEN: Final = "<tool_call>"
CLOSE: Final = "</tool_call>"
CUT: Final = " ..."
"""Ends a line of calls, native or not, within which a turn was cut short."""
_LINE: Final = re.compile(rf"\s*{OPEN}(.*){CLOSE}\s*", re.DOTALL)


def opened(name: str) -> str:
    """The text of a call up to its arguments."""
    return f'{OPEN}{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '


def closed(*, empty: bool) -> str:
    """The text of a call after its arguments; ``empty``: where none were given."""
    return f"{'{}' if empty else ''}}}{CLOSE}"


def read_call(line: str) -> tuple[str, Mapping[str, Any]] | None:
    """Name and arguments of the call that a line is; ``None`` for any other line."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    try:
        data = encodable(json.loads(match[1]))
        name, arguments = data["name"], data.get("arguments") or {}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return (name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


def as_call(line: str) -> str | None:
    """The call that a line is, as ``tool(key=value)`` in the plan notation; the line itself where it began as a
    call and is none; ``None`` for any other line.

    Texts stay texts: a native call takes no other call's result.
    """
    found = read_call(line)
    if found is None:
        return line.strip() if line.lstrip().startswith(OPEN) else None
    name, arguments = found
    parts = (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
    return f"{re.sub(r'[^A-Za-z0-9_]', '_', name)}({', '.join(parts)})"
