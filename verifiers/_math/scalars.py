"""Equality of scalars: exact, then polynomial identity, then values at random points."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, Literal

from stratagem.verifiers._math import tree
from stratagem.verifiers._math.numeric import Approx, evaluator
from stratagem.verifiers._math.rational import NotRational
from stratagem.verifiers._math.tree import INFINITY, Node, Undefined, Work
from stratagem.verifiers._math.values import Number, Relation, Scalar

Outcome = Literal["equal", "different", "unknown"]

ROUNDED_DIGITS: Final = 6
"""Significant digits from which on a decimal may stand for the exact value that it rounds."""
FLOAT_DIGITS: Final = 15
"""Significant digits from which on a decimal counts as computed in floating point rather than as given."""
FLOAT_NOISE: Final = Fraction(1, 10**14)

_DIGITS: Final = 50
_MORE_DIGITS: Final = 250
_ROUNDS: Final = 24
_ENOUGH: Final = 12
_FEW: Final = 3
_SCALES: Final = (1, 3, 10, 100, 1000)
_SEED: Final = 1729


@dataclass(frozen=True, slots=True)
class Tolerance:
    """`relative`: what the caller allows; None: only what the digits of written decimals allow."""

    relative: float | None
    digits: int | None
    """Significant digits of the coarsest decimal on either side; None where both are exact."""
    finest: int | None
    """Those of the finest."""

    @staticmethod
    def of(relative: float | None, *sides: Scalar) -> Tolerance:
        """For a comparison of these."""
        digits = [side.digits for side in sides if side.digits is not None]
        return Tolerance(relative, min(digits, default=None), max(digits, default=None))

    @property
    def exact(self) -> bool:
        """Whether only equal values pass."""
        rounded = self.digits is not None and self.digits >= ROUNDED_DIGITS
        noisy = self.finest is not None and self.finest >= FLOAT_DIGITS
        return not (rounded or noisy) if self.relative is None else self.relative == 0

    def allows(self, gap: Any, scale: Any, exponent: int) -> bool:
        """Whether values at most `scale` in size, about 10**exponent, may differ by `gap`."""
        if self.relative is not None:
            return bool(gap <= scale * self.relative)
        if self.digits is not None and self.digits >= ROUNDED_DIGITS:
            shift = exponent + 1 - self.digits
            unit = Fraction(10**shift) if shift >= 0 else Fraction(1, 10**-shift)
            if gap * unit.denominator < unit.numerator:
                return True
        noisy = self.finest is not None and self.finest >= FLOAT_DIGITS
        return noisy and bool(gap * FLOAT_NOISE.denominator <= scale)


def compare_scalars(a: Scalar, b: Scalar, relative: float | None, work: Work) -> Outcome:
    """Whether two scalars are equal. Raises WorkExceeded."""
    tolerance = Tolerance.of(relative, a, b)
    if isinstance(a, Number) and isinstance(b, Number):
        return _rationals(a.value, b.value, tolerance)
    left, right = a.expr, b.expr
    if left == right:
        return "equal"
    if infinite(left) or infinite(right):
        return "different"
    try:
        symbols = sorted(tree.free_symbols(left) | tree.free_symbols(right))
        if not symbols:
            return _constants(left, right, tolerance, work)
        exact = _identity(left, right, work)
        if exact == "equal" or (exact is not None and tolerance.exact):
            return exact
        return _at_points(left, right, symbols, tolerance, work)
    except Undefined:
        return "unknown"


def infinite(node: Node) -> bool:
    """Whether the tree is infinity or minus infinity."""
    return node in (INFINITY, tree.negate(INFINITY))


def order(a: Node, b: Node, work: Work) -> int:
    """The sign of a - b for symbol-free real trees, infinities included. Raises Undefined or WorkExceeded."""
    if a == b:
        return 0
    ends = [_infinite_sign(node) for node in (a, b)]
    if any(ends):
        return (ends[0] > ends[1]) - (ends[0] < ends[1])
    left, right = (evaluator(_DIGITS).evaluate(node, {}, work) for node in (a, b))
    if not left.real or not right.real:
        raise Undefined
    gap = left.value - right.value
    return 0 if abs(gap) <= 4 * (left.error + right.error) else 1 if gap > 0 else -1


def _infinite_sign(node: Node) -> int:
    return 0 if not infinite(node) else 1 if node == INFINITY else -1


def _rationals(a: Fraction, b: Fraction, tolerance: Tolerance) -> Outcome:
    if a == b:
        return "equal"
    scale = max(abs(a), abs(b))
    if tolerance.relative is not None:
        return "equal" if abs(a - b) <= scale * Fraction(tolerance.relative) else "different"
    # Of two given decimals neither is the other rounded: 35624.0 is not 35624.01.
    given = _terminates(a) and _terminates(b) and (tolerance.finest or 0) < FLOAT_DIGITS
    if given or tolerance.exact:
        return "different"
    return "equal" if tolerance.allows(abs(a - b), scale, _exponent(scale)) else "different"


def _terminates(value: Fraction) -> bool:
    """Whether it has a finite decimal expansion: a denominator of twos and fives only."""
    return pow(10, value.denominator.bit_length(), value.denominator) == 0


def _exponent(value: Fraction) -> int:
    """The decimal exponent of a positive rational: floor(log10(value))."""
    guess = len(str(value.numerator)) - len(str(value.denominator))
    return guess if value >= Fraction(10) ** guess else guess - 1


def _constants(left: Node, right: Node, tolerance: Tolerance, work: Work) -> Outcome:
    found = _close(*_both(left, right, {}, _DIGITS, work), _DIGITS, tolerance)
    if found != "equal" or not tolerance.exact:
        return found
    # Equal to 50 digits; what differs beyond them (10**60 + 1 from 10**60) is told apart by more. Where even
    # they do not reach the 20th decimal place, as between 9**9**9 and its successor, nothing is known.
    a, b = _both(left, right, {}, _MORE_DIGITS, work)
    return "unknown" if (a.error + b.error) * 10**20 > 1 else _close(a, b, _MORE_DIGITS, tolerance)


def _both(left: Node, right: Node, at: dict[str, Fraction], digits: int, work: Work) -> tuple[Approx, Approx]:
    engine = evaluator(digits)
    work.spend(digits // 10)
    return engine.evaluate(left, at, work), engine.evaluate(right, at, work)


def _close(a: Approx, b: Approx, digits: int, tolerance: Tolerance) -> Outcome:
    gap, error = abs(a.value - b.value), 4 * (a.error + b.error)
    scale = max(abs(a.value), abs(b.value))
    vague = error > max(scale, 1) / 10 ** (digits // 2)
    if gap <= error:
        return "unknown" if vague else "equal"
    if not tolerance.exact:
        # log2 of the size, by mpmath's mag, to a decimal exponent.
        exponent = int((scale._mpf_[2] + scale._mpf_[3] - 1) * 0.30103) if scale else 0
        if abs(exponent) < 10**4 and tolerance.allows(gap, scale, exponent):
            return "equal"
    return "different"


def _identity(left: Node, right: Node, work: Work) -> Outcome | None:
    """Exact comparison as rational functions; None where they are none or too large."""
    from stratagem.verifiers._math import polynomial  # sympy is loaded for symbolic answers only

    try:
        ring = polynomial.Ring(polynomial.names(left, right), work)
        one, other = ring.difference(ring.convert(left), ring.convert(right))
    except (polynomial.NotPolynomial, NotRational):
        return None
    return "equal" if one == other else "different"


def _points(symbols: Sequence[str]) -> Iterator[dict[str, Fraction]]:
    """Seeded dyadic points (exact in binary), of several sizes, by turns all positive and of mixed sign."""
    rng = random.Random(_SEED)
    for k in range(_ROUNDS):
        size = _SCALES[k // 2 % len(_SCALES)]
        yield {
            name: Fraction(rng.randint(2**28, 2**30) * size * (rng.choice((1, -1)) if k % 2 else 1), 2**30)
            for name in symbols
        }


def _at_points(left: Node, right: Node, symbols: Sequence[str], tolerance: Tolerance, work: Work) -> Outcome:
    """Equal wherever both are real; where they are real at too few points, equal as complex functions."""
    real: list[Outcome] = []
    other: list[Outcome] = []
    for point in _points(symbols):
        try:
            a, b = _both(left, right, point, _DIGITS, work)
        except Undefined:
            continue
        outcome = _close(a, b, _DIGITS, tolerance)
        (real if a.real and b.real else other).append(outcome)
        if real and real[-1] == "different":
            return "different"
        if real.count("equal") >= _ENOUGH:
            return "equal"
    if real.count("equal") >= _FEW:
        return "equal"
    if "different" in other:
        return "different"
    return "equal" if other.count("equal") >= _FEW else "unknown"


def compare_relations(a: Relation, b: Relation, work: Work) -> Outcome:
    """Equal up to a constant factor, not zero, and positive for inequalities. Raises WorkExceeded."""
    if a.op != b.op:
        return "different"
    left, right = tree.subtract(a.left, a.right), tree.subtract(b.left, b.right)
    directed = a.op in ("<", "<=")
    if left == right:
        return "equal"
    try:
        exact = _proportional(left, right, directed, work)
        return exact if exact is not None else _ratio_at_points(left, right, directed, work)
    except Undefined:
        return "unknown"


def _proportional(left: Node, right: Node, directed: bool, work: Work) -> Outcome | None:
    from stratagem.verifiers._math import polynomial

    try:
        ring = polynomial.Ring(polynomial.names(left, right, tree.Sym("x")), work)
        one, other = ring.convert(left), ring.convert(right)
        pairs = [ring.difference(one, other)]
    except (polynomial.NotPolynomial, NotRational):
        return None
    if not directed:
        pairs.append((one.top, other.top))  # y = 1/x is xy = 1: a divisor's zeros are no solutions
    for p, q in pairs:
        if not p or not q:
            return "equal" if not p and not q else "different"
        factor = polynomial.proportional(p, q)
        if factor is not None and (factor > 0 or not directed):
            return "equal"
    return "different"


def _ratio_at_points(left: Node, right: Node, directed: bool, work: Work) -> Outcome:
    symbols = sorted(tree.free_symbols(left) | tree.free_symbols(right))
    ratio = tree.divide(left, right)
    engine = evaluator(_DIGITS)
    found: list[Approx] = []
    for point in _points(symbols):
        try:
            value = engine.evaluate(ratio, point, work)
        except Undefined:
            continue
        if not value.real:
            continue
        if abs(value.value) <= value.error or (directed and value.value < 0):
            return "different"
        found.append(value)
        outcome = _close(found[0], value, _DIGITS, Tolerance(None, None, None))
        if outcome != "equal":
            return outcome
        if len(found) >= _ENOUGH:
            return "equal"
    return "equal" if len(found) >= _FEW else "unknown"
