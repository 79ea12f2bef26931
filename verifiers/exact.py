"""Equality of answers as text: case, surrounding space and a closing full stop aside."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import ClassVar

from stratagem.core.component import parameter
from stratagem.core.protocols import Verdict, Verifier
from stratagem.core.run import Run
from stratagem.core.task import Candidate, Task


def normal(text: str) -> str:
    """Unicode-normalised (NFKC), case-folded, white space folded, without a closing full stop."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).removesuffix(".")


class Exact(Verifier):
    """1 if the extracted answer is the reference as text, else 0; abstains without a reference."""

    kind: ClassVar[str] = "exact"

    reference: str | None = parameter(None, "The right answer.")

    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        if self.reference is None:
            return [Verdict(None, "no reference")] * len(candidates)
        gold = self.reference
        return [Verdict(float(c.answer is not None and self.equivalent(c.answer, gold))) for c in candidates]

    def equivalent(self, a: str, b: str) -> bool:
        return normal(a) == normal(b)
