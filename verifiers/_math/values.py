"""What an answer can be. Every value keeps `source`, its text in normal form: equal sources are equal values."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from stratagem.verifiers._math.tree import Node, Num


@dataclass(frozen=True, slots=True)
class Number:
    """An exact rational. `digits`: significant digits of its coarsest decimal; None where none is written."""

    source: str
    value: Fraction
    digits: int | None = None

    @property
    def expr(self) -> Node:
        """The number as a tree."""
        return Num(self.value)


@dataclass(frozen=True, slots=True)
class Expression:
    """A scalar that is not a rational number: it has symbols, irrational constants or functions."""

    source: str
    expr: Node
    digits: int | None = None


Scalar = Number | Expression


@dataclass(frozen=True, slots=True)
class Percent:
    """`amount` per cent: 50% has amount 50."""

    source: str
    amount: Scalar


@dataclass(frozen=True, slots=True)
class Unit:
    """Base units with their exponents, and the factor to them; a plain noun ("apples") has no base."""

    bases: tuple[tuple[str, int], ...]
    factor: Fraction


@dataclass(frozen=True, slots=True)
class Quantity:
    """A scalar with a unit. `symbolic`: the reading of "5m" as 5 times m, where the text allows it."""

    source: str
    amount: Scalar
    unit: Unit
    symbolic: Expression | None = None


@dataclass(frozen=True, slots=True)
class Ratio:
    """a : b, or longer."""

    source: str
    terms: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """One stretch of the real line; an infinite end is `INFINITY` or minus it. A point is [a, a]."""

    low: Node
    high: Node
    low_closed: bool
    high_closed: bool

    @property
    def ends(self) -> tuple[Node, Node]:
        """Low and high."""
        return self.low, self.high


@dataclass(frozen=True, slots=True)
class Region:
    """A union of intervals, and the name of the variable that lies in it where the text gives one."""

    source: str
    parts: tuple[Interval, ...]
    variable: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Several values. brackets "()" a tuple, "[]" a list, "{}" a set, "" a bare enumeration."""

    source: str
    items: tuple[Value, ...]
    brackets: Literal["()", "[]", "{}", ""]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of equal length."""

    source: str
    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True, slots=True)
class Definition:
    """`name = value`, where the value does not mention the name."""

    source: str
    name: str
    value: Value


@dataclass(frozen=True, slots=True)
class Relation:
    """left op right; > and >= are stored turned round."""

    source: str
    op: Literal["=", "<", "<=", "!="]
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Text:
    """Anything else: words, or what is past the limits on size."""

    source: str


Value = (
    Number | Expression | Percent | Quantity | Ratio | Region | Group | Matrix | Definition | Relation | Text
)
