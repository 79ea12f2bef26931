"""Laws of parse and equal on generated input."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import sympy  # type: ignore[import-untyped, unused-ignore]
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stratagem.verifiers._math import equal, parse
from stratagem.verifiers._math.compare import WORK_LIMIT
from stratagem.verifiers._math.tree import to_sympy
from stratagem.verifiers._math.values import Expression, Number

# Deadlines are absolute times, which a busy machine breaks: work is what is bounded.
settings.register_profile("math", deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("math")

PIECES = [
    *(
        "0",
        "1",
        "2",
        "7",
        "10",
        "0.5",
        "3.14",
        "1,000",
        "x",
        "y",
        "n",
        "e",
        "i",
        "\\pi ",
        "\\infty ",
        "\\theta ",
    ),
    *(
        "+",
        "-",
        "*",
        "/",
        "^",
        "!",
        "=",
        "<",
        "\\le ",
        ">",
        "\\neq ",
        "\\in ",
        ",",
        ";",
        ":",
        "%",
        "\\%",
        "$",
        "\\$",
    ),
    *(
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "\\{",
        "\\}",
        "|",
        "\\frac",
        "\\sqrt",
        "\\sin ",
        "\\log_",
        "\\ln ",
        "\\pm ",
    ),
    *(
        "\\cup ",
        "\\text{",
        "\\left(",
        "\\right)",
        "\\boxed{",
        " ",
        " km",
        " hours",
        " apples",
        " or ",
        " and ",
        ".",
    ),
    *(
        "\\begin{pmatrix}",
        "\\end{pmatrix}",
        "&",
        "\\\\",
        "°",
        "_",
        "\u00bd",
        "\u00b2",
        "\u2212",
        "\u221a",
        "**",
        "9^9^9",
    ),
]
soups = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
texts = st.one_of(st.text(max_size=60), soups)

numbers = st.one_of(
    st.integers(-999, 999).map(sympy.Integer),
    st.builds(sympy.Rational, st.integers(-99, 99), st.integers(1, 30)),
)
symbols = st.sampled_from([sympy.Symbol(name) for name in ("x", "y", "z", "alpha", "x_1")])


def _extend(inner: st.SearchStrategy[sympy.Expr]) -> st.SearchStrategy[sympy.Expr]:
    pairs = st.tuples(inner, inner)
    return st.one_of(
        pairs.map(lambda p: p[0] + p[1]),
        pairs.map(lambda p: p[0] * p[1]),
        pairs.map(lambda p: p[0] / (p[1] ** 2 + 1)),
        st.tuples(inner, st.integers(0, 3)).map(lambda p: p[0] ** p[1]),
    )


rational_functions = st.recursive(st.one_of(numbers, symbols), _extend, max_leaves=6)
functions = rational_functions.flatmap(
    lambda e: st.sampled_from(
        [sympy.sqrt(e**2 + 1), sympy.sin(e), sympy.exp(e / 50), sympy.log(e**2 + 2), abs(e)]
    )
)


@given(texts)
@settings(max_examples=600)
def test_any_text_parses_and_equals_itself(text: str) -> None:
    value = parse(text)
    assert parse(text) == value
    found = equal(value, text)
    assert found
    assert found.work <= WORK_LIMIT


@given(texts, texts)
@settings(max_examples=600)
def test_symmetric_and_bounded(a: str, b: str) -> None:
    found = equal(a, b)
    assert found.work <= WORK_LIMIT
    assert equal(b, a) == found


@given(rational_functions)
@settings(max_examples=150)
def test_round_trip_of_rational_functions(expr: sympy.Expr) -> None:
    latex, plain = sympy.latex(expr), str(expr)
    assert equal(latex, plain).outcome == "equal"
    # `expand` is another way to write the same function.
    assert equal(latex, str(sympy.expand(expr))).outcome == "equal"
    assert equal(latex, f"{plain} + 1").outcome == "different"


@given(functions)
@settings(max_examples=100)
def test_round_trip_of_functions(expr: sympy.Expr) -> None:
    assert equal(sympy.latex(expr), str(expr)).outcome in ("equal", "unknown")
    assert equal(sympy.latex(expr), f"2*({expr}) + 1").outcome in ("different", "unknown")
    if not expr.has(sympy.exp):  # beside e**134 an added 1 alone is beyond what is compared
        assert equal(sympy.latex(expr), f"{expr} + 1").outcome in ("different", "unknown")
    assert equal(sympy.latex(expr), f"{expr} + 1").outcome in ("different", "unknown")


@given(st.fractions(max_denominator=10**6), st.fractions(max_denominator=10**6))
def test_rationals_are_exact(a: Fraction, b: Fraction) -> None:
    left = f"\\frac{{{a.numerator}}}{{{a.denominator}}}"
    assert bool(equal(left, str(b))) == (a == b)
    assert bool(equal(left, f"{a + b} - {b}" if b >= 0 else f"{a + b} + {-b}"))


@given(st.decimals(-(10**9), 10**9, places=2))
def test_decimals_with_separators(number: Decimal) -> None:
    plain, grouped = f"{number:.2f}", f"{number:,.2f}"
    assert equal(plain, grouped)
    assert equal(grouped, f"\\text{{{grouped}}} dollars")
    assert equal(plain + "1", grouped).outcome == "different"


@given(
    st.lists(st.integers(-99, 99), min_size=2, max_size=6).flatmap(
        lambda xs: st.tuples(st.just(xs), st.permutations(xs))
    )
)
def test_order_counts_in_tuples_and_not_in_sets(lists: tuple[list[int], list[int]]) -> None:
    one, two = (", ".join(map(str, xs)) for xs in lists)
    assert equal(f"\\{{{one}\\}}", f"\\{{{two}\\}}")
    assert bool(equal(f"({one})", f"({two})")) == (lists[0] == lists[1])


@given(rational_functions)
@settings(max_examples=60)
def test_sympy_gets_the_same_expression(expr: sympy.Expr) -> None:
    value = parse(sympy.latex(expr))
    assert isinstance(value, Number | Expression)
    at = {s: sympy.Rational(k + 3, 7) for k, s in enumerate(sorted(expr.free_symbols, key=str))}
    mine = to_sympy(value.expr).subs({sympy.Symbol(str(s).replace("\\", "")): v for s, v in at.items()})
    assert sympy.Rational(mine.doit()) == expr.subs(list(at.items()))
