"""Plans: what is wrong with them is data; their graphs are those that enumeration gives."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stratagem.testing.loops import run
from stratagem.tools.dag import Call, Plan, Problem
from stratagem.tools.executor import Execution
from stratagem.tools.tool import Failed, Value, tool, toolbox


@tool
async def add(a: int, b: int = 0) -> int:
    """The sum."""
    return a + b


@tool
async def gather(parts: list[Any]) -> list[Any]:
    """The parts."""
    return parts


TOOLS = toolbox(add, gather)


def ref(call: str, *path: str | int) -> dict[str, Any]:
    return {"$ref": call, "path": list(path)} if path else {"$ref": call}


def call(name: str, *needs: str) -> dict[str, Any]:
    return {"id": name, "tool": "gather", "arguments": {"parts": [ref(need) for need in needs]}}


def test_a_plan_in_json_text() -> None:
    text = json.dumps([call("a"), {"id": "b", "tool": "add", "arguments": {"a": ref("a", "x", 0), "b": 2}}])
    plan = Plan.parse(text, TOOLS)
    assert plan.problems == ()
    second = plan.calls[1]
    assert second.needs == ("a",)
    assert second.filled({"a": {"x": [5]}}) == {"a": 5, "b": 2}
    assert list(plan.graph.edges) == [("a", "b")]


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"y": 1}, "a has no 'x'; it has keys ['y']"),
        ({"x": []}, "a['x'] has no 0; it has 0 items"),
        ({"x": "text"}, "a['x'] has no 0; it has no parts: it is \"text\""),
        ([1], "a has no 'x'; it has 1 items"),
    ],
)
def test_a_part_that_a_result_lacks(result: Any, said: str) -> None:
    one = Call.parse({"id": "b", "tool": "add", "arguments": {"a": ref("a", "x", 0)}})
    assert isinstance(one, Call)
    failed = one.filled({"a": result})
    assert isinstance(failed, Failed)
    assert failed.why == "reference"
    assert said in failed.message


def test_a_filled_argument_is_a_copy() -> None:
    one = Call.parse(call("b", "a"))
    assert isinstance(one, Call)
    result = {"x": [1]}
    filled = one.filled({"a": result})
    assert isinstance(filled, dict)
    filled["parts"][0]["x"].append(2)
    assert result == {"x": [1]}


def kinds(*calls: Any) -> list[tuple[str, str | None]]:
    return [(p.kind, p.call) for p in Plan.parse(list(calls), TOOLS).problems]


def test_each_problem_is_listed() -> None:
    assert kinds({"id": "a", "tool": "fly"}) == [("unknown_tool", "a")]
    assert kinds({"id": "a", "tool": "add", "arguments": {"a": "x", "c": 1}}) == [("bad_arguments", "a")] * 2
    assert kinds({"id": "a", "tool": "add"}) == [("bad_arguments", "a")]
    assert kinds(call("a", "z")) == [("dangling_reference", "a")]
    assert kinds(call("a", "a")) == [("cycle", "a")]
    assert kinds(call("a", "b"), call("b", "a"), call("c", "a")) == [("cycle", "a"), ("cycle", "b")]
    assert kinds(call("a"), call("a", "a")) == [("duplicate_id", "a")]
    assert kinds("call", {"tool": "add"}, {"id": "a", "tool": "add", "args": {}}) == [
        ("malformed", None),
        ("malformed", None),
        ("malformed", "a"),
    ]
    for bad in ({"$ref": 1}, {"$ref": "a", "path": "x"}, {"$ref": "a", "path": [-1]}, {"$ref": "a", "to": 1}):
        assert kinds({"id": "a", "tool": "add", "arguments": {"a": bad}}) == [("malformed", "a")]


def test_all_of_a_plan_is_judged_at_once() -> None:
    found = kinds(call("a", "z"), {"id": "b", "tool": "fly"}, call("c", "c"))
    assert sorted(found) == [("cycle", "c"), ("dangling_reference", "a"), ("unknown_tool", "b")]


@pytest.mark.parametrize("text", ["", "{", '{"id": "a"}', "3", "[" * 100_000])
def test_what_is_no_plan(text: str) -> None:
    plan = Plan.parse(text, TOOLS)
    assert plan.calls == ()
    assert [p.kind for p in plan.problems] == ["malformed"]


def test_arguments_nested_too_deeply_are_malformed() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert kinds({"id": "a", "tool": "gather", "arguments": {"parts": deep}}) == [("malformed", "a")]


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=n, max_size=n)
    )
)
@settings(max_examples=100, deadline=None)
def test_graph_reduction_and_critical_path(matrix: list[list[bool]]) -> None:
    needs = {str(i): [str(j) for j in range(i) if row[j]] for i, row in enumerate(matrix)}
    plan = Plan.parse([call(name, *lacks) for name, lacks in needs.items()], TOOLS)
    assert plan.problems == ()
    graph = nx.DiGraph([(a, b) for b, lacks in needs.items() for a in lacks])
    graph.add_nodes_from(needs)
    # An edge is left out exactly if another path joins its ends.
    for a, b in graph.edges:
        longer = any(len(path) > 2 for path in nx.all_simple_paths(graph, a, b))
        assert ((a, b) in plan.reduced()) is not longer
    seconds = {name: 1.0 + (hash_of(name) % 7) for name in needs}
    path, length = plan.critical_path(lambda c: seconds[c.id])
    assert length == pytest.approx(sum(seconds[name] for name in path))
    assert all(graph.has_edge(a, b) for a, b in pairwise(path))
    ends: dict[str, float] = {}
    for name, lacks in needs.items():
        ends[name] = seconds[name] + max((ends[each] for each in lacks), default=0.0)
    assert length == pytest.approx(max(ends.values()))


def hash_of(name: str) -> int:
    return int(name) * 5 + 3


def test_a_cycle_has_neither() -> None:
    plan = Plan.parse([call("a", "b"), call("b", "a")], TOOLS)
    with pytest.raises(ValueError, match="cycle"):
        plan.reduced()
    with pytest.raises(ValueError, match="cycle"):
        plan.critical_path(lambda _: 1.0)


def test_mermaid() -> None:
    plan = Plan.parse([call("a"), call('b"]', "a"), call("c", "a", 'b"]')], TOOLS)
    assert plan.mermaid().splitlines() == [
        "flowchart TD",
        '    n0["a: gather"]',
        '    n1["b#34;#93;: gather"]',
        '    n2["c: gather"]',
        "    n0 --> n1",
        "    n1 --> n2",
    ]


def test_an_empty_plan() -> None:
    plan = Plan.parse("[]", TOOLS)
    assert plan == Plan(())
    assert plan.critical_path(lambda _: 1.0) == ((), 0.0)
    assert isinstance(Call.parse(None), Problem)


def test_what_is_said_of_a_large_faulty_plan_grows_with_it_and_no_faster() -> None:
    """One cycle of all, each with an argument too many besides."""
    told: dict[int, int] = {}
    for size in (100, 1000):
        calls = [
            {"id": f"c{i:04}", "tool": "add", "arguments": {"a": {"$ref": f"c{(i + 1) % size:04}"}, "z": i}}
            for i in range(size)
        ]
        plan = Plan.parse(calls, TOOLS)
        report = run(Execution(TOOLS).run(plan))
        assert len(plan.problems) == len(report.problems) == 2 * size
        told[size] = sum(len(each.message) for each in report.problems)
        assert all(not isinstance(each, Value) for each in report.outcomes.values())
    assert told[1000] < 12 * told[100]
