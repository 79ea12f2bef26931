"""Patterns of a schema that somebody else has written: their time is bounded, whatever they and the values are."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stratagem.tools._regex import found, one_check
from stratagem.tools.langchain import from_langchain
from stratagem.tools.schema_tool import schema_tool
from stratagem.tools.tool import Failed, Tool, Value

NEVER = "^(a+)+$"  # doubles Python's time with each letter


async def echo(**arguments: Any) -> Any:
    """What it is given."""
    return arguments


def of(schema: dict[str, Any]) -> Tool:
    return schema_tool("f", "F.", schema, echo)


def seconds(work: Callable[[], object]) -> float:
    """The least of some."""
    least = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - started)
    return least


PLACES: dict[str, tuple[dict[str, Any], Callable[[str], dict[str, Any]]]] = {
    # by name: a schema, and arguments with a text that its pattern is looked for in
    "a value": ({"properties": {"x": {"pattern": NEVER}}}, lambda text: {"x": text}),
    "a draft of its own": (
        {"properties": {"x": {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": NEVER}}},
        lambda text: {"x": text},
    ),
    "by reference to a whole that names its draft": (
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "properties": {"x": {"pattern": NEVER}, "y": {"$ref": "#"}},
        },
        lambda text: {"y": {"x": text}},
    ),
    "within the schema of schemas": (
        {
            "$dynamicAnchor": "meta",
            "pattern": NEVER,
            "properties": {"x": {"$ref": "https://json-schema.org/draft/2020-12/schema"}},
        },
        lambda text: {"x": {"properties": {"y": text}}},
    ),
    "a key": (
        {"properties": {"x": {"patternProperties": {NEVER: {}}}}},
        lambda text: {"x": {text: 1}},
    ),
    "a key that is not admitted": (
        {"properties": {"x": {"patternProperties": {NEVER: {}}, "additionalProperties": False}}},
        lambda text: {"x": {text: 1}},
    ),
    "a key that is not known": (
        {"properties": {"x": {"patternProperties": {NEVER: {}}, "unevaluatedProperties": False}}},
        lambda text: {"x": {text: 1}},
    ),
    "the name of a key": (
        {"properties": {"x": {"propertyNames": {"pattern": NEVER}}}},
        lambda text: {"x": {text: 1}},
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_check_does_not_take_for_ever(place: str) -> None:
    schema, given = PLACES[place]
    tool = of(schema)
    short, long = given("a" * 8 + "!"), given("a" * 24 + "!")
    tool.misfits(long)  # what is read once is read
    assert seconds(lambda: tool.misfits(long)) < 50 * seconds(lambda: tool.misfits(short))


def test_a_tool_of_langchain_s_is_checked_so_too() -> None:
    from langchain_core.tools import tool as theirs
    from pydantic import BaseModel, Field

    class Given(BaseModel):
        x: str = Field(pattern=NEVER)

    @theirs(args_schema=Given)
    async def length(x: str) -> int:
        """Its length."""
        return len(x)

    tool = from_langchain(length)
    assert tool.misfits({"x": "a" * 40 + "!"})
    assert not tool.misfits({"x": "a" * 40})


@pytest.mark.parametrize(
    ("pattern", "fit", "unfit"),
    [
        (NEVER, ["a" * 50_000], ["a" * 1000 + "!"]),
        (r"^\d{4}-\d{2}-\d{2}$", ["2026-11-28"], ["2026-11", "2026-11-28\n"]),
        (r"^[\w.+-]+@[\w-]+\.[\w.-]+$", ["a.b+c@d-e.org"], ["a@b", "a b@c.d"]),
        (r"^\p{L}+$", ["aé"], ["a1"]),
        (r"^\[.*]\/$", ["[x]/"], ["[x]"]),
        (r"^(?:[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12})$", ["0" * 8 + 3 * "-0000" + "-" + "0" * 12],
         [""]),
        (r"(?<year>\d{4})", ["in 2026"], ["in 26"]),
        (r"(?i)^yes$", ["YES"], ["no"]),
        # Only its owner can say:
        (r"^(?!-)[a-z-]+$", ["a", "-a"], []),
        (r"(a)\1", ["aa", "b"], []),
        (r"(?x) a b", ["ab", "c"], []),
        (r"^[[a]$", ["[", "x"], []),
        (r"^[^]x$", ["ax", "b"], []),
        (r"^[a-z&&b]$", ["b", "!"], []),
        (r"(", ["x"], []),
        (r"a{", ["x"], []),
        ("a" * 100_000, ["b"], []),
        (r"((a{0,100}){0,100}){0,6}b", ["a" * 100_000], []),
        (r"(((a{100})*){100})+b", ["a" * 100_000], []),
        (r"(?:[01]*1[01]{1000}){40}x", ["01" * 50_000], []),
    ],
)  # fmt: skip
def test_patterns(pattern: str, fit: list[str], unfit: list[str]) -> None:
    tool = of({"properties": {"x": {"type": "string", "pattern": pattern}}})
    for text in fit:
        assert tool.misfits({"x": text}) == []
    for text in unfit:
        [told] = tool.misfits({"x": text})
        assert "does not match" in told
    keyed = of(
        {"patternProperties": {pattern: {"type": "integer"}}, "additionalProperties": {"type": "integer"}}
    )
    for text in fit[:1]:
        assert keyed.misfits({text: 1}) == []


def test_all_patterns_of_a_check_have_a_bounded_time_together() -> None:
    """As many as anybody writes: those for which there is no time left are their owner's."""
    text = "b" * 1000
    with one_check():
        said = [found(f"a{i}", text) for i in range(10_000)]
    assert said[0] is False
    assert said[-1] is None
    with one_check():
        assert found("a9999", text) is False


def test_what_is_left_over_of_keys_is_checked_where_no_pattern_says_which() -> None:
    schema = {"properties": {"x": {"allOf": [{"properties": {"a": {}}}], "unevaluatedProperties": False}}}
    assert of(schema).misfits({"x": {"a": 1}}) == []
    assert of(schema).misfits({"x": {"b": 1}}) != []


# -- what a server says of its results --------------------------------------------------------------------


def mirror(results: dict[str, Any]) -> list[str]:
    """The command of a server whose tool gives what it is given, and says that it is like that."""
    child = [sys.executable, str(Path(__file__).with_name("mcp_child.py"))]
    tool = {"name": "t", "inputSchema": {"properties": {"x": {}}, "type": "object"}, "outputSchema": results}
    return [*child, "raw", "mirror", json.dumps([tool])]


def test_results_of_an_mcp_server_hold_up_nothing() -> None:
    pytest.importorskip("mcp")
    from stratagem.tools.mcp import mcp_tools

    results = {"type": "object", "properties": {"x": {"type": "string", "pattern": NEVER}}}

    async def main() -> list[Value | Failed]:
        async with mcp_tools(mirror(results), timeout=20.0) as [tool]:
            return [await tool(x=text) for text in ("a" * 5000, "a" * 5000 + "!", 7)]

    fine, wrong, none = asyncio.run(main())
    assert fine == Value({"x": "a" * 5000})
    assert isinstance(wrong, Failed)
    assert "what its schema does not allow: x: " in wrong.message
    assert isinstance(none, Failed)


def test_a_tool_whose_results_have_no_schema_that_is_one_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("mcp")
    from stratagem.tools.mcp import mcp_tools

    async def main() -> int:
        async with mcp_tools(mirror({"type": "object", "properties": {"x": {"type": "strange"}}})) as tools:
            return len(tools)

    with caplog.at_level(logging.WARNING, "stratagem.tools.mcp"):
        assert asyncio.run(main()) == 0
    assert "the schema of its results is none" in caplog.text
