"""Recursive descent from tokens to one expression tree. Linear in the tokens, depth bounded.

Conventions where notation is ambiguous: letters run together are a product (`xy`) up to three of them,
`e` and `i` are Euler's number and the imaginary unit, `log` is natural unless it has a base, `lg` is decimal,
`1/2x` is (1/2)x, `1 1/2` and `1\\frac12` are mixed numbers, `sin^-1` is the inverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Final

from stratagem.verifiers._math import tree
from stratagem.verifiers._math.lexer import Token
from stratagem.verifiers._math.notation import Unparsable
from stratagem.verifiers._math.numeric import FUNCTIONS
from stratagem.verifiers._math.tree import Const, Node, Num, Op, Sym

MAX_DEPTH: Final = 40

_FUNCTION: Final = {
    **{name: name for name in FUNCTIONS},
    **{name: name for name in ("abs", "floor", "ceil")},
    **{"arcsin": "asin", "arccos": "acos", "arctan": "atan", "tg": "tan"},
    **{"log": "ln", "Abs": "abs", "ceiling": "ceil"},
}
_INVERSE: Final = {name: f"a{name}" for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")}
_CONSTANT: Final = {
    **{name: Const("pi") for name in ("pi", "Pi")},
    **{name: Const("oo") for name in ("oo", "infty", "infinity", "inf", "Infinity")},
}
_GREEK: Final = frozenset(
    (
        *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda"),
        *("mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "ell"),
        *("Gamma", "Delta", "Theta", "Lambda", "Xi", "Sigma", "Phi", "Psi", "Omega"),
    )
)
_CLOSING: Final = {"(": (")", "]"), "[": ("]", ")"), "{": ("}",), "\\{": ("\\}",)}
SPECIAL_WORDS: Final = frozenset({*_FUNCTION, *_CONSTANT, *_GREEK, "sqrt", "cbrt", "lg"})
"""Runs of letters that are mathematics and never a noun."""
_ENGLISH: Final = frozenset(
    (
        *("or", "and", "is", "no", "of", "to", "per", "the", "for", "if", "in", "not", "yes", "are", "all"),
        *("an", "at", "on", "by", "we", "he", "she", "it", "its", "as", "so", "do", "go", "up", "am", "pm"),
    )
)
"""Short words that are not products of letters."""


def is_product(word: str) -> bool:
    """Whether a run of letters may be a product of symbols, as in 2xy."""
    return len(word) <= 3 and word.isascii() and word.lower() not in _ENGLISH


def is_prose(word: str) -> bool:
    """Whether a run of letters standing without any sign is a word: it is long, English or has a vowel."""
    return len(word) > 1 and (not is_product(word) or any(letter in "aeiouAEIOU" for letter in word))


def match_brackets(tokens: Sequence[Token]) -> dict[int, int]:
    """Each opening bracket's closing one; ( and [ may close each other, as in (a, b]. Raises Unparsable."""
    pairs: dict[int, int] = {}
    stack: list[int] = []
    for at, token in enumerate(tokens):
        if token.kind == "open":
            stack.append(at)
            if len(stack) > MAX_DEPTH:
                raise Unparsable("too deep")
        elif token.kind == "close":
            if not stack or token.text not in _CLOSING[tokens[stack[-1]].text]:
                raise Unparsable("unbalanced brackets")
            pairs[stack.pop()] = at
    if stack:
        raise Unparsable("unbalanced brackets")
    return pairs


class ExpressionParser:
    """Parses ranges of one token list. `sign`: which sign a plus-minus stands for (1 or -1)."""

    def __init__(self, tokens: Sequence[Token], pairs: dict[int, int], sign: int = 1) -> None:
        self._tokens = tokens
        self._pairs = pairs
        self._sign = sign
        self._at = 0
        self._end = 0
        self._depth = 0
        self._radians = False

    def parse(self, lo: int, hi: int) -> Node:
        """The expression that is exactly tokens lo to hi (exclusive). Raises Unparsable."""
        outer = (self._at, self._end)
        self._at, self._end = lo, hi
        self._descend()
        node = self._sum()
        if self._at != hi:
            raise Unparsable("trailing tokens")
        self._depth -= 1
        self._at, self._end = outer
        return node

    def _descend(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Unparsable("too deep")

    def _peek(self, ahead: int = 0) -> Token | None:
        at = self._at + ahead
        return self._tokens[at] if at < self._end else None

    def _is(self, *texts: str, ahead: int = 0) -> bool:
        token = self._peek(ahead)
        return token is not None and token.kind in ("op", "command") and token.text in texts

    def _sum(self) -> Node:
        terms = [self._product()]
        while self._is("+", "-", "+-", "-+"):
            negative = self._signed(self._tokens[self._at].text)
            self._at += 1
            term = self._product()
            terms.append(tree.negate(term) if negative else term)
        return tree.add(*terms)

    def _signed(self, text: str) -> bool:
        return text == "-" or (text == "+-" and self._sign < 0) or (text == "-+" and self._sign > 0)

    def _product(self) -> Node:
        factors = [self._unary()]
        while True:
            if self._is("*", "/"):
                division = self._is("/")
                self._at += 1
                factor = self._unary()
                factors.append(tree.power(factor, tree.MINUS_ONE) if division else factor)
            elif self._starts_factor():
                factors.append(self._power())
            else:
                return tree.multiply(*factors)

    def _starts_factor(self) -> bool:
        """Whether a factor follows with no sign between; a number only after a bracket or "x "."""
        token = self._peek()
        if token is None:
            return False
        if token.kind == "number":
            before = self._tokens[self._at - 1]
            return before.kind == "close" or (token.spaced and before.kind == "word")
        if token.kind == "open":
            return token.text in ("(", "[", "{")
        if token.kind == "op":
            return token.text == "|"
        return token.kind in ("word", "command") and token.text not in ("rfloor", "rceil")

    def _unary(self) -> Node:
        negative = False
        while self._is("+", "-", "+-", "-+"):
            negative ^= self._signed(self._tokens[self._at].text)
            self._at += 1
        node = self._power()
        return tree.negate(node) if negative else node

    def _power(self) -> Node:
        self._descend()
        node = self._postfix(self._primary())
        if self._is("^"):
            self._at += 1
            node = tree.power(node, self._exponent())
            node = self._postfix(node)
        self._depth -= 1
        return node

    def _exponent(self) -> Node:
        negative = False
        while self._is("+", "-"):
            negative ^= self._is("-")
            self._at += 1
        node = self._power()
        return tree.negate(node) if negative else node

    def _postfix(self, node: Node) -> Node:
        count = 0
        while self._is("!", "°", "%"):
            count += 1
            if count > 4:
                raise Unparsable("too deep")
            if self._is("!"):
                node = Op("factorial", (node,))
            elif self._is("%"):
                node = tree.divide(node, Num(Fraction(100)))
            elif self._radians:
                node = tree.multiply(node, Const("pi"), Num(Fraction(1, 180)))
            else:
                raise Unparsable("degrees outside a function")
            self._at += 1
        return node

    def _primary(self) -> Node:
        token = self._peek()
        if token is None:
            raise Unparsable("an operand is missing")
        self._at += 1
        match token.kind:
            case "number":
                return self._number(token)
            case "open":
                return self._bracketed(self._at - 1)
            case "word":
                return self._word(token)
            case "command":
                return self._command(token)
            case "op" if token.text == "|":
                return self._absolute()
            case _:
                raise Unparsable(f"unexpected {token.text!r}")

    def _number(self, token: Token) -> Node:
        if self._is("_") and (base := self._peek(1)) is not None:
            return self._in_base(token, base)
        fraction = self._mixed_part() if token.whole else None
        return Num(token.value + (fraction or 0))

    def _mixed_part(self) -> Fraction | None:
        """The fraction of a mixed number, where one follows: a proper one, of plain digits."""
        top, bottom, length = None, None, 0
        if self._is("frac"):
            args = [self._peek(k) for k in range(1, 7)]
            digits = [t for t in args if t is not None and t.whole]
            texts = [t.text for t in args if t is not None]
            if texts[0:1] == ["{"] and texts[2:4] == ["}", "{"] and texts[5:6] == ["}"] and len(digits) >= 2:
                top, bottom, length = digits[0], digits[1], 7
            elif args[0] is not None and args[0].whole and len(args[0].text) == 2:
                self._at += 2
                first, second = int(args[0].text[0]), int(args[0].text[1])
                if 0 < first < second:
                    return Fraction(first, second)
                self._at -= 2
                return None
        else:
            one, slash, other = self._peek(), self._peek(1), self._peek(2)
            if one and one.whole and one.spaced and slash and slash.text == "/" and other and other.whole:
                top, bottom, length = one, other, 3
        if top is None or bottom is None or not 0 < top.value < bottom.value:
            return None
        self._at += length
        return top.value / bottom.value

    def _in_base(self, token: Token, base: Token) -> Node:
        """1011_2, 243_{5}: an integer written in a base from 2 to 10."""
        self._at += 2
        if base.text == "{" and self._pairs[self._at - 1] == self._at + 1:
            base = self._tokens[self._at]
            self._at += 2
        if not token.whole or not base.whole or not 2 <= base.value <= 10:
            raise Unparsable("not a number in a base")
        if any(int(digit) >= base.value for digit in token.text):
            raise Unparsable("not a number in this base")
        return Num(Fraction(int(token.text, int(base.value))))

    def _bracketed(self, opening: int) -> Node:
        token = self._tokens[opening]
        closing = self._pairs[opening]
        if closing >= self._end or token.text == "\\{":
            raise Unparsable("not a scalar")
        if token.text in ("(", "[") and self._tokens[closing].text != {"(": ")", "[": "]"}[token.text]:
            raise Unparsable("an interval, not a scalar")
        node = self.parse(opening + 1, closing)
        self._at = closing + 1
        return node

    def _absolute(self) -> Node:
        """|...|: up to the next bar outside brackets."""
        at = self._at
        while at < self._end and not (self._tokens[at].kind == "op" and self._tokens[at].text == "|"):
            at = self._pairs.get(at, at) + 1
        if at >= self._end:
            raise Unparsable("a lone bar")
        node = self.parse(self._at, at)
        self._at = at + 1
        return Op("abs", (node,))

    def _word(self, token: Token) -> Node:
        word = token.text
        if word in SPECIAL_WORDS:
            return self._named(word)
        if not is_product(word):
            raise Unparsable(f"the word {word!r}")
        letters = [self._letter(letter) for letter in word]
        if len(word) == 1 and isinstance(letters[0], Sym):
            letters[0] = Sym(word + self._subscript())
        if self._is("^") and len(letters) > 1:
            self._at += 1
            letters[-1] = tree.power(letters[-1], self._exponent())
        return tree.multiply(*letters)

    def _letter(self, letter: str) -> Node:
        return Const(letter) if letter in ("e", "i") else Sym(letter)

    def _subscript(self) -> str:
        if not self._is("_"):
            return ""
        self._at += 1
        opening = self._peek()
        inside = [opening]
        if opening is not None and opening.text == "{":
            closing = self._pairs[self._at]
            inside = list(self._tokens[self._at + 1 : closing])
            self._at = closing
        self._at += 1
        if not inside or any(t is None or t.kind not in ("number", "word") for t in inside):
            raise Unparsable("a subscript that is no name")
        return "_" + "".join(t.text for t in inside if t is not None)

    def _command(self, token: Token) -> Node:
        name = token.text
        if name in SPECIAL_WORDS:
            return self._named(name)
        if name == "frac":
            top, bottom = self._fraction_parts()
            return tree.divide(top, bottom)
        if name == "binom":
            return Op("binomial", self._fraction_parts())
        if name == "boxed":
            return self._argument()
        if name in ("lfloor", "lceil"):
            return self._floor(name)
        raise Unparsable(f"the command {name!r}")

    def _floor(self, name: str) -> Node:
        closing = "r" + name[1:]
        start, at = self._at, self._at
        while at < self._end and self._tokens[at].text != closing:
            at = self._pairs.get(at, at) + 1
        if at >= self._end:
            raise Unparsable("an open floor")
        node = self.parse(start, at)
        self._at = at + 1
        return Op(name[1:], (node,))

    def _named(self, name: str) -> Node:
        if name in _CONSTANT:
            return _CONSTANT[name]
        if name in _GREEK:
            return Sym(name + self._subscript())
        if name == "sqrt":
            index: Node | None = None
            opening = self._peek()
            if opening is not None and opening.text == "[":
                index = self._bracketed(self._at)
            argument = self._argument()
            return tree.power(argument, tree.HALF) if index is None else Op("root", (argument, index))
        if name == "cbrt":
            return Op("root", (self._argument(), Num(Fraction(3))))
        return self._call(name)

    def _call(self, name: str) -> Node:
        """A function's argument: in brackets, or the factors that follow up to a sign or another function."""
        base: Node | None = Num(Fraction(10)) if name == "lg" else None
        exponent: Node | None = None
        if name == "log" and self._is("_"):
            self._at += 1
            base = self._argument()
        if self._is("^"):
            self._at += 1
            exponent = self._exponent()
        function = _FUNCTION.get(name, "ln")
        if exponent == tree.MINUS_ONE and function in _INVERSE:
            function, exponent = _INVERSE[function], None
        outer, self._radians = self._radians, True
        argument = self._call_argument()
        self._radians = outer
        node: Node = Op(function, (argument,))
        if base is not None:
            node = tree.divide(node, Op("ln", (base,)))
        return node if exponent is None else tree.power(node, exponent)

    def _call_argument(self) -> Node:
        opening = self._peek()
        if opening is not None and opening.kind == "open" and opening.text in ("(", "[", "{"):
            return self._argument()
        self._descend()
        factors = [self._unary()]
        while self._starts_factor() and not self._next_is_function():
            factors.append(self._power())
        self._depth -= 1
        return tree.multiply(*factors)

    def _next_is_function(self) -> bool:
        token = self._peek()
        return token is not None and (token.text in _FUNCTION or token.kind == "open")

    def _argument(self) -> Node:
        """One LaTeX argument: a bracket, or the next operand."""
        token = self._peek()
        if token is None:
            raise Unparsable("an argument is missing")
        if token.kind == "open":
            self._at += 1
            return self._bracketed(self._at - 1)
        self._descend()
        node = self._primary()
        self._depth -= 1
        return node

    def _fraction_parts(self) -> tuple[Node, Node]:
        r"""The two arguments of \frac; without braces a number's digits are one argument each: \frac12."""
        token = self._peek()
        if token is not None and token.whole and len(token.text) > 1:
            if len(token.text) != 2:
                raise Unparsable("an unbraced fraction of more than two digits")
            self._at += 1
            return Num(Fraction(int(token.text[0]))), Num(Fraction(int(token.text[1])))
        return self._argument(), self._argument()
