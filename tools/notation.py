"""The plan notation: one call a line, ``name = tool(argument, key=argument)``.

An argument is JSON, or the name of another call for its result, or a part of that: ``a``, ``a.items[0].price``.
Positional arguments stand in the order of the signature. Behind a call may stand what is done after a failure:

    a = price("tea", day="now") else price("tea") else 0

``else`` and the same tool with other arguments, which are tried; and at the end ``else`` and a value to go on with,
or ``skip`` (what takes the result), ``stop`` (the whole plan), or ``ask`` (the model for another call).

It takes a third of the tokens of the same plan in JSON, a line is whole as soon as it ends, and a regular
expression made of the tools' schemas (:func:`stratagem.tools.patterns.pattern`) admits well-formed plans only.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from stratagem.core.native import CUT
from stratagem.core.text import encodable
from stratagem.tools._schemas import resolved
from stratagem.tools.dag import Call, Problem, Reference, references
from stratagem.tools.tool import MASK, Tool

_NAME: Final = re.compile(r"[A-Za-z_]\w*")
_INDEX: Final = re.compile(r"\[(\d{1,9})\]")
WORDS: Final[Mapping[str, Any]] = {
    "true": True, "false": False, "null": None, "True": True, "False": False, "None": None,
}  # fmt: skip
"""Names that are values, and so can be those of no call."""
_AFTER: Final[Mapping[str, str]] = {"skip": "skip", "stop": "fail", "ask": "ask"}  # a failure
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"?')
_DEPTH: Final = 50  # of nested arguments
_MOST_PARTS: Final = 500  # of the type of an argument, as a model reads it


class _Unreadable(Exception):
    """What is wrong with a line, and where."""


def _no_constant(name: str) -> Any:
    raise ValueError(name)  # NaN and infinities are no JSON


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)


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
        word = self.word()
        if not word:
            raise self.fail(what)
        self.at += len(word)
        return word

    def word(self) -> str:
        """The name that comes next, if one does; it stays where it is."""
        self.space()
        match = _NAME.match(self.text, self.at)
        return "" if match is None else match[0]

    def value(self, depth: int = 0) -> Any:
        if depth > _DEPTH:
            raise _Unreadable("the arguments are nested too deeply")
        if self.take("["):
            return [each for _, each in self.listed("]", depth, keyed=False)]
        if self.take("{"):
            return dict(self.listed("}", depth, keyed=True))
        if word := self.word():
            self.at += len(word)
            return WORDS[word] if word in WORDS else self.reference(word)
        try:
            value, self.at = _DECODER.raw_decode(self.text, self.at)
        except ValueError:
            raise self.fail("JSON or the name of a call") from None
        return encodable(value)  # JSON can escape what no text can hold

    def reference(self, call: str) -> Reference:
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
        return Reference.model_validate({"$ref": call, "path": path})

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
            key = self.word()
            start = self.at
            self.at += len(key)
            if not (key and self.take("=") and not self.text.startswith("=", self.at)):
                self.at, key = start, ""
            yield key, self.value()
            if not self.take(","):
                self.need(")")
                break

    def fallbacks(self) -> Iterable[tuple[str, Any]]:
        """What stands behind a call: each with the tool that it calls, or with the word that it is."""
        while (word := self.word()) == "else":
            self.at += len(word)
            word = self.word()
            after = self.text[self.at + len(word) :].lstrip(" \t")
            called = after.startswith("(")  # a tool may have any name
            if not word or (word in WORDS and not called):
                yield "", self.value()
                continue
            self.at += len(word)
            yield word, list(self.arguments()) if called or word not in _AFTER else None
        if self.at < len(self.text):
            raise self.fail("the end of the line")


def parse(line: str, tools: Mapping[str, Tool], *, name: str | None = None) -> Call | Problem:
    """The call that a line writes; with ``name`` the line is the right side alone, ``tool(...)``.

    What is wrong with it is a problem of the kind ``malformed`` or ``bad_arguments``.
    """
    line = line.strip()
    reader = _Reader(line)
    call = name
    try:
        if call is None:
            call = reader.name("the name of a call")
            reader.need("=")
            if call in WORDS:
                raise _Unreadable(f"a call cannot be named {call}, which is a value: another name is wanted")
        if line.endswith(CUT):
            raise _Unreadable("the turn ended within it, for it was too long")
        tool = reader.name("the name of a tool")
        written = list(reader.arguments())
        arguments = _by_name(tool, written, tools)
        after = _after(tool, reader.fallbacks(), tools)
    except _Unreadable as error:
        return Problem("malformed", call, f"{shown(line, tools)[:200]!r}: {shown(str(error), tools)}.")
    except _Unfit as error:
        return Problem("bad_arguments", call, f"{error}.")
    # Not validated: data of the form {"$ref": ...} is data here.
    return Call.model_construct(id=call, tool=tool, arguments=arguments, **after)


class _Unfit(Exception):
    """What is wrong with the arguments of a call."""


def _by_name(tool: str, written: Sequence[tuple[str, Any]], tools: Mapping[str, Tool]) -> dict[str, Any]:
    order = list(tools[tool].parameters["properties"]) if tool in tools else []
    arguments: dict[str, Any] = {}
    for position, (key, value) in enumerate(written):
        if not key and tool in tools and position >= len(order):
            raise _Unfit(f"{tool} takes {len(order)} arguments, not {len(written)}")
        key = key or (order[position] if position < len(order) else str(position))
        if key in arguments:
            raise _Unfit(f"{tool} is given {key!r} twice")
        arguments[key] = value
    return arguments


def _after(tool: str, fallbacks: Iterable[tuple[str, Any]], tools: Mapping[str, Tool]) -> dict[str, Any]:
    """What a call does after a failure, as fields of :class:`Call`."""
    fields: dict[str, Any] = {}
    others: list[dict[str, Any]] = []
    for word, value in fallbacks:
        if "on_failure" in fields:
            raise _Unreadable("nothing can stand behind the last else")
        if word in _AFTER and value is None:
            fields["on_failure"] = _AFTER[word]
        elif not word:
            if any(True for _ in references(value)):
                raise _Unreadable("a value behind else takes no result")
            fields |= {"on_failure": "default", "default": value}
        elif word != tool:
            raise _Unreadable(f"behind else stands {tool} with other arguments, a value, skip, stop or ask")
        else:
            others.append(_by_name(tool, value, tools))
    return fields | ({"alternatives": others} if others else {})


def write(call: Call, tools: Mapping[str, Tool]) -> str:
    """The right side of a call's line, without what is done after a failure: :func:`parse` with its id gives the
    call back, secrets aside."""
    return written(call.tool, call.arguments, tools)


def written(tool: str, arguments: Mapping[str, Any], tools: Mapping[str, Tool]) -> str:
    """The right side of the line of a call of ``tool``, secrets aside."""
    order = list(tools[tool].parameters["properties"]) if tool in tools else []
    listed = sorted(
        arguments.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)
    )
    parts: list[str] = []
    for position, (key, value) in enumerate(listed):
        if _is_secret(tool, key, tools):
            value = MASK
        positional = position < len(order) and order[position] == key
        parts.append(_written(value) if positional else f"{key}={_written(value)}")
    return f"{tool}({', '.join(parts)})"


def _is_secret(tool: str, key: str, tools: Mapping[str, Tool]) -> bool:
    """Whether an argument may be one: also under a wrong name, of the argument or of the tool."""
    if tool not in tools:
        return any(each.hidden for each in tools.values())
    hidden = tools[tool].hidden
    return key in hidden or (bool(hidden) and key not in tools[tool].parameters["properties"])


def shown(line: str, tools: Mapping[str, Tool]) -> str:
    """A line that is no call, without secrets: where a tool takes some, any text of the line may be one."""
    for each in tools.values():
        line = each.masked(line)
    if not any(each.hidden for each in tools.values()):
        return line
    return _QUOTED.sub(lambda match: json.dumps(MASK) if len(match[0]) > 2 else match[0], line)


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
    """A line that tells a model how to call it: ``price(item: string, day: string = "now"): What it costs.``

    A ``?`` behind a name: it may be left out. ``**others``: any further arguments, by key.
    """
    root = tool.parameters
    parts: list[str] = []
    for key, schema in root["properties"].items():
        optional = key not in root["required"]
        default = optional and isinstance(schema, Mapping) and "default" in schema
        end = f" = {json.dumps(schema['default'])}" if default else ""
        parts.append(
            f"{key}{'?' if optional and not end else ''}: {_type(schema, root, itertools.count())}{end}"
        )
    if others := root.get("additionalProperties"):
        parts.append(f"**others: {_type(others, root, itertools.count())}")
    return f"{tool.name}({', '.join(parts)}): {' '.join(tool.description.split())}"


def _type(
    schema: Any,
    root: Mapping[str, Any],
    parts: Iterator[int],
    depth: int = 0,
    inside: frozenset[str] = frozenset(),
) -> str:
    if next(parts) > _MOST_PARTS:  # types that are in each other have more than anybody would read
        return "any"
    reference = schema.get("$ref") if isinstance(schema, Mapping) else None
    schema = resolved(schema, root)
    kind = schema.get("type", "any")
    name = kind if isinstance(kind, str) else " | ".join(kind)
    if reference is not None:
        if reference in inside:  # a recursive type
            return name
        inside |= {reference}
    if "const" in schema or "enum" in schema:
        options = schema.get("enum", [schema.get("const")])
        return " | ".join(json.dumps(each) for each in options) or "nothing"
    for key, joint in (("anyOf", " | "), ("oneOf", " | "), ("allOf", " & ")):
        if key in schema and kind == "any":
            return joint.join(dict.fromkeys(_type(each, root, parts, depth, inside) for each in schema[key]))
    if kind == "array":
        items = schema.get("prefixItems") or schema.get("items", {})
        items = {"anyOf": items} if isinstance(items, list) else items
        return f"list of {_type(items, root, parts, depth, inside)}"
    if kind == "object" and schema.get("properties") and depth < 2:
        fields = (
            f"{key}: {_type(each, root, parts, depth + 1, inside)}"
            for key, each in schema["properties"].items()
        )
        return f"{{{', '.join(fields)}}}"
    return name
