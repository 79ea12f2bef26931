"""Regular expressions of a schema that somebody else has written are never looked for; all else is checked."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stratagem as sg
from stratagem.tools._checking import Checked
from stratagem.tools.schema_tool import schema_tool
from stratagem.tools.tool import Failed, Tool, Value

NEVER = "^(a+)+$"  # doubles Python's time with each letter
HOSTILE = "a" * 24 + "!"  # seconds
DRAFTS = [
    *(f"http://json-schema.org/draft-0{i}/schema#" for i in (3, 4, 6, 7)),
    *(f"https://json-schema.org/draft/{each}/schema" for each in ("2019-09", "2020-12")),
]
KEYS = {"patternProperties": {NEVER: {"type": "integer"}}}

PLACES: dict[str, tuple[dict[str, Any], Callable[[str], Any]]] = {
    # by name: a schema of x, and a value of it with a text that Python would look for the pattern in
    "a value": ({"pattern": NEVER}, lambda text: text),
    "another draft": ({"$schema": DRAFTS[3], "pattern": NEVER}, lambda text: text),
    "another draft within": (
        {"properties": {"y": {"$schema": DRAFTS[4], "additionalProperties": False, **KEYS}}},
        lambda text: {"y": {text: ""}},
    ),
    "a key": (KEYS, lambda text: {text: ""}),
    "a key beside others": ({"additionalProperties": False, **KEYS}, lambda text: {text: ""}),
    "a key that is left over": ({"unevaluatedProperties": False, **KEYS}, lambda text: {text: ""}),
    "a key that is left over of a part": (
        {"unevaluatedProperties": False, "allOf": [{"properties": {"a": {}}}, KEYS]},
        lambda text: {text: ""},
    ),
    "the name of a key": ({"propertyNames": {"pattern": NEVER}}, lambda text: {text: ""}),
    "a choice": ({"anyOf": [{"pattern": NEVER}, {"type": "null"}]}, lambda text: text),
}


def of(schema: dict[str, Any]) -> Tool:
    async def echo(**arguments: Any) -> Any:
        return arguments

    return schema_tool("f", "F.", schema, echo)


def seconds(work: Callable[[], object]) -> float:
    """The least of some."""
    least = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - started)
    return least


@pytest.mark.parametrize("draft", [None, *DRAFTS])
@pytest.mark.parametrize("place", PLACES)
def test_a_pattern_is_its_owner_s_to_check(place: str, draft: str | None) -> None:
    """Of arguments and of results, which are checked alike."""
    part, given = PLACES[place]
    schema = {"properties": {"x": part}, **({"$schema": draft} if draft else {})}
    tool, results = of(schema), Checked(schema)
    harmless, hostile = {"x": given("b")}, {"x": given(HOSTILE)}
    for fits in (tool.misfits, results.validate_python):
        assert seconds(lambda: fits(hostile)) < 50 * seconds(lambda: fits(harmless))  # noqa: B023
    assert tool.misfits(harmless) == tool.misfits(hostile) == []
    assert results.validate_python(hostile) == hostile


def test_python_would_look_for_it_for_long() -> None:
    """Else the test above could not fail."""
    long = seconds(lambda: re.search(NEVER, HOSTILE[-20:]))
    assert long > 50 * seconds(lambda: re.search(NEVER, "b"))


@pytest.mark.parametrize("pattern", [r"\A\p{L}+\z", r"a{2, 3}", r"^(?!-)\<", "(", "a{" + " " * 5000 + ","])
def test_no_dialect_is_wrong(pattern: str) -> None:
    tool = of({"properties": {"x": {"type": "string", "pattern": pattern}}})
    assert tool.misfits({"x": "-"}) == []
    assert tool.misfits({"x": 1}) != []


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ({"type": "string"}, 1),
        ({"required": ["a"], "properties": {"a": {}}}, {}),
        ({"enum": ["b"]}, "a"),
        ({"minimum": 2}, 1),
        ({"maxLength": 2}, "aaa"),
        ({"properties": {"a": {}}, "additionalProperties": False}, {"b": 1}),
        ({"additionalProperties": {"type": "integer"}}, {"b": "c"}),
        ({"allOf": [{"properties": {"a": {}}}], "unevaluatedProperties": False}, {"b": 1}),
    ],
)
def test_all_else_is_checked(part: dict[str, Any], value: Any) -> None:
    """Beside a pattern, too."""
    for schema in (part, {"pattern": NEVER, **part}):
        assert of({"properties": {"x": schema}}).misfits({"x": value}) != []


# -- what a server says of its results --------------------------------------------------------------------

DOUBLED: dict[str, Any] = {
    "$defs": {f"A{i}": {"allOf": [{"$ref": f"#/$defs/A{i + 1}"}] * 2} for i in range(16)} | {"A16": {}},
    "allOf": [{"$ref": "#/$defs/A0"}],
}


def mirror(results: dict[str, Any]) -> list[str]:
    """The command of a server whose tool gives what it is given, and says that it is like that."""
    child = [sys.executable, str(Path(__file__).with_name("mcp_child.py"))]
    tool = {"name": "t", "inputSchema": {"properties": {"x": {}}, "type": "object"}, "outputSchema": results}
    return [*child, "raw", "mirror", json.dumps([tool])]


def test_results_of_an_mcp_server_are_checked_so_too() -> None:
    pytest.importorskip("mcp")
    from stratagem.tools.mcp import mcp_tools

    results = {"type": "object", "properties": {"x": {"type": "string", "pattern": NEVER}}}

    async def main() -> list[Value | Failed]:
        async with mcp_tools(mirror(results), timeout=20.0) as [tool]:
            return [await tool(x=given) for given in ("a" * 5000 + "!", 7)]

    fine, none = asyncio.run(main())
    assert fine == Value({"x": "a" * 5000 + "!"})
    assert isinstance(none, Failed)
    assert "what its schema does not allow: x: 7 is not of type 'string'" in none.message


def test_arguments_that_stand_for_too_much_are_refused() -> None:
    with pytest.raises(sg.ConfigurationError, match="more than 10000 parts"):
        of(DOUBLED)


def test_a_check_that_takes_too_long_is_its_owner_s() -> None:
    """This schema looks twice at each level for each time that it looks at the one above."""
    both = {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}
    checked = Checked({"type": "object", "properties": {"a": both, "b": {"type": "integer"}}})

    def nested(levels: int) -> dict[str, Any]:
        return {"a": nested(levels - 1)} if levels else {"b": "x"}

    with pytest.raises(ValueError, match=re.escape("a.a.a.b: 'x' is not of type 'integer'")):
        checked.validate_python(nested(3))
    assert checked.validate_python(nested(40)) == nested(40)


@pytest.mark.parametrize("results", [DOUBLED, {"properties": {"x": {"type": "strange"}}}])
def test_a_tool_whose_results_have_no_schema_that_is_one_is_left_out(
    results: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mcp")
    from stratagem.tools.mcp import mcp_tools

    async def main() -> int:
        async with mcp_tools(mirror({"type": "object", **results})) as tools:
            return len(tools)

    with caplog.at_level(logging.WARNING, "stratagem.tools.mcp"):
        assert asyncio.run(main()) == 0
    assert "the schema of its results is none" in caplog.text
