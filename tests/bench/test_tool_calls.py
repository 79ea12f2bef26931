"""BFCL's AST accuracy and NESTFUL's scores: gold is perfect, and each kind of damage costs what it should."""

from __future__ import annotations

import copy
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stratagem.bench.tool_calls import NestedCall, NestedScores, WrittenCall, nested_scores, parallel_accuracy

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
BFCL, NESTFUL = DATA / "bfcl_parallel" / "bfcl_parallel.jsonl", DATA / "nestful" / "nestful.jsonl"

AREA = {
    "name": "area",
    "parameters": {
        "type": "dict",
        "properties": {
            "radius": {"type": "float"},
            "unit": {"type": "string"},
            "n": {"type": "integer"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "counts": {"type": "array", "items": {"type": "integer"}},
            "box": {"type": "dict"},
            "boxes": {"type": "array", "items": {"type": "dict"}},
            "exact": {"type": "boolean"},
        },
        "required": ["radius"],
    },
}
SMALL: dict[str, list[Any]] = {"radius": [5.0], "unit": ["m", "meters", ""]}
BIG: dict[str, list[Any]] = {"radius": [10.0], "unit": ["m", ""]}


def right(calls: list[dict[str, Any]], *expected: dict[str, list[Any]]) -> bool:
    written = [WrittenCall("area", each) for each in calls]
    return parallel_accuracy([AREA], written, [{"area": each} for each in expected])


@pytest.mark.parametrize(
    ("calls", "verdict"),
    [
        ([{"radius": 5.0}, {"radius": 10.0}], True),
        ([{"radius": 10.0}, {"radius": 5.0}], True),  # in any order
        ([{"radius": 5}, {"radius": 10, "unit": "M"}], True),  # whole numbers for floats; no case
        ([{"radius": 5.0, "unit": "meters"}, {"radius": 10.0}], True),
        ([{"radius": 5.0}], False),
        ([{"radius": 5.0}, {"radius": 10.0}, {"radius": 10.0}], False),
        ([{"radius": 5.0}, {"radius": 5.0}], False),
        ([{"radius": "5.0"}, {"radius": 10.0}], False),
        ([{"unit": "m"}, {"radius": 10.0}], False),
        ([{"radius": 5.0, "unit": "feet"}, {"radius": 10.0}], False),
        ([{"radius": 5.0, "color": "red"}, {"radius": 10.0}], False),
        ([{"radius": 5.0, "n": 1}, {"radius": 10.0}], False),  # a parameter that is not expected
    ],
)
def test_calls_by_hand(calls: list[dict[str, Any]], verdict: bool) -> None:
    assert right(calls, SMALL, BIG) is verdict


def test_a_call_of_the_wrong_type_is_not_taken_for_its_equal() -> None:
    """1.0 == 1 in Python; one of two calls that are equal so is wrong, wherever it stands."""
    one: dict[str, list[Any]] = {"radius": [5.0], "n": [1]}
    good, bad = {"radius": 5.0, "n": 1}, {"radius": 5.0, "n": 1.0}
    assert right([good, good], one, one)
    assert not right([good, bad], one, one)
    assert not right([bad, good], one, one)


@pytest.mark.parametrize(
    ("name", "value", "allowed", "verdict"),
    [
        ("unit", "April 1, 2024", ["april 1 2024"], True),
        ("unit", "it's", ['it"s'], True),
        ("unit", "a", ["b"], False),
        ("n", 3, [3], True),
        ("n", 3.0, [3], False),
        ("n", True, [1], False),
        ("exact", True, [True], True),
        ("exact", 1, [True], False),
        ("tags", ["New York", "Rome"], [["new york", "rome"]], True),
        ("tags", ["Rome", "New York"], [["new york", "rome"]], False),
        ("tags", ["a", 1], [["a", "b"]], False),
        ("counts", [1, 2], [[1, 2]], True),
        ("counts", [1, 2.0], [[1, 2]], False),  # though they are equal
        ("box", {"w": 1, "unit": "M"}, [{"w": [1, 2], "unit": ["m"], "h": ["", 3]}], True),
        ("box", {"w": 3, "unit": "m"}, [{"w": [1, 2], "unit": ["m"]}], False),
        ("box", {"unit": "m"}, [{"w": [1, 2], "unit": ["m"]}], False),
        ("box", {"w": 1, "d": 1}, [{"w": [1]}], False),
        ("boxes", [{"w": 1}, {"w": 2}], [[{"w": [1]}, {"w": [2]}]], True),
        ("boxes", [{"w": 2}, {"w": 1}], [[{"w": [1]}, {"w": [2]}]], False),
        ("boxes", [{"w": 1}], [[{"w": [1]}, {"w": [2]}]], False),
        ("n", "x", ["x"], True),  # the name of a variable
        ("n", "y", ["x"], False),
    ],
)
def test_values_by_hand(name: str, value: Any, allowed: list[Any], verdict: bool) -> None:
    assert right([{"radius": 1.0, name: value}], {"radius": [1.0], name: allowed}) is verdict


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def gold(row: dict[str, Any], rng: random.Random) -> list[WrittenCall]:
    """Calls with some of the values that are right, in any order."""
    calls: list[WrittenCall] = []
    for each in row["ground_truth"]:
        [(name, values)] = each.items()
        parameters = next(f["parameters"] for f in row["function"] if f["name"] == name)
        arguments: dict[str, Any] = {}
        for key, allowed in values.items():
            given = [value for value in allowed if value != ""]
            # One that is left out could make a call match another expected one of the same name.
            alone = sum(name in other for other in row["ground_truth"]) == 1
            optional = alone and "" in allowed and key not in parameters.get("required", [])
            if given and key in parameters["properties"] and not (optional and rng.random() < 0.5):
                arguments[key] = _one(rng.choice(given))
        calls.append(WrittenCall(name, arguments))
    rng.shuffle(calls)
    return calls


def _one(value: Any) -> Any:
    """A value out of what the answers list for the keys of a dictionary."""
    if isinstance(value, dict):
        return {
            key: next(v for v in allowed if v != "")
            for key, allowed in value.items()
            if set(map(str, allowed)) != {""}
        }
    if isinstance(value, list):
        return [_one(each) for each in value]
    return value


@pytest.mark.skipif(not BFCL.exists(), reason="the data of bfcl_parallel is not here")
def test_gold_of_bfcl_is_right_whatever_is_chosen_and_in_any_order() -> None:
    rng = random.Random(0)
    found = {
        row["id"]: parallel_accuracy(row["function"], gold(row, rng), row["ground_truth"])
        for row in rows(BFCL)
    }
    assert len(found) == 220
    assert [name for name, verdict in found.items() if not verdict] == []


def dropped(calls: list[WrittenCall]) -> list[WrittenCall]:
    return calls[1:]


def doubled(calls: list[WrittenCall]) -> list[WrittenCall]:
    return [*calls, calls[0]]


def renamed(calls: list[WrittenCall]) -> list[WrittenCall]:
    return [WrittenCall(calls[0].name + "_", calls[0].arguments), *calls[1:]]


def extra(calls: list[WrittenCall]) -> list[WrittenCall]:
    return [WrittenCall(calls[0].name, {**calls[0].arguments, "no_such_parameter": 1}), *calls[1:]]


def mistaken(calls: list[WrittenCall]) -> list[WrittenCall]:
    key = next(iter(calls[0].arguments))
    return [WrittenCall(calls[0].name, {**calls[0].arguments, key: "never so"}), *calls[1:]]


def typed(calls: list[WrittenCall]) -> list[WrittenCall]:
    key, value = next(iter(calls[0].arguments.items()))
    return [WrittenCall(calls[0].name, {**calls[0].arguments, key: [[value]]}), *calls[1:]]


@pytest.mark.skipif(not BFCL.exists(), reason="the data of bfcl_parallel is not here")
@pytest.mark.parametrize("damage", [dropped, doubled, renamed, extra, mistaken, typed])
def test_damaged_gold_of_bfcl_is_wrong(damage: Callable[[list[WrittenCall]], list[WrittenCall]]) -> None:
    rng = random.Random(1)
    for row in rows(BFCL):
        calls = [each for each in gold(row, rng) if each.arguments]
        if len(calls) == len(row["ground_truth"]):
            assert not parallel_accuracy(row["function"], damage(calls), row["ground_truth"]), row["id"]


# -- NESTFUL -----------------------------------------------------------------------------------------------

PLAN = [
    NestedCall("rate", {"of": "EUR"}, "x"),
    NestedCall("times", {"a": "$x.rate$", "b": 3}, "y"),
    NestedCall("send", {"text": "It is $y$ EUR", "to": ["a", "$x.name$"]}, "z"),
]
PERFECT = NestedScores(1.0, 1.0, 1.0, 1.0)


def test_labels_do_not_matter_but_what_they_stand_for_does() -> None:
    text = json.dumps([[c.name, c.arguments, c.label] for c in PLAN])
    other = [NestedCall(*each) for each in json.loads(text.replace("$x", "$v1").replace('"x"', '"v1"'))]
    assert nested_scores(other, PLAN) == PERFECT
    crossed = [*PLAN[:2], NestedCall("send", {"text": "It is $x$ EUR", "to": ["a", "$x.name$"]}, "z")]
    assert nested_scores(crossed, PLAN) == NestedScores(1.0, 4 / 5, 2 / 3, 0.0)


def test_damage_by_hand() -> None:
    assert nested_scores(PLAN[:2], PLAN) == NestedScores(4 / 5, 2 * 3 / (3 + 5), 2 / 3, 0.0)
    assert nested_scores([], PLAN) == NestedScores(0.0, 0.0, 0.0, 0.0)
    assert nested_scores([], []) == PERFECT
    assert nested_scores([*PLAN, PLAN[0]], PLAN) == NestedScores(6 / 7, 10 / 11, 3 / 4, 0.0)
    wrong = [NestedCall("rates", {"of": "EUR"}, "x"), *PLAN[1:]]
    assert nested_scores(wrong, PLAN) == NestedScores(2 / 3, 4 / 5, 2 / 3, 0.0)


def test_the_order_of_calls_that_do_not_need_each_other_costs_no_parameters() -> None:
    first, second, last = (
        NestedCall("rate", {"of": "EUR"}, "x"),
        NestedCall("fee", {}, "y"),
        NestedCall("send", {"a": "$x$", "b": "$y.part$"}),
    )
    gold = [first, second, last]
    assert nested_scores([second, first, last], gold) == NestedScores(1.0, 1.0, 1 / 3, 0.0)
    crossed = NestedCall("send", {"a": "$y$", "b": "$x.part$"})
    assert nested_scores([first, second, crossed], gold) == NestedScores(1.0, 1 / 3, 2 / 3, 0.0)
    assert nested_scores([second, last], gold) == NestedScores(
        4 / 5, 2 * 1 / (2 + 3), 0.0, 0.0
    )  # "$x$" is nothing
    renamed = [NestedCall("rates", {"of": "EUR"}, "x"), second, last]  # still what the last one takes
    assert nested_scores(renamed, gold) == NestedScores(2 / 3, 2 / 3, 2 / 3, 0.0)


def plan(row: dict[str, Any]) -> list[NestedCall]:
    return [NestedCall(c["name"], c["arguments"], c.get("label", "")) for c in row["output"]]


@pytest.mark.skipif(not NESTFUL.exists(), reason="the data of nestful is not here")
def test_gold_of_nestful_is_perfect_and_damaged_gold_is_not() -> None:
    for row in rows(NESTFUL):
        calls = plan(row)
        n, k = len(calls), sum(len(c.arguments) for c in calls)
        assert nested_scores(copy.deepcopy(calls), calls) == PERFECT
        for i, (one, other) in enumerate(itertools.pairwise(calls)):
            needed = f"${one.label}" in json.dumps(other.arguments)
            if one.name != other.name and other.label and not needed:
                swapped = nested_scores([*calls[:i], other, one, *calls[i + 2 :]], calls)
                assert swapped == NestedScores(1.0, 1.0, (n - 2) / n, 0.0)
        lost = nested_scores(calls[:-1], calls)
        assert lost.functions == pytest.approx(2 * (n - 1) / (2 * n - 1))
        assert (lost.partial, lost.full) == (pytest.approx((n - 1) / n), 0.0)
        worse = [
            NestedCall(calls[0].name, {**calls[0].arguments, "no_such_parameter": 1}, calls[0].label),
            *calls[1:],
        ]
        scores = nested_scores(worse, calls)
        assert scores.functions == 1.0
        assert scores.parameters == pytest.approx(2 * k / (2 * k + 1))
        assert (scores.partial, scores.full) == (pytest.approx((n - 1) / n), 0.0)
