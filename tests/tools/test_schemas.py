"""Tools from JSON schemas as servers write them: every draft, recursive, without types; and their limits."""

from __future__ import annotations

import asyncio
import re
import threading
from typing import Any

import pytest

import stratagem as sg
from stratagem.core.errors import ConfigurationError
from stratagem.tools.langchain import from_langchain
from stratagem.tools.notation import signature
from stratagem.tools.patterns import pattern
from stratagem.tools.schema_tool import schema_tool
from stratagem.tools.tool import Failed, Tool, Value

DRAFT_7 = "http://json-schema.org/draft-07/schema#"


async def echo(**arguments: Any) -> Any:
    return arguments


def of(schema: dict[str, Any], **options: Any) -> Tool:
    return schema_tool("f", "F.", schema, echo, **options)


ODD: dict[str, tuple[dict[str, Any], str, list[dict[str, Any]], list[dict[str, Any]]]] = {
    # by name: a schema, the signature, arguments that fit, arguments that do not
    "booleans": (
        {"properties": {"a": True, "b": False, "c": {"items": True, "type": "array"}}, "required": ["a"]},
        "f(a: any, c?: list of any)",
        [{"a": 1}, {"a": None, "c": [1, "x"]}],
        [{}, {"a": 1, "b": 2}],
    ),
    "tuples of draft 7": (
        {
            "$schema": DRAFT_7,
            "properties": {"at": {"type": "array", "items": [{"type": "integer"}, {"type": "string"}]}},
        },
        "f(at?: list of integer | string)",
        [{"at": [1, "x"]}],
        [{"at": ["x", 1]}],
    ),
    "tuples that do not say which draft": (
        {"properties": {"at": {"type": "array", "items": [{"type": "integer"}]}}},
        "f(at?: list of integer)",
        [{"at": [1]}],
        [{"at": ["x"]}],
    ),
    "tuples of now": (
        {"properties": {"at": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}]}}},
        "f(at?: list of integer | null)",
        [{"at": [1, None]}],
        [{"at": [None]}],
    ),
    "definitions": (
        {
            "$schema": DRAFT_7,
            "definitions": {"Day": {"type": "string", "enum": ["mon", "sun"]}},
            "properties": {"day": {"$ref": "#/definitions/Day"}},
            "required": ["day"],
        },
        'f(day: "mon" | "sun")',
        [{"day": "mon"}],
        [{"day": "tue"}],
    ),
    "a pointer to within": (
        {
            "$defs": {"A": {"properties": {"b/c": {"type": "integer"}}}},
            "properties": {"x": {"$ref": "#/$defs/A/properties/b~1c"}},
        },
        "f(x?: integer)",
        [{"x": 1}],
        [{"x": "y"}],
    ),
    "a name in place of a pointer": (
        {
            "$defs": {"A": {"$anchor": "a", "type": "integer"}},
            "properties": {"x": {"$ref": "#a"}},
        },
        "f(x?: any)",
        [{"x": 1}],
        [{"x": "y"}],
    ),
    "itself": (
        {"properties": {"n": {"type": "integer"}, "inner": {"$ref": "#"}}, "additionalProperties": False},
        "f(n?: integer, inner?: {n: integer, inner: object})",
        [{"n": 1, "inner": {"inner": {"n": 2}}}],
        [{"inner": {"inner": {"n": "x"}}}],
    ),
    "a tree": (
        {
            "$defs": {"T": {"type": "array", "items": {"$ref": "#/$defs/T"}}},
            "properties": {"t": {"$ref": "#/$defs/T"}},
        },
        "f(t?: list of array)",
        [{"t": [[], [[]]]}],
        [{"t": [[1]]}],
    ),
    "any JSON": (
        {
            "$defs": {
                "J": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"$ref": "#/$defs/J"}}]}
            },
            "properties": {"j": {"$ref": "#/$defs/J"}},
        },
        "f(j?: string | list of any)",
        [{"j": ["x", ["y"]]}],
        [{"j": [1]}],
    ),
    "free arguments": (
        {"properties": {"a": {"type": "integer"}}, "additionalProperties": True},
        "f(a?: integer, **others: any)",
        [{"a": 1, "b": [2]}, {"b-c": 1}],
        [{"a": "x"}],
    ),
    "free arguments of one type": (
        {"additionalProperties": {"type": "integer"}},
        "f(**others: integer)",
        [{"b": 1}, {}],
        [{"b": "x"}],
    ),
    "free arguments by pattern": (
        {"patternProperties": {"^x_": {"type": "integer"}}, "additionalProperties": False},
        "f(**others: any)",
        [{"x_b": 1}, {"y": "its owner's to check"}],
        [],
    ),
    "several types": (
        {"type": ["object", "null"], "properties": {"a": {"type": ["string", "integer"]}}, "required": None},
        "f(a?: string | integer)",
        [{"a": "x"}, {"a": 1}],
        [{"a": 1.5}],
    ),
    "one of several objects": (
        {
            "oneOf": [
                {
                    "properties": {"by": {"const": "name"}, "name": {"type": "string"}},
                    "required": ["by", "name"],
                },
                {"properties": {"by": {"const": "id"}, "id": {"type": "integer"}}, "required": ["by", "id"]},
            ],
        },
        'f(by: "name" | "id", name?: string, id?: integer)',
        [{"by": "name", "name": "x"}, {"by": "id", "id": 1}],
        [{"by": "name", "id": 1}, {"by": "x", "name": "x"}, {"name": "x"}],
    ),
    "all of several": (
        {
            "allOf": [{"$ref": "#/$defs/Base"}, {"properties": {"b": {"allOf": [{"type": "integer"}]}}}],
            "$defs": {"Base": {"properties": {"a": {"type": "string"}}, "required": ["a"]}},
        },
        "f(a: string, b?: integer)",
        [{"a": "x"}, {"a": "x", "b": 1}],
        [{}, {"a": "x", "b": "y"}],
    ),
    "all of it elsewhere": (
        {"$ref": "#/$defs/In", "$defs": {"In": {"properties": {"a": {"type": "string"}}, "required": ["a"]}}},
        "f(a: string)",
        [{"a": "x"}],
        [{"a": 1}, {}],
    ),
    "one needs another": (
        {"properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}},
        "f(a?: any, b?: any)",
        [{"b": 1}, {"a": 1, "b": 1}],
        [{"a": 1}],
    ),
    "nothing": ({"type": "object"}, "f()", [{}], [{"a": 1}]),
    "required but not said of what kind": ({"required": ["a"]}, "f(a: any)", [{"a": 1}], [{}]),
    "defaults and formats": (
        {
            "properties": {
                "at": {"type": "string", "format": "date-time", "default": "now"},
                "how": {"$ref": "#/$defs/H", "default": 2},
            },
            "$defs": {"H": {"type": "integer"}},
        },
        'f(at: string = "now", how: integer = 2)',
        [{"at": "whenever"}],
        [{"how": "x"}],
    ),
    "other names": (
        {
            "properties": {"a-b": {"type": "integer"}, "a.b": {"$ref": "#/properties/a-b"}, "1": {}},
            "required": ["a-b"],
        },
        "f(a_b: integer, a_b_?: any, _1?: any)",
        [{"a_b": 1, "a_b_": 2}],
        [{"a_b": 1, "a_b_": "x"}],
    ),
    "a pattern of another dialect": (
        {"properties": {"a": {"type": "string", "pattern": r"^\p{L}+$"}}},
        "f(a?: string)",
        [{"a": "x"}],
        [],
    ),
    "a constraint beside a type": (
        {"properties": {"a": {"type": "string", "anyOf": [{"minLength": 3}, {"const": "x"}]}}},
        "f(a?: string)",
        [{"a": "x"}, {"a": "abc"}],
        [{"a": "ab"}],
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_whatever_json_schema_allows_is_a_tool(name: str) -> None:
    schema, told, fit, unfit = ODD[name]
    tool = of(schema)
    assert signature(tool) == f"{told}: F."
    re.compile(pattern([tool]))
    for arguments in fit:
        assert tool.misfits(arguments) == []
    for arguments in unfit:
        assert tool.misfits(arguments), arguments
        assert isinstance(tool.check(arguments), Failed)
    assert sg.Toolbox([tool]).describe() == signature(tool)


def test_a_function_gets_its_own_names_and_those_that_are_free() -> None:
    schema = {"properties": {"a-b": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
    assert asyncio.run(of(schema)(a_b=1, more="x")) == Value({"a-b": 1, "more": "x"})


def test_together_arguments_are_checked_only_when_all_are_known() -> None:
    """One that is another call's result is not there yet when a plan is read."""
    tool = of(ODD["one of several objects"][0])
    assert tool.misfits({"by": "name"}, unknown=frozenset({"name"})) == []
    assert tool.misfits({"by": "name"}) != []


def test_a_schema_without_end_is_a_failed_call_wherever_the_stack_ends() -> None:
    """In the library's part in Rust, too, which then raises what is no Exception."""
    tool = of({"type": "object", "format": "x", "not": {"$ref": "#", "const": {}}, "if": {}})

    def deeper(calls: int) -> Any:
        return deeper(calls - 1) if calls else tool.check({})

    for calls in range(60):
        failed = deeper(calls)
        assert isinstance(failed, Failed)
        assert failed.why == "arguments"


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "array"}, "not of an object"),
        ({"properties": {"a": {"type": "strange"}}}, "its schema is none"),
        ({"$schema": DRAFT_7, "properties": {"a": {"type": 7}}}, "its schema is none"),
        ({"$schema": []}, "its schema is none"),
        ({"allOf": [{"$ref": "#"}]}, "never ends"),
    ],
)
def test_what_is_no_schema_of_arguments_is_refused(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(sg.ConfigurationError, match=words):
        of(schema)


# -- limits ------------------------------------------------------------------------------------------------


@sg.tool(effect="read_only")
async def length(text: str) -> int:
    """Its length."""
    return len(text)


def langchain_tool() -> Tool:
    from langchain_core.tools import tool

    @tool
    async def length(text: str) -> int:
        """Its length."""
        return len(text)

    return from_langchain(length, effect="read_only")


@pytest.mark.parametrize("make", [lambda: length, langchain_tool], ids=["ours", "langchain"])
def test_any_tool_takes_other_limits(make: Any) -> None:
    tool = make()
    other = tool.replace(name="size", concurrency=1, cost=2.0, max_bytes=1, on_failure="ask", retries=3)
    assert signature(other) == "size(text: string): Its length."
    assert (tool.name, tool.cost, tool.retries, tool.on_failure) == ("length", 0.0, 0, "skip")
    assert (other.cost, other.retries, other.on_failure, other.concurrency) == (2.0, 3, "ask", 1)
    assert asyncio.run(other(text="abc")) == Value(3)
    failed = asyncio.run(other(text="a" * 10))
    assert isinstance(failed, Failed)
    assert failed.why == "too_large"
    assert asyncio.run(tool(text="a" * 10)) == Value(10)


def test_a_plain_function_runs_in_a_thread() -> None:
    """Also where an argument has another name for the model."""

    def where(**arguments: Any) -> Any:
        return [threading.current_thread() is threading.main_thread(), arguments]

    tool = schema_tool("where", "W.", {"properties": {"a-b": {}}}, where)
    assert asyncio.run(tool(a_b=1)) == Value([False, {"a-b": 1}])


def test_retries_are_made() -> None:
    tries: list[int] = []

    async def third(**_: Any) -> str:
        tries.append(1)
        if len(tries) < 3:
            raise ValueError("not yet")
        return "there"

    tool = schema_tool("third", "T.", {}, third, effect="idempotent").replace(retries=2)
    assert asyncio.run(tool()) == Value("there", 3)


def test_places_are_not_shared_with_the_tool_that_it_was() -> None:
    """Each has as many as its own limit says."""

    async def main() -> int:
        running = most = 0
        open_ = asyncio.Event()

        @sg.tool(concurrency=1)
        async def wait() -> None:
            """Waits."""
            nonlocal running, most
            running += 1
            most = max(most, running)
            if running == 3:
                open_.set()
            await open_.wait()
            running -= 1

        await asyncio.gather(wait(), *(wait.replace(concurrency=2)() for _ in range(1)), wait.replace()())
        return most

    assert asyncio.run(asyncio.wait_for(main(), 10)) == 3


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"timeout": 0}, "greater than 0"),
        ({"retries": 1, "effect": "destructive"}, "would be retried"),
        ({"cost": -1}, "below 0"),
        ({"name": "a b"}, "cannot write"),
        ({"effect": "none"}, "Known are"),
        ({"time_out": 1}, "no limit 'time_out'"),
    ],
)
def test_a_limit_out_of_range_is_refused(limits: Any, words: str) -> None:
    for tool in (length, of({})):
        with pytest.raises(sg.ConfigurationError, match=words):
            tool.replace(**limits)


def test_types_that_are_in_each_other_are_told_and_admitted_in_a_bounded_way() -> None:
    async def function(**arguments: Any) -> Any:
        return arguments

    loop = {"A": {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "string"}]}}
    names = [f"A{i}" for i in range(8)]
    clique = {
        name: {
            "anyOf": [
                *({"type": "array", "items": {"$ref": f"#/$defs/{n}"}} for n in names),
                {"type": "string"},
            ]
        }
        for name in names
    }
    for definitions, first in ((loop, "A"), (clique, "A0")):
        schema = {"$defs": definitions, "properties": {"x": {"$ref": f"#/$defs/{first}"}}}
        odd = schema_tool("odd", "Odd.", schema, function)
        assert len(signature(odd)) < 10_000
        assert re.fullmatch(pattern([odd]), 'a = odd(x="y")')


def test_a_schema_that_stands_for_too_much_is_refused() -> None:
    def function(x: str) -> str:
        return x

    pair = lambda i: {"anyOf": [{"$ref": f"#/$defs/A{i + 1}"}] * 2}  # noqa: E731
    definitions: dict[str, Any] = {f"A{i}": pair(i) for i in range(30)} | {"A30": {"type": "string"}}
    with pytest.raises(ConfigurationError, match="more than 10000 parts"):
        schema_tool(
            "big", "Big.", {"$defs": definitions, "properties": {"x": {"$ref": "#/$defs/A0"}}}, function
        )
