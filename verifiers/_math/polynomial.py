"""Exact identity of rational functions over the rationals, by sympy's sparse polynomial rings.

Only ring arithmetic of sympy is used, never `simplify`, `expand` or `factor`, and each product is counted
before it is made: terms times terms in `Work`, with bounds on degree and on the bits of a coefficient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from sympy.polys.domains import QQ  # type: ignore[import-untyped, unused-ignore]
from sympy.polys.rings import PolyRing  # type: ignore[import-untyped, unused-ignore]

from stratagem.verifiers._math.rational import NotRational, exact
from stratagem.verifiers._math.tree import Const, Node, Num, Op, Sym, Undefined, Work, nodes

MAX_DEGREE: Final = 64
MAX_TERMS: Final = 512
MAX_COEFFICIENT_BITS: Final = 1024


class NotPolynomial(Exception):
    """Not a rational function with rational coefficients, or past the limits on its size."""


@dataclass(frozen=True, slots=True)
class Quotient:
    """top / bottom, not reduced."""

    top: Any
    bottom: Any


def names(*trees: Node) -> tuple[str, ...]:
    """What the ring's generators are: the symbols and the transcendental constants of the trees."""
    found = {n.name for tree in trees for n in nodes(tree) if isinstance(n, Sym)}
    found |= {f"\\{n.name}" for tree in trees for n in nodes(tree) if isinstance(n, Const)}
    return tuple(sorted(found))


class Ring:
    """Rational functions in the given generators (at least one)."""

    def __init__(self, generators: tuple[str, ...], work: Work) -> None:
        # Rings parse their generators' names, so they get names of ours, not the text's.
        self._ring: Any = PolyRing([f"g{k}" for k in range(len(generators))], QQ)
        self._generators: dict[str, Any] = dict(zip(generators, self._ring.gens, strict=True))
        self._work = work

    def convert(self, node: Node) -> Quotient:
        """The tree as a quotient. Raises NotPolynomial, Undefined (a zero divisor) or WorkExceeded."""
        self._work.spend(1)
        match node:
            case Num(value):
                return self._constant(value)
            case Sym(name):
                return Quotient(self._generators[name], self._ring.one)
            case Const("pi" | "e" as name):
                return Quotient(self._generators[f"\\{name}"], self._ring.one)
            case Op("+", args):
                total = self._constant(Fraction(0))
                for arg in args:
                    total = self._add(total, self.convert(arg))
                return total
            case Op("*", args):
                total = self._constant(Fraction(1))
                for arg in args:
                    term = self.convert(arg)
                    top = self._multiply(total.top, term.top)
                    total = Quotient(top, self._multiply(total.bottom, term.bottom))
                return total
            case Op("^", (base, exponent)):
                return self._power(self.convert(base), exponent)
            case _:
                try:
                    return self._constant(exact(node))
                except NotRational:
                    raise NotPolynomial from None

    def difference(self, left: Quotient, right: Quotient) -> tuple[Any, Any]:
        """The two cross products whose equality is that of the quotients."""
        return self._multiply(left.top, right.bottom), self._multiply(right.top, left.bottom)

    def _constant(self, value: Fraction) -> Quotient:
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_COEFFICIENT_BITS:
            raise NotPolynomial
        ring = self._ring
        return Quotient(ring.ground_new(QQ(value.numerator, value.denominator)), ring.one)

    def _add(self, left: Quotient, right: Quotient) -> Quotient:
        if left.bottom == right.bottom:
            return Quotient(self._bounded(left.top + right.top), left.bottom)
        one, other = self.difference(left, right)
        return Quotient(self._bounded(one + other), self._multiply(left.bottom, right.bottom))

    def _multiply(self, left: Any, right: Any) -> Any:
        self._work.spend(1 + len(left) * len(right))
        return self._bounded(left * right)

    def _power(self, base: Quotient, exponent: Node) -> Quotient:
        try:
            n = exact(exponent)
        except NotRational:
            raise NotPolynomial from None
        if n.denominator != 1 or abs(n) > MAX_DEGREE:
            raise NotPolynomial
        if n < 0:
            base = Quotient(base.bottom, base.top)
        if not base.bottom or (n == 0 and not base.top):
            raise Undefined
        out = self._constant(Fraction(1))
        for _ in range(abs(n.numerator)):
            out = Quotient(self._multiply(out.top, base.top), self._multiply(out.bottom, base.bottom))
        return out

    def _bounded(self, poly: Any) -> Any:
        if len(poly) > MAX_TERMS:
            raise NotPolynomial
        self._work.spend(1 + len(poly) // 8)
        for monomial, coefficient in poly.terms():
            size = max(int(coefficient.numerator).bit_length(), int(coefficient.denominator).bit_length())
            if size > MAX_COEFFICIENT_BITS or math.fsum(monomial) > MAX_DEGREE:
                raise NotPolynomial
        return poly


def proportional(left: Any, right: Any) -> Fraction | None:
    """c with left = c * right, for two polynomials that are not zero; None where there is none."""
    c = left.LC / right.LC
    return Fraction(int(c.numerator), int(c.denominator)) if left == right * c else None
