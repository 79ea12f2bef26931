"""Whether the calls that a model wrote are the right ones: BFCL's AST accuracy, and NESTFUL's F1 scores.

BFCL (Berkeley Function Calling Leaderboard, Patil et al.; ``bfcl_eval/eval_checker/ast_eval`` of its repository,
for Python): each expected call lists, for each parameter, the values that count as right, where ``""`` says that
it may be left out. NESTFUL (Basu et al. 2024, arXiv 2409.03797): calls that take each other's results, compared
with one gold plan.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

Arguments = Mapping[str, Any]

# -- BFCL --------------------------------------------------------------------------------------------------

_TYPES: Final[Mapping[str, type]] = {
    "string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list, "dict": dict,
    "any": str,
}  # fmt: skip
_LEFT_OUT: Final = re.compile(r"[ ,./\-_*^]")


@dataclass(frozen=True, slots=True)
class WrittenCall:
    """A call as a model wrote it."""

    name: str
    arguments: Arguments


def parallel_accuracy(
    functions: Sequence[Mapping[str, Any]],
    written: Sequence[WrittenCall],
    expected: Sequence[Mapping[str, Mapping[str, Sequence[Any]]]],
) -> bool:
    """BFCL's AST accuracy of the parallel categories, of one problem: as many calls as expected, and for each
    expected one, in turn, the first written one left that matches it. The order of calls does not matter. (As in
    BFCL's own check, a written call that matches several expected ones goes to the first.)

    Args:
        functions: descriptions with ``name`` and ``parameters`` (``properties`` with BFCL's types, ``required``).
        expected: each ``{name: {parameter: values that are right}}``.
    """
    if len(written) != len(expected):
        return False
    described = {function["name"]: function["parameters"] for function in functions}
    left = list(written)
    for each in expected:
        [(name, values)] = each.items()
        found = next(
            (
                i
                for i, call in enumerate(left)
                if call.name == name and _right(call.arguments, described[name], values)
            ),
            None,
        )
        if found is None:
            return False
        del left[found]  # by its place: 1 and 1.0 make two calls equal that are not equally right
    return True


def _right(arguments: Arguments, parameters: Mapping[str, Any], values: Mapping[str, Sequence[Any]]) -> bool:
    properties = parameters["properties"]
    if any(name not in arguments for name in parameters.get("required", ())):
        return False
    if any(name not in arguments and "" not in allowed for name, allowed in values.items()):
        return False
    return all(
        name in properties and name in values and _right_value(value, properties[name], values[name])
        for name, value in arguments.items()
    )


def _right_value(value: Any, described: Mapping[str, Any], allowed: Sequence[Any]) -> bool:
    kind = described["type"]
    if kind == "float" and type(value) is int:
        value = float(value)
    wanted: Any = _TYPES[kind]
    nested = (
        _TYPES[described["items"]["type"]] if kind in ("array", "tuple") and "items" in described else None
    )
    # The type of the answers decides whether these are values or names of variables, which BFCL writes as strings.
    told = next((type(each) for each in allowed if each != ""), None)
    if type(value) is not wanted:
        return told is not None and type(value) is told and value in allowed
    if nested is not None and not _nested(value, nested, allowed):
        return False
    if told is not None and told is not wanted:
        return value in allowed
    if wanted is dict:
        return any(_right_dict(value, each) for each in allowed if each != "")
    if wanted is list and nested is dict:
        return any(
            len(value) == len(each) and all(map(_right_dict, value, each)) for each in allowed if each != ""
        )
    if wanted is str:
        return _plain(value) in [_plain(each) for each in allowed if isinstance(each, str)]
    if wanted is list:
        return [_plain(each) for each in value] in [[_plain(part) for part in each] for each in allowed]
    return value in allowed


def _nested(value: Sequence[Any], nested: type, allowed: Sequence[Any]) -> bool:
    """Whether all parts have the type of the items, or that of the parts of one right answer."""
    for each in allowed:
        if not isinstance(each, list):
            return True
        told = next((type(part) for part in each if part != ""), None)
        if all(type(part) is nested or type(part) is told for part in value):
            return True
    return False


def _right_dict(value: Mapping[str, Any], allowed: Mapping[str, Sequence[Any]]) -> bool:
    return all(
        key in allowed and _plain(part) in [_plain(each) for each in allowed[key]]
        for key, part in value.items()
    ) and all(key in value or "" in parts for key, parts in allowed.items())


def _plain(value: Any) -> Any:
    """A text without case, spaces and the punctuation that BFCL does not look at; anything else as it is."""
    return _LEFT_OUT.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value


# -- NESTFUL -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NestedCall:
    """A call of a plan. Texts in its arguments refer to results of others as ``$label.field$``."""

    name: str
    arguments: Arguments
    label: str = ""


@dataclass(frozen=True, slots=True)
class NestedScores:
    """How near a plan is to the gold plan; each in [0, 1]."""

    functions: float  # F1 of the names of functions, as multisets
    parameters: float  # F1 of (function, parameter, value), as multisets
    partial: float  # share of positions of the longer plan at which both have the same call
    full: float  # 1: the same calls in the same order


def nested_scores(written: Sequence[NestedCall], gold: Sequence[NestedCall]) -> NestedScores:
    """NESTFUL's scores of one plan.

    Labels are compared by the gold call that they stand for, so that neither what a plan calls them nor the order
    of calls that do not need each other costs parameters: a call stands for the first gold call left of its name;
    the others stand for those left then, in order. A reference to no earlier call stays as it is written.
    """
    ours, theirs = _canonical(written, _standing(written, gold)), _canonical(gold, range(len(gold)))
    same = sum(a == b for a, b in zip(ours, theirs, strict=False))
    longer = max(len(ours), len(theirs))
    return NestedScores(
        _f1([name for name, _ in ours], [name for name, _ in theirs]),
        _f1(
            [(name, *part) for name, parts in ours for part in parts],
            [(name, *part) for name, parts in theirs for part in parts],
        ),
        same / longer if longer else 1.0,
        float(ours == theirs),
    )


def _standing(written: Sequence[NestedCall], gold: Sequence[NestedCall]) -> list[int]:
    """For each written call the index of the gold call that it stands for; further ones for those beyond."""
    named: defaultdict[str, deque[int]] = defaultdict(deque)
    for index, call in enumerate(gold):
        named[call.name].append(index)
    found = [named[call.name].popleft() if named[call.name] else None for call in written]
    left = itertools.chain(sorted(itertools.chain(*named.values())), itertools.count(len(gold)))
    return [next(left) if index is None else index for index in found]


def _canonical(
    plan: Sequence[NestedCall], standing: Sequence[int]
) -> list[tuple[str, frozenset[tuple[str, str]]]]:
    """Names and arguments, with references by the numbers in ``standing``."""
    numbers: dict[str, int] = {}
    found: list[tuple[str, frozenset[tuple[str, str]]]] = []
    for number, call in zip(standing, plan, strict=True):
        known = dict(numbers)

        def renamed(match: re.Match[str], known: Mapping[str, int] = known) -> str:
            label = match[1]
            return f"${known[label]}{match[2]}$" if label in known else match[0]

        parts = {
            (key, re.sub(r"\$(\w+)((?:[.\[][^$]*)?)\$", renamed, json.dumps(value, sort_keys=True)))
            for key, value in call.arguments.items()
        }
        found.append((call.name, frozenset(parts)))
        if call.label:
            numbers[call.label] = number
    return found


def _f1(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    if not ours and not theirs:
        return 1.0
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs))
