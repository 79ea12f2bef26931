"""Every gold answer of the word-problem sets: equal to itself however it is written, to nothing near it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stratagem.core.extract import extract_answer
from stratagem.verifiers._math import equal


def _folder() -> Path:
    named = os.environ.get("STRATAGEM_DATA")
    beside = [Path(named)] if named else [p / "shared" / "data" for p in Path(__file__).resolve().parents]
    for folder in beside:
        if (folder / "math_word").is_dir():
            return folder / "math_word"
    pytest.skip("the data sets are not here")


def _rows(name: str) -> list[dict[str, Any]]:
    with (_folder() / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _golds() -> list[str]:
    gsm8k = [row["answer"].rsplit("####", 1)[1].strip() for row in _rows("gsm8k.jsonl")]
    svamp = [str(row["Answer"]) for row in _rows("svamp.jsonl")]
    assert len(gsm8k) == 200
    assert len(svamp) == 150
    return gsm8k + svamp


def _same(gold: str) -> Iterator[str]:
    """The gold answer as models write it."""
    plain = gold.replace(",", "")
    number = float(plain)
    whole = int(number) if number.is_integer() else number
    yield from (
        gold,
        plain,
        f"{number:.2f}",
        f"{whole:,}",
        f"{whole}",
        f"+{whole}" if whole >= 0 else f"{whole}",
    )
    yield from (
        f"${whole:,}$",
        f"\\boxed{{{whole}}}",
        f"\\text{{{whole}}}",
        f"\\(\\boxed{{{whole:,}}}\\)",
        f"**{whole}**",
    )
    yield from (
        f"{whole} apples",
        f"{whole} km",
        f"{whole}\\text{{ hours}}",
        f"x = {whole}",
        f"{whole}.",
        f"{whole}%",
    )
    yield from (f"\\frac{{{2 * whole}}}{{2}}", f"{whole}/1", f"{whole} \\times 1", f"{whole:,} minutes")
    if whole >= 0:
        yield from (f"${whole:,}", f"\\${whole}", f"${whole}.00", f"{whole} dollars", f"about {whole}")


def _different(gold: str) -> Iterator[str]:
    number = float(gold.replace(",", ""))
    whole = int(number) if number.is_integer() else number
    yield from (
        f"{whole + 1}",
        f"{whole - 1}",
        f"{whole}1",
        f"{whole}.5",
        f"{10 * whole + 3}",
        f"{whole + 1} apples",
    )
    yield from (
        f"{number + 0.01:.2f}",
        f"x = {whole + 2}",
        f"${whole + 3}",
        f"{whole}, {whole + 1}",
        "no answer",
    )
    if whole:
        yield from (f"{-whole}", f"{whole}/3", f"0.0{abs(whole)}", f"{whole} \\times 10")


def test_every_gold_equals_its_variations() -> None:
    wrong = [(gold, other) for gold in _golds() for other in _same(gold) if not equal(gold, other)]
    assert wrong == []


def test_every_gold_differs_from_what_is_near() -> None:
    wrong = [
        (gold, other, found)
        for gold in _golds()
        for other in _different(gold)
        if (found := equal(gold, other)).outcome != "different"
    ]
    assert wrong == []


def test_extracted_from_the_worked_answer() -> None:
    for row in _rows("gsm8k.jsonl"):
        gold = row["answer"].rsplit("####", 1)[1].strip()
        assert extract_answer(row["answer"]) == gold


def test_extracted_from_a_sentence() -> None:
    sentences = (
        "So {} are left.\nThe answer is {}.",
        "First 3 + 4 = 7.\nThe final answer is \\boxed{{{}}}.",
        "We compute.\n\n**Answer:** ${}",
        "Therefore there are 12 + 1, no, {} of them.",
        "Hence the answer is {} dollars. I hope this helps!",
        "answer: $\\frac{{{}}}{{1}}$",
    )
    wrong = []
    for gold in _golds():
        for sentence in sentences:
            text = sentence.format(gold, gold)
            found = extract_answer(text)
            if found is None or not equal(found, gold):
                wrong.append((text, found))
    assert wrong == []
