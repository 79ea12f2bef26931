"""Expression trees: what a scalar answer is once parsed.

A tree is inert: building, hashing or comparing one computes nothing, so `9**9**9` is three leaves and two
nodes. Work is done only by the evaluators (`rational`, `numeric`, `polynomial`), each under a `Work` bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import sympy  # type: ignore[import-untyped, unused-ignore]


@dataclass(frozen=True, slots=True)
class Num:
    """An exact rational number."""

    value: Fraction


@dataclass(frozen=True, slots=True)
class Sym:
    """A free symbol, such as `x`, `x_1` or `theta`."""

    name: str


@dataclass(frozen=True, slots=True)
class Const:
    """`pi`, `e`, `i` or `oo` (positive infinity)."""

    name: str


@dataclass(frozen=True, slots=True)
class Op:
    """`+` and `*` of any number of arguments, `^` of two, or a function.

    Functions: those of `numeric.FUNCTIONS`, and abs, floor, ceil, binomial and root. `ln` is natural;
    `root(x, n)` is the real n-th root where there is one.
    """

    name: str
    args: tuple[Node, ...]


Node = Num | Sym | Const | Op

ZERO: Final = Num(Fraction(0))
ONE: Final = Num(Fraction(1))
MINUS_ONE: Final = Num(Fraction(-1))
HALF: Final = Num(Fraction(1, 2))
INFINITY: Final = Const("oo")


class WorkExceeded(Exception):
    """The bound on work was reached: the comparison is unknown, not different."""


class Undefined(Exception):
    """The expression has no finite value here (0/0, ln 0) or none that the guards let be computed."""


@dataclass(slots=True)
class Work:
    """A count of elementary steps (a tree node visited, a pair of polynomial terms multiplied) and its bound.

    One step is some microseconds whatever the operands, as every operand's size is itself bounded.
    """

    limit: int
    spent: int = field(default=0)

    def spend(self, steps: int) -> None:
        """Count steps that are about to be done. Raises WorkExceeded where they would pass the limit."""
        self.spent += steps
        if self.spent > self.limit:
            self.spent = self.limit
            raise WorkExceeded


def add(*args: Node) -> Node:
    """The sum, nested sums flattened, so that depth does not grow with the number of terms."""
    return _flat("+", args, ZERO)


def multiply(*args: Node) -> Node:
    """The product, nested products flattened."""
    return _flat("*", args, ONE)


def _flat(name: str, args: tuple[Node, ...], neutral: Num) -> Node:
    out: list[Node] = []
    for arg in args:
        if isinstance(arg, Op) and arg.name == name:
            out.extend(arg.args)
        elif arg != neutral:
            out.append(arg)
    if not out:
        return neutral
    return out[0] if len(out) == 1 else Op(name, tuple(out))


def negate(arg: Node) -> Node:
    """Minus the argument; a number is negated at once."""
    return Num(-arg.value) if isinstance(arg, Num) else multiply(MINUS_ONE, arg)


def subtract(left: Node, right: Node) -> Node:
    """left - right."""
    return add(left, negate(right))


def power(base: Node, exponent: Node) -> Node:
    """base ^ exponent, not computed."""
    return Op("^", (base, exponent))


def divide(left: Node, right: Node) -> Node:
    """left / right, not computed: dividing by zero is found on evaluation."""
    return multiply(left, power(right, MINUS_ONE))


def nodes(node: Node) -> Iterator[Node]:
    """Every node, parents first, without recursion."""
    stack = [node]
    while stack:
        top = stack.pop()
        yield top
        if isinstance(top, Op):
            stack.extend(reversed(top.args))


def free_symbols(node: Node) -> frozenset[str]:
    """Names of the free symbols."""
    return frozenset(n.name for n in nodes(node) if isinstance(n, Sym))


def to_sympy(node: Node) -> sympy.Expr:
    """The same tree as an *unevaluated* sympy expression, for the caller's own algebra.

    Evaluating it (`doit`, `simplify`, even `+`) is outside this package's bounds on work.
    """
    import sympy  # type: ignore[import-untyped, unused-ignore]

    match node:
        case Num(value):
            return sympy.Rational(value.numerator, value.denominator)
        case Sym(name):
            return sympy.Symbol(name)
        case Const(name):
            return {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "oo": sympy.oo}[name]
        case Op(name, args):
            parts = [to_sympy(arg) for arg in args]
            if name == "root":
                return sympy.Pow(parts[0], sympy.Pow(parts[1], -1, evaluate=False), evaluate=False)
            heads = {"+": "Add", "*": "Mul", "^": "Pow", "ln": "log", "abs": "Abs", "ceil": "ceiling"}
            head: Any = getattr(sympy, heads.get(name, name))
            return head(*parts, evaluate=False)
