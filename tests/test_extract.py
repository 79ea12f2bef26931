"""The final answer of a text, in the forms that models and data sets write."""

from __future__ import annotations

import pytest

from stratagem.core.extract import extract_answer, last_boxed

CASES = [
    # boxes
    ("So \\boxed{42}.", "42"),
    ("\\boxed{1} then \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
    ("$\\boxed{\\{1,2\\}}$", "\\{1,2\\}"),
    ("\\boxed {7}", "7"),
    ("The answer is 3. \\boxed{4}", "4"),
    ("\\boxed{x^{2^{n}}} is it", "x^{2^{n}}"),
    ("\\boxed{broken. The answer is 5.", "5"),
    # GSM8K
    ("a\nb\n#### 65,960", "65,960"),
    ("#### 1\n#### 2", "2"),
    ("####-10", "-10"),
    ("#### $5.00", "5.00"),
    # phrases
    ("Ben has 12 + 7 = 19 apples.\nThe answer is 38.", "38"),
    ("The answer is 3.5 dollars. Thanks for asking about 7!", "3.5 dollars"),
    ("The answer is $\\frac{1}{2}$.", "\\frac{1}{2}"),
    ("**Answer:** 42", "42"),
    ("**Final Answer**: 42", "42"),
    ("Final answer: **x = 5**", "x = 5"),
    ("Answer: \\(2\\sqrt{2}\\)", "2\\sqrt{2}"),
    ("The answer is:\n\\[\n 5 \\]\n", "5"),
    ("Answer:\n42\n", "42"),
    ("the answer is $12.", "12"),
    ("The answer is \\$1,200.50.", "1,200.50"),
    ("the answer is 1. No: the answer is 2.", "2"),
    ("The answer to the question is 9.", "9"),
    ("The final answer is $x=3$, as shown.", "x=3"),
    ("ANSWER = -7", "-7"),
    ("The answer is yes.", "yes"),
    ("The answer is \u22125.", "\u22125"),
    # neither: the last formula or number
    ("She pays 3 + 4 = 7 euros.", "7"),
    ("It is 10 - 3", "3"),
    ("It drops to -3 degrees", "-3"),
    ("Total: $1,234.50!", "1,234.50"),
    ("We get $x^2 + 1$ at the end.", "x^2 + 1"),
    ("We get $x = 1$, so there are 5 of them.", "5"),
    ("it costs $5 or $6", "6"),
    ("about 50% of them", "50%"),
    ("so half: 1/2", "1/2"),
    ("he walked 1 1/2 miles", "1 1/2"),
    ("hence -\\frac{3}{4} remains", "-\\frac{3}{4}"),
    ("that is .5 of it", ".5"),
    ("", None),
    ("no idea", None),
    ("####", None),
    ("the answer is", None),
]


@pytest.mark.parametrize(("text", "answer"), CASES)
def test_extract(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


LETTERS = ["A", "B", "C", "D"]
CHOICES = [
    ("The answer is B.", LETTERS, "B"),
    ("The answer is (C).", LETTERS, "C"),
    ("\\boxed{D}", LETTERS, "D"),
    ("\\boxed{\\text{D}}", LETTERS, "D"),
    ("A train leaves. So (B) is right", LETTERS, "B"),
    ("A train leaves. I pick B.", LETTERS, "B"),
    ("(A) is wrong, (C) is right", LETTERS, "C"),
    ("The answer is B, not C.", LETTERS, "B"),
    ("Answer: **C**", LETTERS, "C"),
    ("D", LETTERS, "D"),
    ("c", ["A", "B"], None),
    ("A man and a dog", ["(A)", "(B)"], "(A)"),
    ("Option B fits", ["(A)", "(B)"], "(B)"),
    ("Yes, it does.", ["yes", "no"], "yes"),
    ("I know nothing: no", ["yes", "no"], "no"),
    ("He was not guilty.", ["guilty", "not guilty"], "not guilty"),
    ("It is 10.5, so 10", ["1", "10"], "10"),
    ("The answer is red wine", ["red", "red wine"], "red wine"),
    ("nothing here", ["yes", "no"], None),
    ("whatever", ["", "what"], None),
]


@pytest.mark.parametrize(("text", "choices", "answer"), CHOICES)
def test_extract_of_choices(text: str, choices: list[str], answer: str | None) -> None:
    assert extract_answer(text, choices=choices) == answer


def test_last_boxed_needs_balanced_braces() -> None:
    assert last_boxed("\\boxed{a{b}c}") == "a{b}c"
    assert last_boxed("\\boxed{a\\}b}") == "a\\}b"
    assert last_boxed("\\boxed{a") is None
    assert last_boxed("boxed{a}") is None


@pytest.mark.parametrize(
    "piece",
    ["\\boxed{", "the answer is ", "#### ", "$", "\\(", "1,", "{", "\\frac{", "A ", "-", "\\", "answer to "],
)
def test_long_repetition_is_no_burden(piece: str) -> None:
    # Quadratic work on these would be 10**9 steps and more; the suite's own time-out would end it.
    text = piece * (200_000 // len(piece))
    assert extract_answer(text) != ""
    assert extract_answer(text, choices=["A", "B"]) in (None, "A")
