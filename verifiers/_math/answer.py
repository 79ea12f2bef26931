"""From a whole answer to a typed value: lists, intervals, equations, units, and the scalars within them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Final

from stratagem.core.extract import last_boxed
from stratagem.verifiers._math import tree, units
from stratagem.verifiers._math.lexer import Token, tokenize
from stratagem.verifiers._math.notation import Unparsable, clean, normal, turned
from stratagem.verifiers._math.parser import SPECIAL_WORDS, ExpressionParser, is_prose, match_brackets
from stratagem.verifiers._math.rational import NotRational, exact
from stratagem.verifiers._math.regions import (
    EVERYTHING,
    Range,
    bracket_interval,
    reduced,
    relation_value,
    union,
)
from stratagem.verifiers._math.tree import Const, Node, Num, Undefined
from stratagem.verifiers._math.values import (
    Definition,
    Expression,
    Group,
    Matrix,
    Number,
    Percent,
    Quantity,
    Ratio,
    Region,
    Scalar,
    Text,
    Unit,
    Value,
)

_RELATIONS: Final = frozenset({"=", "<", "<=", ">", ">=", "!=", "in"})
_UNION: Final = frozenset({"cup", "U", "u", "union"})
_INTERSECTION: Final = frozenset({"cap"})
_DIFFERENCE: Final = frozenset({"setminus"})
_PHRASES: Final = {"all real numbers": EVERYTHING, "all reals": EVERYTHING, "empty set": ()}
_MATRICES: Final = frozenset({"matrix", "pmatrix", "bmatrix", "vmatrix", "array", "Bmatrix", "smallmatrix"})
_RADIANS: Final = frozenset({"rad", "radian", "radians"})


def parse(text: str) -> Value:
    """The typed value of an answer in LaTeX or plain notation; a Text where it is none in the grammar.

    Never raises and never evaluates the text: work is linear in it, and past the limits of `lexer` and
    `parser` on length, depth and digits the value is a Text.
    """
    words = text
    try:
        # Of a worked answer that holds one box the box is what is answered.
        words = clean(last_boxed(text) or text)
        try:
            parser = _Parser(tokenize(words))
        except Unparsable:
            parser = _Parser(tokenize(turned(words)))
        return parser.whole()
    except Unparsable:
        return Text(normal(words))


def to_scalar(node: Node, source: str, digits: int | None) -> Scalar:
    """A Number where the tree has an exact rational value, else an Expression."""
    try:
        return Number(source, exact(node), digits)
    except (NotRational, Undefined):
        return Expression(source, node, digits)


class _Parser:
    """Parses ranges [lo, hi) of one token list. Each method raises Unparsable where the range is not its form."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = tokens
        self._pairs = match_brackets(tokens)
        self._parsers = {sign: ExpressionParser(tokens, self._pairs, sign) for sign in (1, -1)}

    def whole(self) -> Value:
        """The value of all tokens."""
        tokens = self._tokens
        if tokens and all(t.kind == "word" for t in tokens):
            words = " ".join(t.text.casefold() for t in tokens)
            if words in _PHRASES:
                return Region(words, _PHRASES[words])
            if any(is_prose(t.text) and t.text not in SPECIAL_WORDS for t in tokens):
                raise Unparsable("words")
        return self.value(0, len(tokens))

    def value(self, lo: int, hi: int) -> Value:
        """Any value."""
        if lo >= hi:
            raise Unparsable("empty")
        if self._pairs.get(lo) == hi - 1:
            return self._bracketed(lo, hi)
        for form in (self._compound, self._listing, self._sets, self._relation, self._ratio, self._named):
            found = form(lo, hi)
            if found is not None:
                return found
        return self._quantity(lo, hi) or self._signs(lo, hi)

    def scalar(self, lo: int, hi: int) -> Scalar:
        """An expression without plus-minus."""
        if any(t.text in ("+-", "-+") for t in self._tokens[lo:hi]):
            raise Unparsable("two signs")
        return to_scalar(self._parsers[1].parse(lo, hi), self.source(lo, hi), self._digits(lo, hi))

    def source(self, lo: int, hi: int) -> str:
        """The normal form of the range's text."""
        return "".join((" " if t.spaced else "") + t.text for t in self._tokens[lo:hi]).strip()

    def is_word(self, at: int, *words: str) -> bool:
        """Whether the token is one of these words."""
        return self._tokens[at].kind == "word" and self._tokens[at].text.lower() in words

    def symbol(self, lo: int, hi: int) -> str | None:
        """The name that the range is: `x`, `x_1`, or the f of `f(x)`."""
        if (
            hi - lo == 4
            and self._tokens[lo].kind == self._tokens[lo + 2].kind == "word"
            and self._pairs.get(lo + 1)
        ):
            hi = lo + 1
        if hi > lo and self._tokens[lo].kind in ("word", "command"):
            try:
                node = self._parsers[1].parse(lo, hi)
            except Unparsable:
                return None
            return node.name if isinstance(node, tree.Sym) else None
        return None

    def label(self, lo: int, hi: int) -> bool:
        """Whether the range is words, as in "total cost = 5"."""
        tokens = self._tokens[lo:hi]
        return all(t.kind == "word" for t in tokens) and any(is_prose(t.text) for t in tokens)

    def _digits(self, lo: int, hi: int) -> int | None:
        return min((t.digits for t in self._tokens[lo:hi] if t.digits is not None), default=None)

    def _split(
        self, lo: int, hi: int, ops: frozenset[str], words: tuple[str, ...] = ()
    ) -> tuple[list[Range], list[str]]:
        """Ranges between separators outside brackets, and the separators."""
        ranges: list[Range] = []
        found: list[str] = []
        start = at = lo
        while at < hi:
            token = self._tokens[at]
            if (token.kind == "op" and token.text in ops) or (words and self.is_word(at, *words)):
                ranges.append((start, at))
                found.append(token.text)
                start = at + 1
            at = self._pairs.get(at, at) + 1
        return [*ranges, (start, hi)], found

    def _bracketed(self, lo: int, hi: int) -> Value:
        opening, closing = self._tokens[lo].text, self._tokens[hi - 1].text
        source = self.source(lo, hi)
        ranges, _ = self._split(lo + 1, hi - 1, frozenset({",", ";"}))
        if opening in ("{", "\\{"):
            if hi - lo == 2:
                return Region(source, ())
            parts, bars = self._split(lo + 1, hi - 1, frozenset({"|", ":"}))
            if opening == "\\{" and bars and len(parts) == 2:
                return self.value(*parts[1])
            if opening == "{" and len(ranges) == 1:
                return self.value(lo + 1, hi - 1)
            return Group(source, self._items(ranges), "{}")
        if len(ranges) == 1:
            return self.value(lo + 1, hi - 1)
        items = self._items(ranges)
        square = (opening == "[", closing == "]")
        interval = bracket_interval(items, square)
        if interval is not None and (square[0] != square[1] or tree.INFINITY in _ends(items)):
            return Region(source, (interval,))
        if square[0] != square[1]:
            raise Unparsable("mixed brackets")
        return Group(source, items, "[]" if square[0] else "()")

    def _items(self, ranges: list[Range]) -> tuple[Value, ...]:
        return tuple(self.value(*r) for r in ranges)

    def _compound(self, lo: int, hi: int) -> Value | None:
        """5 feet 6 inches, 2 hours and 30 minutes: units of one kind, each smaller than the one before."""
        parts: list[tuple[Fraction, Unit]] = []
        at = lo
        while at < hi:
            if parts and (self.is_word(at, "and") or self._tokens[at].text == ","):
                at += 1
            if at + 1 >= hi or self._tokens[at].kind != "number" or self._tokens[at + 1].kind != "word":
                return None
            unit = units.known(self._tokens[at + 1].text)
            if unit is None or (
                parts and (unit.bases != parts[0][1].bases or unit.factor >= parts[-1][1].factor)
            ):
                return None
            parts.append((self._tokens[at].value, unit))
            at += 2
        if len(parts) < 2:
            return None
        first = parts[0][1]
        total = sum((value * unit.factor for value, unit in parts), Fraction(0)) / first.factor
        source = self.source(lo, hi)
        return Quantity(source, Number(source, total), first)

    def _listing(self, lo: int, hi: int) -> Value | None:
        ranges, found = self._split(lo, hi, frozenset({",", ";", "or"}), ("or", "and"))
        if not found:
            return None
        items = self._items([r for r in ranges if r[0] < r[1]])
        if not items:
            raise Unparsable("separators alone")
        source = self.source(lo, hi)
        if all(word == "or" for word in found) and all(isinstance(item, Region) for item in items):
            return union(source, items)
        names = {item.name for item in items if isinstance(item, Definition)}
        if len(names) == 1 and isinstance(items[0], Definition):
            # "x = 1 or x = 2" and "x = 1, 2" list the values of one unknown.
            items = tuple(item.value if isinstance(item, Definition) else item for item in items)
        if len(items) == 1:
            return items[0]
        return Group(source, items, "")

    def _sets(self, lo: int, hi: int) -> Value | None:
        """Regions under set operations: an intersection binds before a union, and that before a difference."""
        for words in (_DIFFERENCE, _UNION, _INTERSECTION):
            joints = self._joints(lo, hi, words)
            if joints:
                bounds = [lo, *(k for at in joints for k in (at, at + 1)), hi]
                items = self._items(list(zip(bounds[::2], bounds[1::2], strict=True)))
                source = self.source(lo, hi)
                return (
                    union(source, items) if words is _UNION else reduced(source, items, words is _DIFFERENCE)
                )
        return None

    def _joints(self, lo: int, hi: int, words: frozenset[str]) -> list[int]:
        """Where one of the words stands between two sets, outside brackets."""
        joints: list[int] = []
        at = lo
        while at < hi:
            if (
                self._tokens[at].text in words
                and lo < at < hi - 1
                and self._tokens[at - 1].kind == "close"
                and self._tokens[at + 1].kind in ("open", "command")
            ):
                joints.append(at)
            at = self._pairs.get(at, at) + 1
        return joints

    def _relation(self, lo: int, hi: int) -> Value | None:
        ranges, ops = self._split(lo, hi, _RELATIONS)
        return relation_value(self, ranges, ops, self.source(lo, hi)) if ops else None

    def _ratio(self, lo: int, hi: int) -> Value | None:
        ranges, found = self._split(lo, hi, frozenset({":"}))
        return Ratio(self.source(lo, hi), tuple(self.scalar(*r) for r in ranges)) if found else None

    def _named(self, lo: int, hi: int) -> Value | None:
        """The empty set, the real numbers, or a matrix."""
        token, source = self._tokens[lo], self.source(lo, hi)
        if token.kind != "command":
            return None
        if token.text == "emptyset" and hi - lo == 1:
            return Region(source, ())
        if token.text == "mathbb" and [t.text for t in self._tokens[lo + 1 : hi]] == ["{", "R", "}"]:
            return Region(source, EVERYTHING)
        if token.text == "begin" and hi - lo > 8 and self._tokens[lo + 2].text in _MATRICES:
            return self._matrix(lo, hi)
        return None

    def _matrix(self, lo: int, hi: int) -> Value:
        start, end = lo + 4, hi - 4
        if [t.text for t in self._tokens[end:hi]] != [
            "end",
            *(t.text for t in self._tokens[lo + 1 : lo + 4]),
        ]:
            raise Unparsable("a matrix with no end")
        if self._tokens[lo + 2].text == "array" and start in self._pairs:
            start = self._pairs[start] + 1
        lines, _ = self._split(start, end, frozenset({"\\\\"}))
        rows = tuple(
            self._items(self._split(*line, frozenset({"&"}))[0]) for line in lines if line[0] < line[1]
        )
        if not rows or len({len(row) for row in rows}) != 1:
            raise Unparsable("rows of different lengths")
        return Matrix(self.source(lo, hi), rows)

    def _quantity(self, lo: int, hi: int) -> Value | None:
        """An amount with a currency sign before it or words after it."""
        tokens = self._tokens
        at = lo + (tokens[lo].text == "-")
        if at >= hi or tokens[at].kind != "currency":
            return self._with_words(lo, hi, [])
        sign, start = tokens[lo].text == "-", at + 1
        if not sign and start < hi and tokens[start].text == "-":
            sign, start = True, start + 1
        before = [units.CURRENCY[tokens[at].text]]
        found = self._amount(start, hi, hi, before) or self._with_words(start, hi, before)
        if not isinstance(found, Quantity):
            raise Unparsable("money without an amount")
        amount = found.amount
        if sign:
            amount = to_scalar(tree.negate(amount.expr), amount.source, amount.digits)
        return Quantity(self.source(lo, hi), amount, found.unit)

    def _with_words(self, lo: int, hi: int, before: list[str]) -> Quantity | Percent | None:
        for at in range(max(lo + 1, hi - 2 * units.MAX_WORDS), hi):
            token = self._tokens[at]
            begins = token.kind in ("word", "currency") or (token.kind == "op" and token.text in ("%", "°"))
            if begins and token.text not in SPECIAL_WORDS:
                found = self._amount(lo, at, hi, before)
                if found is not None:
                    return found
        return None

    def _amount(self, lo: int, cut: int, hi: int, before: list[str]) -> Quantity | Percent | None:
        """Tokens lo to cut as an amount and the rest as its unit; None where they are not."""
        words = _unit_words(self._tokens[cut:hi])
        if words is None or (
            cut < hi and not before and not _names_unit(words, spaced=self._tokens[cut].spaced)
        ):
            return None
        try:
            amount = self.scalar(lo, cut)
        except Unparsable:
            return None
        source = self.source(lo, hi)
        symbolic = self._symbolic(lo, hi)
        if words[:1] == ["°"] and symbolic is not None:
            return None  # sin 30° is a number, not a quantity of degrees
        if words and words[0] in ("%", "percent", "percentage"):
            return None if before or units.combine(words) is None else Percent(source, amount)
        factor: Node = tree.ONE
        while words and isinstance(words[0], str) and (scale := units.SCALES.get(words[0].lower())):
            factor, words = tree.multiply(factor, Num(Fraction(scale))), words[1:]
        if words and words[0] in _RADIANS:
            factor, words = tree.divide(Num(Fraction(180)), Const("pi")), ["degree"]
        unit = units.combine([*before, *words]) if before or words else units.NOUN
        if unit is None:
            return None
        return Quantity(
            source,
            to_scalar(tree.multiply(factor, amount.expr), amount.source, amount.digits),
            unit,
            symbolic,
        )

    def _symbolic(self, lo: int, hi: int) -> Expression | None:
        try:
            reading = self.scalar(lo, hi)
        except Unparsable:
            return None
        return reading if isinstance(reading, Expression) else None

    def _signs(self, lo: int, hi: int) -> Value:
        """A scalar, or the two that a plus-minus stands for."""
        if not any(t.text in ("+-", "-+") for t in self._tokens[lo:hi]):
            return self.scalar(lo, hi)
        source, digits = self.source(lo, hi), self._digits(lo, hi)
        both = [to_scalar(self._parsers[s].parse(lo, hi), f"{source} ({s:+d})", digits) for s in (1, -1)]
        return Group(source, tuple(both), "")


def _ends(items: Sequence[Value]) -> list[Node]:
    return [n for item in items if isinstance(item, Expression) for n in tree.nodes(item.expr)]


def _unit_words(tokens: Sequence[Token]) -> list[str | int] | None:
    """The tokens of a unit as `units.combine` takes them; None where one cannot be part of a unit."""
    words: list[str | int] = []
    for token in tokens:
        if token.kind == "currency":
            words.append(units.CURRENCY[token.text])
        elif token.kind == "word":
            if words and words[-1] == "°" and token.text in ("C", "F"):
                words[-1] = "°" + token.text
            else:
                words.append(token.text)
        elif token.whole and words and words[-1] == "^":
            words.append(int(token.value))
        elif token.text in ("/", "^", "°", "%"):
            words.append(token.text)
        elif token.text not in ("{", "}", "*"):
            return None
    return words


def _names_unit(words: list[str | int], *, spaced: bool) -> bool:
    """Whether the words after a number are a unit or a noun rather than symbols."""
    first = words[0] if words else None
    if not isinstance(first, str):
        return False
    lower = first.lower()
    if first == "%" or lower in ("percent", "percentage", *units.SCALES) or first in _RADIANS:
        return True
    return (
        units.known(first) is not None or (spaced and len(first) > 2) or (lower in ("square", "cubic", "sq"))
    )
