"""Strings that break evaluators: none raises, none runs, all of them together end within bounds."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from stratagem.verifiers._math import equal, parse
from stratagem.verifiers._math.compare import WORK_LIMIT
from stratagem.verifiers._math.values import Text

POWERS = [
    "9**9**9", "9^9^9^9^9^9^9", "10**10**10", "10^{10^{10^{10}}}", "2^(2^(2^100))", "(9^99999)^99999",
    "x^(9^9^9)", "(x+y+z)^99999", "(1+x)^(10^9)", "(((x+1)^64)^64)^64", "9!!!!!!!!", "99999!", "(10^6)!",
    "1000000000000!", "((5!)!)!", "\\binom{10^9}{5*10^8}", "\\binom{100000}{50000}", "1e999999999", "1e400",
    "1e401", "1e-400", "0.1^{99999999}", "e^{e^{e^{e^{e}}}}", "\\exp(\\exp(\\exp(\\exp(9))))",
    "\\sin(10^{10^{10}})", "\\tan(10^{500})", "\\ln(10^{10^{10}})", "\\sqrt[10^{99}]{2}", "2^{-10^{30}}",
    "2^{0.5^{10^{20}}}", "i^{i^{i^{i}}}", "(-1)^{10^{30}+0.5}", "\\lfloor 10^{300}\\pi \\rfloor",
    "(x+1/3)^{60}(y+1/7)^{60}(z+1/11)^{60}", "\\cos(\\cos(\\cos(\\cos(x^{x^{x^{x}}}))))",
    "x^{x^{x^{x^{x^{x}}}}}",
]  # fmt: skip
UNDEFINED = [
    "0/0", "1/0", "\\frac{1}{0}", "0^0", "0^{-1}", "\\ln 0", "\\infty-\\infty", "\\infty/\\infty",
    "0 \\cdot \\infty", "NaN", "nan", "inf", "-inf", "zoo", "oo", "-oo", "oo-oo", "\\tan(\\pi/2)", "1/(x-x)",
    "\\frac{x}{x-x}", "(-1)!", "\\sqrt[0]{5}", "\\log_1 5", "\\arcsin(\\infty)", "(0,\\frac{1}{0})",
    "(\\frac{0}{0},1)\\cup(2,3)", "[i, 2i]", "\\{0/0, 1\\}", "0:0", "1:0", "0/0%", "1/0 km",
]  # fmt: skip
CODE = [
    "__import__('os').system('touch /tmp/owned')", "lambda x: x", "eval('1+1')", "exec(\"import os\")",
    "().__class__.__bases__[0]", "{}.__class__", "open('/etc/passwd').read()", "sympify('x')",
    "Symbol('x').func", "x.subs(x, 1)", "[i for i in range(10**9)]", "(lambda f: f(f))(lambda f: f(f))",
    "${jndi:ldap://x}", "'; DROP TABLE answers; --", "\\input{/etc/passwd}", "\\write18{ls}",
    "\\def\\x{\\x\\x}\\x", "\\newcommand{\\a}{\\a\\a}\\a", "%(x)s %s %n", "{0.__class__}", "f(f(f(f(1))))",
    "import os; os",
]  # fmt: skip
LONG = [
    "x" * 10**5, "1" * 10**5, "1," * 10**5, "9" * 1999, "9." + "9" * 1990, "(" * 10**5, "(" * 900 + ")" * 900,
    "{" * 999, "}" * 999, "((((" * 100 + "x" + "))))" * 100, "\\frac{1}{" * 100 + "2" + "}" * 100,
    "\\frac{1}{1+" * 18 + "x" + "}" * 18, "\\sqrt{" * 300 + "}" * 300, "-" * 1999, "--" * 500 + "5",
    "+-" * 900 + "1", "!" * 1500, "5" + "!" * 1500, "^" * 1500, "2^" * 900 + "2", "x^{" * 300 + "}" * 300,
    "|" * 1999, "|x" * 900, "||||x||||", "\\" * 1999, "\\\\" * 900, "$" * 1999, "$$$" * 500, "\\boxed{" * 280,
    "\\boxed{" * 100 + "1" + "}" * 100, "\\text{" * 300 + "a" + "}" * 300, "\\left(" * 300,
    "\\begin{pmatrix}" * 100, "\\begin{pmatrix}" + "1&" * 500 + "1\\end{pmatrix}", "1+" * 290 + "1",
    "x+" * 290 + "x", "x*" * 290 + "x", "1/" * 290 + "1", "(x+1)" * 110, "(x+y)" * 110,
    "(x_1+y_1)(x_2+y_2)" * 25, "=" * 1999, "x=" * 290 + "x", "1<x<" * 100 + "2", "1:" * 290 + "1",
    "1,2;" * 140, "{1,2}" * 100, "(1,2)U" * 90 + "(3,4)", "1 km " * 200, "5 feet " * 90, "\\pm 1" * 100,
    "\\pm" * 200 + "1", "1 1/2 " * 100, "\u00bd" * 1000, "\u00b2" * 1000, "x\u00b2\u00b2\u00b2", "%" * 1999,
    "50" + "%" * 500, "\\sin" * 300 + "x", "\\sin\\cos" * 20 + "x", "\\log_" * 200 + "2", "sqrt(" * 300,
    "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 40, "the answer is 5 because " * 80,
    "1 000 " * 300, "0." + "0" * 490 + "1", "\\{" * 999, "\\{1,\\{2,\\{3,\\{4\\}\\}\\}\\}", ",,,,", ";", "or",
    "and and", "(1,2)\\setminus" * 90 + "(3,4)", "(0,999)\\setminus\\{" + "1,2," * 60 + "3\\}", "]1,2" * 300,
    "([0,1]\\cup[2,3])\\cap" * 30 + "(0,9)", "(0,9**9**9)\\cap" * 40 + "(0,e^{e^9})", "]," * 900,
]  # fmt: skip
UNICODE = [
    "", " ", "\n\n\t", "\x00", "1\x002", "\u200b5\u200b", "\u202e5", "\ufdfa" * 1900, "\U0001d7d9\U0001d7da",
    "\u0661\u0662\u0663", "\u2460", "\u2168", "\uff11\uff12", "\u00bc\u00be", "\u215f5", "\u2189", "5\u0301",
    "\U0001f600", "\ud800", "\udfff5", "x\u0332", "\u221e\u221e", "\u2205", "\u211d\u00b2",
    "\u03c0\u03c0\u03c0", "\u221a\u221a\u221a4", "\u221b8", "\u2264\u2265\u2260", "\u222b x dx",
    "\u2211_{i=1}^n i", "\u03b1\u03b2\u03b3", "1\u20443", "\u2212\u22125", "10\u2070\u2070\u2070", "\u02e3",
    "x\u2081\u2082", "\u65e5\u672c\u8a9e", "\u00b0", "90\u00b0\u00b0", "\u20ac", "\u20ac\u20ac5", "$", "\\$",
    "$ $", "5 $ 5 $",
]  # fmt: skip
SOUP = [
    "\\frac", "\\frac{", "\\frac{}{}", "\\frac12345", "\\sqrt", "\\sqrt[", "\\sqrt[]{}", "\\sqrt[3]", "^",
    "_", "x_", "x^", "x_{}", "x^{}", "x_{{1}}", "1_2_3", "12_2", "5_{99}", "\\left", "\\right)",
    "\\left.x\\right|", "[1,2", "1,2]", "]1,2[", "(1,2,", "{1,2]", "(1;2)", "[5]", "[]", "()", "{}", "\\{\\}",
    "\\{|\\}", "\\{x|\\}", "1 2 3", "1 2/3 4/5", "..", "...", ".", "1..2", "1.2.3", "1e", "1e+", "e1", "0x10",
    "1__2", "+", "-", "*", "/", "5 5", "5 -", "/ 5", "5 per", "5 / km", "5 km^", "5 km^99", "$", "$-",
    "$5$5$", "-$-5", "\\%", "%5", "5 % %", "x in", "x \\in", "\\in 5", "x = = 5", "= 5 =", "x < < 5", "<",
    "x<y<z<w", "5<x>3", "x!=5!=6", "\\cup", "\\cup (1,2)", "(1,2)\\cup", "\\begin{pmatrix}",
    "\\begin{pmatrix}1&2\\\\3\\end{pmatrix}", "\\begin{pmatrix}\\end{pmatrix}",
    "\\begin{array}{cc}1&2\\end{array}", "\\begin{foo}1\\end{foo}", "f(x", "f()", "f(x,y)=", "sin", "sin()",
    "sin^", "log_", "\\lfloor", "\\lfloor 5", "\\rfloor", "\\overline{3}", "0.\\overline{}", ".\\overline{3}",
    "\\text{}", "\\mathbb", "\\mathbb{Z}",
]  # fmt: skip
HOSTILE = [*POWERS, *UNDEFINED, *CODE, *LONG, *UNICODE, *SOUP]
PARTNERS = ["5", "x", "(1,2)", "\\{1,2\\}", "x=5", "5 km", "50%", "x+y<2", "x+y=2", "no"]


def test_there_are_enough() -> None:
    assert len(set(HOSTILE)) >= 200


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_equals_itself_and_never_raises(text: str) -> None:
    found = equal(text, text)
    assert found
    assert found.work <= WORK_LIMIT
    longer = equal(text, " " + text)
    assert longer.outcome != "different", parse(text)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_against_the_ordinary(text: str) -> None:
    for partner in PARTNERS:
        found = equal(text, partner)
        assert found.work <= WORK_LIMIT
        assert equal(partner, text) == found


@pytest.mark.parametrize("text", [*CODE, *LONG[:6]])
def test_what_is_no_mathematics_equals_no_number(text: str) -> None:
    assert not equal(text, "1")
    assert not equal(text, "0")


@pytest.mark.parametrize(
    ("a", "b"), [("9**9**9", "9**9**9+1"), ("10^{10^{10^{10}}}", "5!"), ("1/0", "2/0"), ("0/0", "1")]
)
def test_what_cannot_be_settled_is_unknown(a: str, b: str) -> None:
    assert equal(a, b).outcome == "unknown"


def test_sizes_past_the_limits_are_text() -> None:
    for text in ("9" * 600, "1+" * 700 + "1", "(" * 60 + "1" + ")" * 60, "1e500", "x" * 3000):
        assert isinstance(parse(text), Text)


def test_all_together_within_generous_bounds() -> None:
    """Every string against every hundredth other, in a process with bounded CPU time and memory."""
    program = textwrap.dedent(
        """
        import resource, runpy, sys
        resource.setrlimit(resource.RLIMIT_CPU, (400, 400))
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        from stratagem.verifiers._math import equal
        texts = runpy.run_path(sys.argv[1])["HOSTILE"]
        known = {"equal", "different", "unknown"}
        for k, text in enumerate(texts):
            for other in texts[k % 37 :: 37]:
                assert equal(text, other).outcome in known
        print("done")
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__))], capture_output=True, text=True, check=False
    )
    assert result.stdout.strip() == "done", result.stderr[-2000:]
