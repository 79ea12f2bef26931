"""Equations, inequalities and intervals: what relations and brackets mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from stratagem.verifiers._math import tree
from stratagem.verifiers._math.notation import Unparsable
from stratagem.verifiers._math.scalars import order
from stratagem.verifiers._math.tree import INFINITY, Node, Sym, Undefined, Work, WorkExceeded
from stratagem.verifiers._math.values import (
    Definition,
    Expression,
    Group,
    Interval,
    Number,
    Region,
    Relation,
    Scalar,
    Value,
)

MINUS_INFINITY: Final = tree.negate(INFINITY)
EVERYTHING: Final = (Interval(MINUS_INFINITY, INFINITY, False, False),)

_SET_WORK: Final = 5_000
"""Steps of `Work` after which a set operation is given up."""

_FLIPPED: Final = {">": "<", ">=": "<="}

Range = tuple[int, int]


class Ranges(Protocol):
    """What relations need of the answer's parser."""

    def value(self, lo: int, hi: int) -> Value: ...
    def scalar(self, lo: int, hi: int) -> Scalar: ...
    def symbol(self, lo: int, hi: int) -> str | None: ...
    def label(self, lo: int, hi: int) -> bool: ...


def mentions(value: Value, name: str) -> bool:
    """Whether the name is free in a scalar, or in any part of a group."""
    if isinstance(value, Number | Expression):
        return name in tree.free_symbols(value.expr)
    return isinstance(value, Group) and any(mentions(item, name) for item in value.items)


def relation_value(parser: Ranges, ranges: list[Range], ops: list[str], source: str) -> Value:
    """The value of `ranges[0] ops[0] ranges[1] ...`. Raises Unparsable."""
    if ops == ["in"]:
        inside = parser.value(*ranges[1])
        if isinstance(inside, Region):
            return Region(inside.source, inside.parts, parser.symbol(*ranges[0]))
        return inside
    if all(op == "=" for op in ops):
        return _equation(parser, ranges, source)
    if len(ops) == 1:
        return _inequality(parser, ranges, ops[0], source)
    if len(ops) == 2 and (all(op in ("<", "<=") for op in ops) or all(op in (">", ">=") for op in ops)):
        return _between(parser, ranges, ops, source)
    raise Unparsable("a chain of relations")


def _equation(parser: Ranges, ranges: list[Range], source: str) -> Value:
    first, last = ranges[0], ranges[-1]
    if parser.label(*first) and parser.symbol(*first) is None:
        return parser.value(*last)
    value = parser.value(*last)
    name = parser.symbol(*first)
    if name is not None and not mentions(value, name):
        return Definition(source, name, value)
    left = parser.value(*first)
    name = parser.symbol(*last)
    if name is not None and not mentions(left, name):
        return Definition(source, name, left)
    if isinstance(left, Group) and isinstance(value, Group) and len(left.items) == len(value.items):
        return _assignments(left, value, source)
    if not isinstance(left, Number | Expression) or not isinstance(value, Number | Expression):
        raise Unparsable("an equation of what are no scalars")
    if not tree.free_symbols(left.expr) and not tree.free_symbols(value.expr):
        return value  # 2 + 3 = 5 answers 5
    return Relation(source, "=", left.expr, value.expr)


def _assignments(left: Group, right: Group, source: str) -> Value:
    """(x, y) = (1, 2)."""
    items: list[Value] = []
    for name, value in zip(left.items, right.items, strict=True):
        if not isinstance(name, Expression) or not isinstance(name.expr, Sym):
            raise Unparsable("an assignment to what is no name")
        items.append(Definition(f"{name.source}={value.source}", name.expr.name, value))
    return Group(source, tuple(items), "")


def _inequality(parser: Ranges, ranges: list[Range], op: str, source: str) -> Value:
    if op in _FLIPPED:
        ranges, op = ranges[::-1], _FLIPPED[op]
    left, right = parser.scalar(*ranges[0]), parser.scalar(*ranges[1])
    low, high = parser.symbol(*ranges[0]), parser.symbol(*ranges[1])
    closed = op == "<="
    if low is not None and not mentions(right, low):
        if op == "!=":
            return Region(source, _punctured(right.expr), low)
        return Region(source, (Interval(MINUS_INFINITY, right.expr, False, closed),), low)
    if high is not None and not mentions(left, high):
        if op == "!=":
            return Region(source, _punctured(left.expr), high)
        return Region(source, (Interval(left.expr, INFINITY, closed, False),), high)
    if op == "!=":
        return Relation(source, "!=", left.expr, right.expr)
    return Relation(source, "<=" if closed else "<", left.expr, right.expr)


def _punctured(hole: Node) -> tuple[Interval, ...]:
    return (Interval(MINUS_INFINITY, hole, False, False), Interval(hole, INFINITY, False, False))


def _between(parser: Ranges, ranges: list[Range], ops: list[str], source: str) -> Value:
    if ops[0] in _FLIPPED:
        ranges, ops = ranges[::-1], [_FLIPPED[op] for op in ops[::-1]]
    low, high = parser.scalar(*ranges[0]), parser.scalar(*ranges[2])
    name = parser.symbol(*ranges[1])
    if name is None or mentions(low, name) or mentions(high, name):
        raise Unparsable("a double inequality of what is no symbol")
    closed = [
        op == "<=" and INFINITY not in tree.nodes(end.expr) for end, op in zip((low, high), ops, strict=True)
    ]
    return Region(source, (Interval(low.expr, high.expr, *closed),), name)


def bracket_interval(items: Sequence[Value], square: tuple[bool, bool]) -> Interval | None:
    """What two scalars in brackets are as an interval; a square bracket closes its end."""
    if len(items) != 2:
        return None
    low, high = items
    if not isinstance(low, Number | Expression) or not isinstance(high, Number | Expression):
        return None
    finite = [INFINITY not in tree.nodes(end.expr) for end in (low, high)]
    return Interval(low.expr, high.expr, square[0] and finite[0], square[1] and finite[1])


def as_region(value: Value) -> Region | None:
    """A Region as it is, (a, b) and [a, b] as intervals, a set of scalars as points; None for all else."""
    if isinstance(value, Region):
        return value
    if not isinstance(value, Group):
        return None
    if value.brackets in ("()", "[]"):
        closed = value.brackets == "[]"
        interval = bracket_interval(value.items, (closed, closed))
        return None if interval is None else Region(value.source, (interval,))
    points = [item.expr for item in value.items if isinstance(item, Number | Expression)]
    if len(points) != len(value.items):
        return None
    return Region(value.source, tuple(Interval(p, p, True, True) for p in points))


def union(source: str, items: Sequence[Value]) -> Region:
    """The union of regions, of one variable where they name it. Raises Unparsable where an item is none."""
    regions, variable = _regions(items)
    return Region(source, tuple(part for region in regions for part in region.parts), variable)


def reduced(source: str, items: Sequence[Value], difference: bool) -> Region:
    """What the first region has in common with all others, or with ``difference`` with none of them.

    Raises Unparsable where an item is no region, or where the order of their ends is not known.
    """
    (first, *others), variable = _regions(items)
    if any(
        tree.free_symbols(end) for region in (first, *others) for part in region.parts for end in part.ends
    ):
        raise Unparsable("a set operation on ends with symbols")
    parts, work = list(first.parts), Work(_SET_WORK)
    try:
        for region in others:
            if difference:
                for hole in region.parts:
                    parts = _common(parts, _outside(hole), work)
            else:
                parts = _common(parts, region.parts, work)
    except (Undefined, WorkExceeded):
        raise Unparsable("a set operation on ends without an order") from None
    return Region(source, tuple(parts), variable)


def _regions(items: Sequence[Value]) -> tuple[list[Region], str | None]:
    """The items as regions, and the variable that they name."""
    regions = [region for item in items if (region := as_region(item)) is not None]
    if len(regions) < len(items):
        raise Unparsable("a set operation on what are no regions")
    names = {region.variable for region in regions} - {None}
    if len(names) > 1:
        raise Unparsable("a set operation in two variables")
    return regions, names.pop() if names else None


def _common(one: Sequence[Interval], two: Sequence[Interval], work: Work) -> list[Interval]:
    """The intersection of two unions, without empty parts."""
    pairs = ((a, b) for a in one for b in two)
    return [common for a, b in pairs if (common := _overlap(a, b, work)) is not None]


def _overlap(a: Interval, b: Interval, work: Work) -> Interval | None:
    below, above = order(a.low, b.low, work), order(a.high, b.high, work)
    low, high = (a.low if below >= 0 else b.low), (a.high if above <= 0 else b.high)
    low_closed = (a.low_closed or below < 0) and (b.low_closed or below > 0)
    high_closed = (a.high_closed or above > 0) and (b.high_closed or above < 0)
    width = order(high, low, work)
    if width < 0 or (width == 0 and not (low_closed and high_closed)):
        return None
    return Interval(low, high, low_closed, high_closed)


def _outside(hole: Interval) -> tuple[Interval, ...]:
    return (
        Interval(MINUS_INFINITY, hole.low, False, not hole.low_closed),
        Interval(hole.high, INFINITY, not hole.high_closed, False),
    )


def half_line(region: Region) -> Relation | None:
    """`x < 3` as a relation in its variable; None for any other region."""
    if region.variable is None or len(region.parts) != 1:
        return None
    part, x = region.parts[0], Sym(region.variable)
    if part.low == MINUS_INFINITY and part.high != INFINITY:
        return Relation(region.source, "<=" if part.high_closed else "<", x, part.high)
    if part.high == INFINITY and part.low != MINUS_INFINITY:
        return Relation(region.source, "<=" if part.low_closed else "<", part.low, x)
    return None
