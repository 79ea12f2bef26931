"""High-precision values of trees, each with a bound on its error, under a bound on work.

Every operand is a floating-point number of fixed precision whose exponent is at most 2**64, so one step takes
bounded time even on `9**9**9`. The error bound is first order: it is carried through sums, products and
powers by their derivatives, and through functions by evaluating them at the ends of the operand's error.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import mpmath  # type: ignore[import-untyped, unused-ignore]
from mpmath.libmp import NoConvergence  # type: ignore[import-untyped, unused-ignore]

from stratagem.verifiers._math.tree import Const, Node, Num, Op, Sym, Undefined, Work

MAX_LOG2: Final = 2**64
"""Largest binary exponent: past it (10**10**10**10) a power is Undefined here."""
MAX_FACTORIAL_ARGUMENT: Final = 10**5
FUNCTION_STEPS: Final = 8
"""What one transcendental function costs in steps of `Work`."""

FUNCTIONS: Final = {
    name: {"ln": "log"}.get(name, name)
    for name in (
        *("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan"),
        *("sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "ln", "exp", "factorial"),
    )
}
"""Smooth functions of one argument, and what mpmath calls them."""


@dataclass(frozen=True, slots=True)
class Approx:
    """A real or complex number (mpf, mpc) and the bound on its absolute error (mpf)."""

    value: Any
    error: Any

    @property
    def real(self) -> bool:
        """Whether it has no imaginary part."""
        return hasattr(self.value, "_mpf_")


class Evaluator:
    """Evaluates trees at one precision (decimal digits). An instance belongs to one thread."""

    def __init__(self, digits: int) -> None:
        self._ctx: Any = mpmath.MPContext()
        self._ctx.dps = digits
        self.digits = digits
        self._eps = self._ctx.ldexp(1, 2 - self._ctx.prec)

    def number(self, value: Fraction) -> Approx:
        """A rational, rounded to the precision."""
        ctx = self._ctx
        v = ctx.mpf(value.numerator) / value.denominator
        short = value.numerator.bit_length() <= ctx.prec and value.denominator & (value.denominator - 1) == 0
        return Approx(v, ctx.zero if short else abs(v) * self._eps)

    def evaluate(self, node: Node, point: Mapping[str, Fraction], work: Work) -> Approx:
        """The tree's value with its symbols at `point`.

        Raises Undefined (also where the error leaves no sign of a divisor) or WorkExceeded.
        """
        try:
            return self._evaluate(node, point, work)
        except (ArithmeticError, ValueError, NoConvergence) as exc:
            raise Undefined from exc

    def _evaluate(self, node: Node, point: Mapping[str, Fraction], work: Work) -> Approx:
        work.spend(1)
        match node:
            case Num(value):
                return self.number(value)
            case Sym(name):
                return self.number(point[name])
            case Const(name):
                return self._constant(name)
            case Op(name, args):
                work.spend(FUNCTION_STEPS if name not in "+*" else len(args))
                operands = [self._evaluate(arg, point, work) for arg in args]
                return self._settle(self._apply(name, operands))

    def _constant(self, name: str) -> Approx:
        ctx = self._ctx
        if name == "oo":
            raise Undefined
        if name == "i":
            return Approx(ctx.mpc(0, 1), ctx.zero)
        value = +(ctx.pi if name == "pi" else ctx.e)
        return Approx(value, value * self._eps)

    def _settle(self, result: Approx) -> Approx:
        """Drop an imaginary part that is all error; refuse what is not finite."""
        ctx, v = self._ctx, result.value
        if not ctx.isfinite(v) or not ctx.isfinite(result.error):
            raise Undefined
        if not result.real and abs(v.imag) <= result.error:
            return Approx(v.real, result.error)
        return result

    def _apply(self, name: str, operands: list[Approx]) -> Approx:
        if name == "+":
            return self._sum(operands)
        if name == "*":
            return self._product(operands)
        if name == "^":
            return self._power(*operands)
        if name == "root":
            return self._root(*operands)
        if name == "binomial":
            raise Undefined  # outside the small integers, which `rational` computes
        return self._function(name, operands[0])

    def _sum(self, operands: list[Approx]) -> Approx:
        total, error = self._ctx.zero, self._ctx.zero
        for term in operands:
            total = total + term.value
            error = error + term.error
            if total != term.value:  # the first addition, to zero, is exact
                error = error + abs(total) * self._eps
        return Approx(total, error)

    def _product(self, operands: list[Approx]) -> Approx:
        total, error = self._ctx.one, self._ctx.zero
        for factor in operands:
            error = abs(total) * factor.error + error * (abs(factor.value) + factor.error)
            total = total * factor.value
            error = error + abs(total) * self._eps
        return Approx(total, error)

    def _power(self, base: Approx, exponent: Approx) -> Approx:
        ctx, b, p = self._ctx, base.value, exponent.value
        whole = exponent.real and exponent.error == 0 and ctx.isint(p)
        if abs(b) <= base.error:
            return self._power_of_zero(base, exponent)
        log = ctx.log(b)
        scale = abs(p * log)
        if scale > MAX_LOG2:
            raise Undefined
        value = b ** int(p) if whole else ctx.exp(p * log)
        relative = abs(log) * exponent.error + abs(p) * base.error / abs(b) + self._eps * (1 + scale)
        if relative > 1:
            raise Undefined
        return Approx(value, 2 * abs(value) * relative)

    def _power_of_zero(self, base: Approx, exponent: Approx) -> Approx:
        ctx = self._ctx
        if not exponent.real or exponent.value <= exponent.error:
            raise Undefined
        return Approx(ctx.zero, base.error**exponent.value if base.error else ctx.zero)

    def _root(self, base: Approx, index: Approx) -> Approx:
        ctx = self._ctx
        n = index.value
        odd = index.real and index.error == 0 and ctx.isint(n) and abs(n) < MAX_LOG2 and int(n) % 2 == 1
        inverse = self._power(index, Approx(-ctx.one, ctx.zero))
        if odd and base.real and base.value < 0:
            root = self._power(Approx(-base.value, base.error), inverse)
            return Approx(-root.value, root.error)
        return self._power(base, inverse)

    def _function(self, name: str, operand: Approx) -> Approx:
        ctx, x, e = self._ctx, operand.value, operand.error
        if name == "abs":
            return Approx(abs(x), e)
        if name in ("floor", "ceil"):
            return self._step(name, operand)
        if name == "factorial" and abs(x) > MAX_FACTORIAL_ARGUMENT:
            raise Undefined
        if name in ("ln", "factorial") and abs(x) <= e:
            if name == "ln":
                raise Undefined
            return Approx(ctx.one, e)
        if abs(x) > MAX_LOG2 and name != "ln":
            raise Undefined
        function = getattr(ctx, FUNCTIONS[name])
        value = function(x)
        error = abs(value) * self._eps * 4
        if e:
            error = error + abs(function(x + e) - value) + abs(function(x - e) - value)
        return Approx(value, error)

    def _step(self, name: str, operand: Approx) -> Approx:
        ctx = self._ctx
        if not operand.real or abs(operand.value) > ctx.ldexp(1, ctx.prec // 2):
            raise Undefined
        function = ctx.floor if name == "floor" else ctx.ceil
        low, high = function(operand.value - operand.error), function(operand.value + operand.error)
        if low != high:
            raise Undefined
        return Approx(low, ctx.zero)


class _Local(threading.local):
    """mpmath functions raise their context's precision while they run, so a context is never shared."""

    def __init__(self) -> None:
        self.by_digits: dict[int, Evaluator] = {}


_LOCAL: Final = _Local()


def evaluator(digits: int) -> Evaluator:
    """This thread's evaluator of that precision."""
    known = _LOCAL.by_digits
    if digits not in known:
        known[digits] = Evaluator(digits)
    return known[digits]
