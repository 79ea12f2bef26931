"""Whether two answers are the same.

`equal` is reflexive and symmetric. It is not transitive where it is lenient, and it is lenient in these:
50% equals 0.5 and 50; a missing unit is any unit, and nouns ("38 apples") are no units; a decimal of six or
more significant digits equals the exact value that it rounds or cuts; `x = 5` equals 5.

Other decisions: 3:4 equals 3/4 and 6:8. (a, b) and [a, b] are also the open and the closed interval, so they
differ, while longer tuples and lists are compared in order; a bare "1, 2" is compared in order with a tuple
or a list and without order with a set or another bare one. Functions are equal that agree wherever both are
real. Two texts are equal up to case, spacing and end punctuation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from stratagem.verifiers._math import tree
from stratagem.verifiers._math.answer import parse, to_scalar
from stratagem.verifiers._math.regions import as_region, half_line
from stratagem.verifiers._math.scalars import Outcome, compare_relations, compare_scalars, order
from stratagem.verifiers._math.tree import Const, Node, Num, Undefined, Work, WorkExceeded
from stratagem.verifiers._math.values import (
    Definition,
    Expression,
    Group,
    Interval,
    Matrix,
    Number,
    Percent,
    Quantity,
    Ratio,
    Region,
    Relation,
    Scalar,
    Text,
    Value,
)

WORK_LIMIT: Final = 60_000
"""Steps of `Work` after which a comparison is given up as unknown; about a second at worst."""

_RANK: Final = {
    kind: rank
    for rank, kind in enumerate(
        (Number, Expression, Percent, Quantity, Ratio, Region, Group, Matrix, Definition, Relation, Text)
    )
}
_RADIANS: Final = tree.multiply(Const("pi"), Num(Fraction(1, 180)))


@dataclass(frozen=True, slots=True)
class Equality:
    """The outcome of a comparison; true where it is "equal". `work`: the steps it took."""

    outcome: Outcome
    reason: str
    work: int

    def __bool__(self) -> bool:
        return self.outcome == "equal"


def equal(a: Value | str, b: Value | str, *, tolerance: float | None = None) -> Equality:
    """Compare two answers (texts are parsed). Never raises; ends within WORK_LIMIT steps on any input.

    tolerance: relative error allowed between numbers, at least 0, where 0 is exact. None, the default: exact
    for what is written exactly, and for decimals what their written digits imply (see the module).
    """
    left = parse(a) if isinstance(a, str) else a
    right = parse(b) if isinstance(b, str) else b
    # One order of the two, whichever way they come, makes the comparison symmetric to the last step of work.
    if _key(right) < _key(left):
        left, right = right, left
    work = Work(WORK_LIMIT)
    if left.source == right.source or left == right:
        return Equality("equal", "the same text", 0)
    try:
        outcome = _Comparison(tolerance, work).values(left, right)
    except WorkExceeded:
        return Equality("unknown", f"not settled within {WORK_LIMIT} steps", work.spent)
    kinds = " and ".join(type(value).__name__.lower() for value in (left, right))
    reasons = {"equal": "equal as", "different": "different as", "unknown": "undefined or too large:"}
    return Equality(outcome, f"{reasons[outcome]} {kinds}", work.spent)


def _key(value: Value) -> tuple[int, str]:
    return _RANK[type(value)], value.source


def _all(outcomes: Iterable[Outcome]) -> Outcome:
    return _decided(outcomes, by="different", otherwise="equal")


def _any(outcomes: Iterable[Outcome]) -> Outcome:
    return _decided(outcomes, by="equal", otherwise="different")


def _decided(outcomes: Iterable[Outcome], *, by: Outcome, otherwise: Outcome) -> Outcome:
    """One `by` decides, and nothing after it is worked out; without it one unknown leaves it unknown."""
    unknown = False
    for outcome in outcomes:
        if outcome == by:
            return by
        unknown = unknown or outcome == "unknown"
    return "unknown" if unknown else otherwise


class _Comparison:
    def __init__(self, tolerance: float | None, work: Work) -> None:
        self._tolerance = tolerance
        self._work = work
        self._by_kind: dict[type, Callable[..., Outcome]] = {
            Percent: self._percent,
            Quantity: self._quantity,
            Ratio: self._ratio,
            Region: self._region,
            Group: self._group,
            Matrix: self._matrix,
            Definition: self._definition,
            Relation: self._relation,
        }

    def values(self, a: Value, b: Value) -> Outcome:
        """Compare any two; the one of the higher rank says how."""
        self._work.spend(1)
        if _key(b) < _key(a):
            a, b = b, a
        if isinstance(a, Text) or isinstance(b, Text):
            return "equal" if a.source == b.source else "different"
        if isinstance(a, Number | Expression) and isinstance(b, Number | Expression):
            return compare_scalars(a, b, self._tolerance, self._work)
        return self._by_kind[type(b)](b, a)

    def _nodes(self, a: Node, b: Node, *digits_of: Scalar) -> Outcome:
        digits = min((s.digits for s in digits_of if s.digits is not None), default=None)
        return self.values(to_scalar(a, "", digits), to_scalar(b, "", digits))

    def _pairwise(self, a: Sequence[Value], b: Sequence[Value]) -> Outcome:
        if len(a) != len(b):
            return "different"
        return _all(self.values(x, y) for x, y in zip(a, b, strict=True))

    def _covers(self, a: Sequence[Value], b: Sequence[Value]) -> Outcome:
        """As sets: each is among the others."""
        one: list[Outcome] = [_any(self.values(x, y) for y in b) for x in a]
        other: list[Outcome] = [_any(self.values(x, y) for x in a) for y in b]
        return _all([*one, *other])

    def _percent(self, p: Percent, other: Value) -> Outcome:
        if isinstance(other, Percent):
            return self.values(p.amount, other.amount)
        assert isinstance(other, Number | Expression)
        hundredth = tree.multiply(p.amount.expr, Num(Fraction(1, 100)))
        return _any((self.values(p.amount, other), self._nodes(hundredth, other.expr, p.amount, other)))

    def _quantity(self, q: Quantity, other: Value) -> Outcome:
        if isinstance(other, Quantity):
            if not q.unit.bases or not other.unit.bases:
                return self.values(q.amount, other.amount)
            if q.unit.bases != other.unit.bases:
                return "different"
            left, right = (tree.multiply(x.amount.expr, Num(x.unit.factor)) for x in (q, other))
            return self._nodes(left, right, q.amount, other.amount)
        if isinstance(other, Percent):
            return "different"
        assert isinstance(other, Number | Expression)
        if q.symbolic is not None and tree.free_symbols(other.expr):
            return self.values(q.symbolic, other)
        same = self.values(q.amount, other)
        if same != "equal" and q.unit.bases == (("degree", 1),):
            return self._nodes(tree.multiply(q.amount.expr, _RADIANS), other.expr, q.amount, other)
        return same

    def _ratio(self, r: Ratio, other: Value) -> Outcome:
        if isinstance(other, Ratio):
            if len(r.terms) != len(other.terms):
                return "different"
            first, second = r.terms[0].expr, other.terms[0].expr
            return _all(
                self._nodes(tree.multiply(x.expr, second), tree.multiply(y.expr, first), x, y)
                for x, y in zip(r.terms[1:], other.terms[1:], strict=True)
            )
        if len(r.terms) != 2 or not isinstance(other, Number | Expression):
            return "different"
        return self._nodes(tree.divide(r.terms[0].expr, r.terms[1].expr), other.expr, *r.terms, other)

    def _region(self, region: Region, other: Value) -> Outcome:
        if isinstance(other, Number | Expression):
            points = [p for p in region.parts if p.low_closed and p.high_closed]
            if len(region.parts) != 1 or not points:
                return "different"
            return _all(self._nodes(end, other.expr, other) for end in (points[0].low, points[0].high))
        if not isinstance(other, Region):
            return "different"
        if None not in (names := {region.variable, other.variable}) and len(names) > 1:
            return "different"
        try:
            one, two = self._merged(region.parts), self._merged(other.parts)
        except Undefined:
            return "unknown"
        if len(one) != len(two):
            return "different"
        return _all(self._intervals(x, y) for x, y in zip(one, two, strict=True))

    def _intervals(self, a: Interval, b: Interval) -> Outcome:
        if (a.low_closed, a.high_closed) != (b.low_closed, b.high_closed):
            return "different"
        return _all((self._nodes(a.low, b.low), self._nodes(a.high, b.high)))

    def _merged(self, parts: Sequence[Interval]) -> Sequence[Interval]:
        """Disjoint parts in order, empty ones dropped; as they are where an end has symbols."""
        if any(tree.free_symbols(end) for part in parts for end in (part.low, part.high)):
            return parts
        out: list[Interval] = []
        for part in self._sorted(parts):
            width = order(part.low, part.high, self._work)
            if width > 0 or (width == 0 and not (part.low_closed and part.high_closed)):
                continue
            if not out:
                out.append(part)
                continue
            last = out[-1]
            gap = order(part.low, last.high, self._work)
            if gap > 0 or (gap == 0 and not (part.low_closed or last.high_closed)):
                out.append(part)
                continue
            further = order(part.high, last.high, self._work)
            high, closed = (part.high, part.high_closed) if further > 0 else (last.high, last.high_closed)
            closed = closed or (further == 0 and part.high_closed)
            low_closed = last.low_closed or (order(part.low, last.low, self._work) == 0 and part.low_closed)
            out[-1] = Interval(last.low, high, low_closed, closed)
        return out

    def _sorted(self, parts: Sequence[Interval]) -> list[Interval]:
        out: list[Interval] = []
        for part in parts:  # by insertion: `order` may raise, and parts are few
            at = len(out)
            while at and order(part.low, out[at - 1].low, self._work) < 0:
                at -= 1
            out.insert(at, part)
        return out

    def _group(self, group: Group, other: Value) -> Outcome:
        if isinstance(other, Region):
            region = as_region(group)
            return "different" if region is None else self.values(region, other)
        if not isinstance(other, Group):
            return self.values(group.items[0], other) if len(group.items) == 1 else "different"
        brackets = {group.brackets, other.brackets}
        defined = [all(isinstance(item, Definition) for item in g.items) for g in (group, other)]
        if brackets in ({""}, {"{}"}, {"", "{}"}) and defined[0] == defined[1]:
            return self._covers(group.items, other.items)
        ambiguous = len(group.items) == 2
        if brackets == {"{}", "()"} or (ambiguous and brackets in ({"()", "[]"}, {"{}", "[]"})):
            return "different"
        if brackets == {"{}", "[]"}:
            return self._covers(group.items, other.items)
        one, two = (
            [item.value if isinstance(item, Definition) else item for item in g.items] if d else g.items
            for g, d in zip((group, other), defined, strict=True)
        )
        return self._pairwise(one, two)

    def _matrix(self, matrix: Matrix, other: Value) -> Outcome:
        rows = matrix.rows
        if isinstance(other, Matrix):
            if len(rows) != len(other.rows):
                return "different"
            return _all(self._pairwise(x, y) for x, y in zip(rows, other.rows, strict=True))
        if not isinstance(other, Group) or other.brackets not in ("()", "[]"):
            return "different"
        nested = [item.items for item in other.items if isinstance(item, Group)]
        if len(nested) == len(other.items) == len(rows):
            return _all(self._pairwise(x, y) for x, y in zip(rows, nested, strict=True))
        if len(rows) > 1 and len(rows[0]) > 1:
            return "different"
        return self._pairwise([item for row in rows for item in row], other.items)

    def _definition(self, definition: Definition, other: Value) -> Outcome:
        if not isinstance(other, Definition):
            return self.values(definition.value, other)
        if definition.name == other.name:
            return self.values(definition.value, other.value)
        one, two = _as_relation(definition), _as_relation(other)
        return "different" if one is None or two is None else self.values(one, two)

    def _relation(self, relation: Relation, other: Value) -> Outcome:
        if isinstance(other, Definition):
            turned = _as_relation(other)
        elif isinstance(other, Region):
            turned = half_line(other)
        else:
            turned = other if isinstance(other, Relation) else None
        return "different" if turned is None else compare_relations(relation, turned, self._work)


def _as_relation(definition: Definition) -> Relation | None:
    value = definition.value
    if not isinstance(value, Number | Expression):
        return None
    return Relation(definition.source, "=", tree.Sym(definition.name), value.expr)
