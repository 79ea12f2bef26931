"""The plan notation: one call a line, ``name = tool(argument, key=argument)``.

An argument is JSON, or the name of another call for its result, or a part of that: ``a``, ``a.items[0].price``.
Positional arguments stand in the order of the signature. It takes a third of the tokens of the same plan in JSON,
a line is whole as soon as it ends, and a regular expression made of the tools' schemas (:func:`pattern`) admits
well-formed plans only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from stratagem.tools.dag import Call, Problem, Reference
from stratagem.tools.tool import MASK, Tool

_NAME: Final = re.compile(r"[A-Za-z_]\w*")
_INDEX: Final = re.compile(r"\[(\d{1,9})\]")
_WORDS: Final[Mapping[str, Any]] = {
    "true": True, "false": False, "null": None, "True": True, "False": False, "None": None,
}  # fmt: skip
_DECODER: Final = json.JSONDecoder()
_DEPTH: Final = 50  # of nested arguments

STRING: Final = r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])*"'
REFERENCE: Final = r"[a-z][a-z0-9_]{0,15}(?:\.[A-Za-z_][A-Za-z0-9_]{0,31}|\[[0-9]{1,4}\]){0,4}"
_SCALARS: Final[Mapping[str, str]] = {
    "string": STRING,
    "integer": r"-?(?:0|[1-9][0-9]{0,14})",
    "number": r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,12})?",
    "boolean": "(?:true|false)",
    "null": "null",
}


class _Unreadable(Exception):
    """What is wrong with a line, and where."""


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fail(self, wanted: str) -> _Unreadable:
        found = self.text[self.at : self.at + 20]
        return _Unreadable(f"{wanted} wanted, not {found!r}" if found else f"{wanted} wanted, but it ends")

    def space(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in " \t":
            self.at += 1

    def take(self, sign: str) -> bool:
        self.space()
        if self.text.startswith(sign, self.at):
            self.at += len(sign)
            return True
        return False

    def need(self, sign: str) -> None:
        if not self.take(sign):
            raise self.fail(f"{sign!r}")

    def name(self, what: str) -> str:
        self.space()
        match = _NAME.match(self.text, self.at)
        if match is None:
            raise self.fail(what)
        self.at = match.end()
        return match[0]

    def value(self, depth: int = 0) -> Any:
        if depth > _DEPTH:
            raise _Unreadable("the arguments are nested too deeply")
        if self.take("["):
            return [each for _, each in self.listed("]", depth, keyed=False)]
        if self.take("{"):
            return dict(self.listed("}", depth, keyed=True))
        self.space()
        if _NAME.match(self.text, self.at):
            word = self.name("an argument")
            return _WORDS[word] if word in _WORDS else self.reference(word)
        try:
            value, self.at = _DECODER.raw_decode(self.text, self.at)
        except ValueError:
            raise self.fail("JSON or the name of a call") from None
        return value

    def reference(self, call: str) -> dict[str, Any]:
        path: list[str | int] = []
        while self.at < len(self.text):
            if index := _INDEX.match(self.text, self.at):
                self.at = index.end()
                path.append(int(index[1]))
            elif self.take("["):
                key = self.value(_DEPTH)
                if not isinstance(key, str):
                    raise self.fail("a key or a position")
                path.append(key)
                self.need("]")
            elif self.text[self.at] == ".":
                self.at += 1
                path.append(self.name("a field"))
            else:
                break
        return {"$ref": call, "path": path}

    def listed(self, end: str, depth: int, *, keyed: bool) -> Iterable[tuple[str, Any]]:
        while not self.take(end):
            key = ""
            if keyed:
                key = self.value(_DEPTH)
                if not isinstance(key, str):
                    raise self.fail("a key in quotes")
                self.need(":")
            yield key, self.value(depth + 1)
            if not self.take(","):
                self.need(end)
                return

    def arguments(self) -> Iterable[tuple[str, Any]]:
        """Each with its key; positional ones have none."""
        self.need("(")
        while not self.take(")"):
            self.space()
            start, key = self.at, ""
            if match := _NAME.match(self.text, self.at):
                self.at = match.end()
                if self.take("=") and not self.text.startswith("=", self.at):
                    key = match[0]
                else:
                    self.at = start
            yield key, self.value()
            if not self.take(","):
                self.need(")")
                break
        self.space()
        if self.at < len(self.text):
            raise self.fail("the end of the line")


def parse(line: str, tools: Mapping[str, Tool], *, name: str | None = None) -> Call | Problem:
    """The call that a line writes; with ``name`` the line is the right side alone, ``tool(...)``.

    What is wrong with it is a problem of the kind ``malformed`` or ``bad_arguments``.
    """
    reader = _Reader(line.strip())
    call = name
    try:
        if call is None:
            call = reader.name("the name of a call")
            reader.need("=")
        tool = reader.name("the name of a tool")
        written = list(reader.arguments())
    except _Unreadable as error:
        return Problem("malformed", call, f"{line.strip()[:200]!r}: {error}.")
    order = list(tools[tool].parameters["properties"]) if tool in tools else []
    arguments: dict[str, Any] = {}
    for position, (key, value) in enumerate(written):
        if not key and tool in tools and position >= len(order):
            return Problem("bad_arguments", call, f"{tool} takes {len(order)} arguments, not {len(written)}.")
        key = key or (order[position] if position < len(order) else str(position))
        if key in arguments:
            return Problem("bad_arguments", call, f"{tool} is given {key!r} twice.")
        arguments[key] = value
    return Call.parse({"id": call, "tool": tool, "arguments": arguments})


def write(call: Call, tools: Mapping[str, Tool]) -> str:
    """The right side of a call's line: :func:`parse` with its id gives the call back, secrets aside."""
    order = list(tools[call.tool].parameters["properties"]) if call.tool in tools else []
    listed = sorted(
        call.arguments.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)
    )
    parts: list[str] = []
    hidden = tools[call.tool].hidden if call.tool in tools else frozenset()
    for position, (key, value) in enumerate(listed):
        if key in hidden:
            value = MASK
        positional = position < len(order) and order[position] == key
        parts.append(_written(value) if positional else f"{key}={_written(value)}")
    return f"{call.tool}({', '.join(parts)})"


def _written(value: Any) -> str:
    if isinstance(value, Reference):
        return value.call + "".join(_step(part) for part in value.path)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {_written(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _step(part: str | int) -> str:
    if isinstance(part, str) and _NAME.fullmatch(part):
        return f".{part}"
    return f"[{json.dumps(part)}]"


def signature(tool: Tool) -> str:
    """A line that tells a model how to call it: ``price(item: string, day: string = "now"): What it costs.``"""
    shared = tool.parameters.get("$defs", {})
    parts: list[str] = []
    for key, schema in tool.parameters["properties"].items():
        optional = "" if key in tool.parameters["required"] else f" = {json.dumps(schema.get('default'))}"
        parts.append(f"{key}: {_type(schema, shared)}{optional}")
    return f"{tool.name}({', '.join(parts)}): {' '.join(tool.description.split())}"


def _resolved(schema: Mapping[str, Any], shared: Mapping[str, Any]) -> Mapping[str, Any]:
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    found: Mapping[str, Any] = shared.get(name, schema)
    return found


def _type(schema: Mapping[str, Any], shared: Mapping[str, Any], depth: int = 0) -> str:
    schema = _resolved(schema, shared)
    if "const" in schema or "enum" in schema:
        return " | ".join(json.dumps(each) for each in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_type(each, shared, depth) for each in schema["anyOf"]))
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}), shared, depth)}"
    if kind == "object" and schema.get("properties") and depth < 2:
        fields = (f"{key}: {_type(each, shared, depth + 1)}" for key, each in schema["properties"].items())
        return f"{{{', '.join(fields)}}}"
    return kind if isinstance(kind, str) else " | ".join(kind)


def pattern(tools: Iterable[Tool], *, named: bool = True) -> str:
    """A regular expression for one call of one of the tools; ``named``: with ``name = `` before it.

    Required arguments stand in order, then those with defaults by key, in order. Any argument may be a reference.
    Whether a reference leads to a call no regular expression can say; :class:`~stratagem.tools.dag.Plan` does.
    """
    calls = "|".join(map(_call, tools))
    return f"{'[a-z][a-z0-9_]{0,15} = ' if named else ''}(?:{calls})"


def _call(tool: Tool) -> str:
    required: list[str] = []
    optional: list[str] = []
    shared = tool.parameters.get("$defs", {})
    for key, schema in tool.parameters["properties"].items():
        value = f"(?:{REFERENCE}|{_value(schema, shared, 0)})"
        if key not in tool.parameters["required"]:
            optional.append(f"{re.escape(key)}={value}")
        else:
            required.append(value if not optional else f"{re.escape(key)}={value}")
    parts = ", ".join(required)
    if not optional:
        return rf"{re.escape(tool.name)}\({parts}\)"
    if required:
        return rf"{re.escape(tool.name)}\({parts}{''.join(f'(?:, {each})?' for each in optional)}\)"
    # Without one that is always there, the comma belongs to all but the first that is given.
    tails = (
        each + "".join(f"(?:, {later})?" for later in optional[i + 1 :]) for i, each in enumerate(optional)
    )
    return rf"{re.escape(tool.name)}\((?:{'|'.join(tails)})?\)"


def _value(schema: Mapping[str, Any], shared: Mapping[str, Any], depth: int) -> str:
    schema = _resolved(schema, shared)
    if "const" in schema or "enum" in schema:
        return "|".join(re.escape(json.dumps(each)) for each in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return "|".join(dict.fromkeys(_value(each, shared, depth) for each in schema["anyOf"]))
    kinds: Sequence[str] = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return "|".join(_of_kind(kind, schema, shared, depth) for kind in kinds or (*_SCALARS, "array", "object"))


def _of_kind(kind: str, schema: Mapping[str, Any], shared: Mapping[str, Any], depth: int) -> str:
    if kind in _SCALARS:
        return _SCALARS[kind]
    if depth > 2:  # regular expressions end somewhere
        return r"\[\]" if kind == "array" else r"\{\}"
    if kind == "array":
        item = f"(?:{REFERENCE}|{_value(schema.get('items', {}), shared, depth + 1)})"
        return rf"\[(?:{item}(?:, {item}){{0,63}})?\]"
    fields = schema.get("properties")
    if fields:
        needed = schema.get("required", list(fields))
        parts = [
            f"{re.escape(json.dumps(key))}: (?:{REFERENCE}|{_value(each, shared, depth + 1)})"
            for key, each in fields.items()
            if key in needed
        ]
        return rf"\{{{', '.join(parts)}\}}"
    item = f"{STRING}: (?:{REFERENCE}|{_value({}, shared, depth + 1)})"
    return rf"\{{(?:{item}(?:, {item}){{0,15}})?\}}"
