"""The plan notation: read, written, admitted by its pattern, and decoded by the shipped model's engine."""

from __future__ import annotations

import asyncio
import re
import string
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import stratagem as sg
from stratagem.tools.dag import Call, Problem, Reference
from stratagem.tools.notation import parse, signature, write
from stratagem.tools.patterns import NAME, pattern
from stratagem.tools.schema_tool import schema_tool


class Place(BaseModel):
    """A place."""

    city: str
    floor: int


@sg.tool
async def find(query: str, limit: int = 3, sort: Literal["price", "age"] = "price") -> list[dict[str, Any]]:
    """Find things.

    The best first.
    """
    return [{"query": query, "limit": limit, "sort": sort}]


@sg.tool
async def send(to: Place, text: str | None, urgent: bool, copies: list[str]) -> bool:
    """Send a text."""
    return bool(to and text and urgent and copies)


@sg.tool
async def now(zone: str = "UTC", short: bool = False) -> str:
    """The time."""
    return f"{zone}{short}"


@sg.tool
async def store(data: Any) -> None:
    """Keep anything."""
    assert data is not None


TOOLS = {each.name: each for each in (find, send, now, store)}
PATTERN = re.compile(pattern(TOOLS.values()))


def read(line: str) -> Call:
    call = parse(line, TOOLS)
    assert isinstance(call, Call), call
    return call


def test_signatures() -> None:
    assert [signature(each) for each in TOOLS.values()] == [
        'find(query: string, limit: integer = 3, sort: "price" | "age" = "price"): Find things. The best first.',
        "send(to: {city: string, floor: integer}, text: string | null, urgent: boolean, copies: list of string): "
        "Send a text.",
        'now(zone: string = "UTC", short: boolean = false): The time.',
        "store(data: any): Keep anything.",
    ]


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ('a = find("red shoes")', {"query": "red shoes"}),
        ('a=find( "x" ,limit = 2 )', {"query": "x", "limit": 2}),
        ('a = find(sort="age", query=b)', {"sort": "age", "query": Reference.model_validate({"$ref": "b"})}),
        ('a = now()', {}),
        ('a = store([1, {"k": b.items[0]}, -2.5e3, null, true])',
         {"data": [1, {"k": Reference.model_validate({"$ref": "b", "path": ["items", 0]})}, -2500.0, None, True]}),
        ('a = store(b["odd key"].x)', {"data": Reference.model_validate({"$ref": "b", "path": ["odd key", "x"]})}),
        ('a = store("b.items[0] = \\"find(1)\\"")', {"data": 'b.items[0] = "find(1)"'}),  # a text stays a text
    ],
)  # fmt: skip
def test_lines_are_read(line: str, arguments: dict[str, Any]) -> None:
    call = read(line)
    assert (call.id, call.arguments) == ("a", arguments)
    assert read(f"a = {write(call, TOOLS)}") == call


@pytest.mark.parametrize(
    ("line", "kind", "words"),
    [
        ("", "malformed", "name of a call wanted"),
        ("a", "malformed", "'=' wanted, but it ends"),
        ("a = ", "malformed", "name of a tool wanted"),
        ('a = find("x"', "malformed", "')' wanted"),
        ('a = find("x")) + 1', "malformed", "end of the line wanted"),
        ("a = find('x')", "malformed", "JSON or the name of a call wanted"),
        ("a = find(b[c])", "malformed", "key or a position wanted"),
        ("a = store({1: 2})", "malformed", "key in quotes wanted"),
        ("true = now()", "malformed", "cannot be named true, which is a value"),
        ("None = now()", "malformed", "cannot be named None, which is a value"),
        ("a = find(" + "[" * 500, "malformed", "nested too deeply"),
        ('a = find("x", 1, "age", 4)', "bad_arguments", "find takes 3 arguments, not 4"),
        ('a = find("x", query="y")', "bad_arguments", "'query' twice"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(line: str, kind: str, words: str) -> None:
    problem = parse(line, TOOLS)
    assert isinstance(problem, Problem)
    assert (problem.kind, words in problem.message) == (kind, True), problem


def test_a_line_of_any_length_is_read_or_refused() -> None:
    assert isinstance(parse("a = store(" + "[1, " * 40 + "1" + "]" * 40 + ")", TOOLS), Call)
    assert isinstance(parse("a = store(" + "[" * 100_000 + ")", TOOLS), Problem)
    assert isinstance(parse('a = find("' + "x" * 100_000 + '")', TOOLS), Call)


names = st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True).filter(
    lambda name: name not in ("true", "false", "null")
)
references = st.builds(
    lambda call, path: Reference.model_validate({"$ref": call, "path": path}),
    names, st.lists(st.one_of(st.text(max_size=5), st.integers(0, 99)), max_size=3),
)  # fmt: skip
scalars = st.one_of(st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.text(max_size=12), references)
values = st.recursive(
    scalars,
    lambda parts: st.one_of(
        st.lists(parts, max_size=3),
        st.dictionaries(st.text(max_size=5).filter(lambda key: key != "$ref"), parts, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(names, values)
def test_what_is_written_is_read_back(name: str, value: Any) -> None:
    call = Call(id=name, tool="store", arguments={})
    call = call.model_copy(update={"arguments": {"data": value}})
    again = parse(f"{name} = {write(call, TOOLS)}", TOOLS)
    assert isinstance(again, Call), again
    assert again.arguments == call.arguments


@pytest.mark.parametrize(
    ("line", "admitted"),
    [
        ('a = find("x")', True),
        ('a = find("x", limit=2, sort="age")', True),
        ('a = find("x", sort="age")', True),
        ("a = find(b.x[0], limit=c)", True),
        ("a = now()", True),
        ("a = now(short=true)", True),
        ('a = now(zone="CET", short=false)', True),
        ('a = send({"city": "Rome", "floor": 2}, null, true, ["x", b])', True),
        ('a = store({"k": [1, 2.5, {"z": null}]})', True),
        ('a = find("x", limit="2")', False),
        ('a = find("x", sort="size")', False),
        ("a = find()", False),
        ("a = find(3)", False),
        ('a = lose("x")', False),
        ('a = send({"city": "Rome"}, null, true, [])', False),
        ('A = find("x")', False),
        ('a = find("x) = find("y")', False),
        ("true = now()", False),
        ("null = now()", False),
        ("a = find(true)", False),
        ("a = find(false.x)", False),
        ("trues = now(short=true)", True),
        ("a = find(tru, limit=nulls.x)", True),
        ("a = store([true, null, t.x, f[0], tree.x[1], name.x, number.x, file.x])", True),
        ("a = store([[b.x], trucks])", True),
        ("a = store([true.x])", False),
        ("a = store([true[0]])", False),
        ('a = store({"k": false.x[0]})', False),
        ("a = store([[null.y]])", False),
        ('a = send({"city": null.x, "floor": 2}, null, true, [])', False),
    ],
)
def test_the_pattern_admits_well_formed_calls_only(line: str, admitted: bool) -> None:
    assert bool(PATTERN.fullmatch(line)) is admitted
    if admitted:
        assert not list(read(line).problems(TOOLS))


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ('a = find("x") else 0', {"on_failure": "default", "default": 0}),
        ('a = find("x") else null', {"on_failure": "default", "default": None}),
        ('a = find("x") else [{"k": -1.5}]', {"on_failure": "default", "default": [{"k": -1.5}]}),
        ('a = find("x") else skip', {"on_failure": "skip"}),
        ('a = find("x")  else stop ', {"on_failure": "fail"}),
        ('a = find("x") else ask', {"on_failure": "ask"}),
        ('a = find("x") else find(b.y, limit=1) else find("z") else "none"', {
            "on_failure": "default", "default": "none",
            "alternatives": [
                {"query": Reference.model_validate({"$ref": "b", "path": ["y"]}), "limit": 1}, {"query": "z"},
            ],
        }),
    ],
)  # fmt: skip
def test_what_is_done_after_a_failure(line: str, fields: dict[str, Any]) -> None:
    call = read(line)
    told = {key: getattr(call, key) for key in ("on_failure", "default", "alternatives")}
    assert told == {"on_failure": "skip", "default": None, "alternatives": []} | fields
    assert call.arguments == {"query": "x"}
    assert call.needs == (("b",) if "alternatives" in fields else ())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('a = find("x") else', "JSON or the name of a call wanted, but it ends"),
        ('a = find("x") else 0 else 1', "nothing can stand behind the last else"),
        ('a = find("x") else now()', "stands find with other arguments"),
        ('a = find("x") else [b]', "takes no result"),
        ('a = find("x") otherwise 0', "end of the line wanted"),
        ('a = find("x") else find("y", 1, "age", 4)', "find takes 3 arguments, not 4"),
        ('a = store(NaN)', None),
        ('a = store(-Infinity)', "JSON or the name of a call wanted"),
        ('a = find("x", limit=1 ...', "the turn ended within it"),
        ('a = find("x") ...', "the turn ended within it"),
    ],
)  # fmt: skip
def test_what_is_wrong_behind_a_call(line: str, words: str | None) -> None:
    found = parse(line, TOOLS)
    if words is None:  # a name like any other
        assert isinstance(found, Call)
        assert found.needs == ("NaN",)
    else:
        assert isinstance(found, Problem)
        assert words in found.message


def test_tools_may_have_the_names_of_what_is_done_after_a_failure() -> None:
    @sg.tool
    async def ask(q: str) -> str:
        """Ask."""
        return q

    tools = {"ask": ask}
    for line, fields in (
        ('a = ask("x") else ask("y")', {"alternatives": [{"q": "y"}], "on_failure": "skip"}),
        ('a = ask("x") else ask ("y") else ask', {"alternatives": [{"q": "y"}], "on_failure": "ask"}),
    ):
        call = parse(line, tools)
        assert isinstance(call, Call)
        assert {key: getattr(call, key) for key in fields} == fields


def test_values_are_names_of_no_call_but_of_tools_and_parameters() -> None:
    @sg.tool(name="null")
    async def nothing(true: str) -> str:
        """Nothing."""
        return true

    tools = {"null": nothing}
    call = parse('a = null(true="x") else null("y") else null', tools)
    assert isinstance(call, Call)
    assert (call.tool, call.arguments, call.alternatives) == ("null", {"true": "x"}, [{"true": "y"}])
    assert (call.on_failure, call.default) == ("default", None)


@pytest.mark.parametrize("word", ["true", "false", "null"])
def test_the_names_that_the_pattern_offers_are_all_others(word: str) -> None:
    assert not re.fullmatch(NAME, word)
    letters = string.ascii_lowercase + "0_"
    others = {word[:i] + letter for i in range(len(word) + 1) for letter in letters} | {
        word[:i] for i in range(1, len(word))
    }
    for other in others - {word}:
        named = isinstance(parse(f"{other} = now()", TOOLS), Call)
        assert bool(re.fullmatch(NAME, other)) is (named and other[0] != "_"), other


def test_data_that_looks_like_a_reference_is_data() -> None:
    call = read('a = store([{"$ref": "b"}, b])')
    assert call.arguments == {"data": [{"$ref": "b"}, Reference.model_validate({"$ref": "b"})]}
    assert call.needs == ("b",)
    assert call.filled({"b": 5}) == {"data": [{"$ref": "b"}, 5]}
    assert read(f"a = {write(call, TOOLS)}") == call


class Tree(BaseModel):
    """A tree."""

    name: str
    weight: float = 1.0
    left: Tree | None = None
    right: Tree | None = None


@sg.tool
async def plant(tree: Tree, rows: list[list[list[list[int]]]], a: Any, b: Any, c: Any, d: Any) -> bool:
    """Plant it."""
    return bool(tree and rows and a and b and c and d)


@pytest.mark.parametrize(
    "line",
    [
        'a = find("x", limit=-1234567890123456789)',
        "a = store(1.5e-7)",
        'a = plant({"name": "x"}, [[[[1], []]]], 1, b, null, [])',
        'a = plant({"name": "x", "left": {"name": "y", "weight": 2.5, "right": {"name": c.n}}}, b, [1], {}, 1, "")',
    ],
)
def test_what_a_schema_allows_the_pattern_does(line: str) -> None:
    """Fields that may be left out, exponents, long integers, lists of lists, and a type that is in itself."""
    tools = {**TOOLS, "plant": plant}
    admitted = pattern(tools.values())
    assert len(admitted) < 60_000
    assert re.fullmatch(admitted, line)
    call = parse(line, tools)
    assert isinstance(call, Call)
    assert not list(call.problems(tools))


@pytest.mark.parametrize(
    ("schema", "line", "admitted"),
    [
        ({"additionalProperties": True}, "a = any()", True),
        ({"additionalProperties": True}, 'a = any(x=1, y_2=["z", b.c])', True),
        ({"additionalProperties": {"type": "integer"}}, "a = any(x=1)", True),
        ({"additionalProperties": {"type": "integer"}}, 'a = any(x="1")', False),
        ({"properties": {"p": {"type": "integer"}}, "additionalProperties": True}, "a = any(x=1)", True),
        (
            {"properties": {"p": {"type": "integer"}}, "additionalProperties": True},
            "a = any(p=1, x=2, y=3)",
            True,
        ),
        ({"properties": {"p": {}}, "required": ["p"], "additionalProperties": True}, "a = any(1, x=2)", True),
        ({"properties": {"p": {}}, "required": ["p"], "additionalProperties": True}, "a = any(x=2)", False),
        ({"properties": {"p": {}}}, "a = any(x=2)", False),
    ],
)
def test_free_arguments(schema: dict[str, Any], line: str, admitted: bool) -> None:
    async def function(**arguments: Any) -> Any:
        return arguments

    free = {"any": schema_tool("any", "Anything.", schema, function)}
    assert bool(re.fullmatch(pattern(free.values()), line)) is admitted
    if admitted:
        call = parse(line, free)
        assert isinstance(call, Call)
        assert not list(call.problems(free))


@pytest.mark.parametrize(
    ("line", "admitted"),
    [
        ('a = find("x") else find("y", limit=2) else []', False),
        ('a = find("x") else find("y", limit=2) else "none"', True),
        ('a = find("x") else 0', True),
        ("a = now() else ask", True),
        ('a = now() else find("x")', False),
        ('a = find("x") else', False),
    ],
)
def test_the_pattern_with_fallbacks(line: str, admitted: bool) -> None:
    assert bool(re.fullmatch(pattern(TOOLS.values(), fallbacks=True), line)) is admitted
    assert not PATTERN.fullmatch(line)


def test_the_engine_decodes_nothing_but_calls() -> None:
    """At the highest temperature, from a model that was never asked for such tools: each line is read."""

    async def main() -> None:
        llm = sg.connect()
        one = pattern(TOOLS.values(), fallbacks=True)
        request = sg.Request(
            (sg.Message("user", "Plan."),), n=8, max_tokens=160, temperature=1.5, seed=1,
            constraint=sg.Constraint("regex", f"{one}(?:\\n{one}){{0,2}}"),
        )  # fmt: skip
        generation = await llm.generate(request)
        lines = [
            line
            for completion in generation.completions
            for line in completion.text.split("\n")[: None if completion.finish == "stop" else -1]
        ]
        assert len(lines) >= 4
        for line in lines:
            call = parse(line, TOOLS)
            assert isinstance(call, Call), (line, call)
            assert not list(call.problems(TOOLS))

    asyncio.run(main())
