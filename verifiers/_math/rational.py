"""Exact values of symbol-free trees, where they are rational and of a bounded number of bits."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final

from stratagem.verifiers._math.tree import Const, Node, Num, Op, Sym, Undefined

MAX_BITS: Final = 8192
"""Bits of a numerator or denominator past which a value counts as not exactly computable."""
MAX_FACTORIAL: Final = 500


class NotRational(Exception):
    """The value is irrational, has symbols, or needs more than MAX_BITS."""


def exact(node: Node) -> Fraction:
    """The rational value of the tree. Raises NotRational, or Undefined on division by zero."""
    match node:
        case Num(value):
            return _bounded(value)
        case Sym() | Const():
            raise NotRational
        case Op("+", args):
            return _sum([exact(arg) for arg in args])
        case Op("*", args):
            return _product([exact(arg) for arg in args])
        case Op("^", (base, exponent)):
            return _power(exact(base), exact(exponent))
        case Op(name, args):
            return _function(name, [exact(arg) for arg in args])


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() > MAX_BITS or value.denominator.bit_length() > MAX_BITS:
        raise NotRational
    return value


def _sum(values: list[Fraction]) -> Fraction:
    total = Fraction(0)
    for value in values:
        total = _bounded(total + value)
    return total


def _product(values: list[Fraction]) -> Fraction:
    total = Fraction(1)
    for value in values:
        total = _bounded(total * value)
    return total


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if base == 0:
        if exponent <= 0:
            raise Undefined
        return Fraction(0)
    if base == 1:
        return base
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if exponent.denominator == 1 and abs(exponent.numerator) * bits <= MAX_BITS:
        return Fraction(base**exponent.numerator)
    if exponent.denominator == 2 and base > 0:
        # Only square roots: they are what answers hold, and isqrt is exact.
        top, bottom = math.isqrt(base.numerator), math.isqrt(base.denominator)
        if Fraction(top, bottom) ** 2 == base and exponent.numerator != 0:
            return _power(Fraction(top, bottom), Fraction(exponent.numerator))
    raise NotRational


def _function(name: str, args: list[Fraction]) -> Fraction:
    match name, args:
        case "abs", [value]:
            return abs(value)
        case "floor", [value]:
            return Fraction(math.floor(value))
        case "ceil", [value]:
            return Fraction(math.ceil(value))
        case "factorial", [value] if value.denominator == 1 and 0 <= value <= MAX_FACTORIAL:
            return Fraction(math.factorial(value.numerator))
        case "binomial", [top, bottom] if top.denominator == bottom.denominator == 1:
            if 0 <= bottom <= top <= MAX_FACTORIAL:
                return Fraction(math.comb(top.numerator, bottom.numerator))
            if 0 <= top < bottom:
                return Fraction(0)
        case _:
            pass
    raise NotRational
