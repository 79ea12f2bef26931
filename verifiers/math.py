"""Mathematical answers: LaTeX or plain, compared by value; and the arithmetic that a solution writes down.

With a reference r(y) = 1[answer(y) = reference]. Without one r(y) is the share of the equations written in y that
hold ("12 + 7 = 19"), which catches slips but not wrong operands; it abstains where y writes none.
No model text is evaluated, and the work on any text is bounded (see ``_math``).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import ClassVar

from stratagem.core.component import parameter
from stratagem.core.protocols import Verdict, Verifier
from stratagem.core.run import Run
from stratagem.core.task import Candidate, Task

# A chain of sides with at least one operation left of the first sign: "3 * 4 + 1 = 13", "$5 x 2 = $10". A point or
# comma that no digit follows ends a sentence or a clause.
_MONEY = "$€£¥₹"
_SIDE = rf"[-{_MONEY}(\d](?:[-+*/x×÷·^(){_MONEY}%\d ]|[.,](?=\d)){{0,80}}"  # noqa: RUF001
_EQUATION = re.compile(rf"({_SIDE})=\s*(-?[{_MONEY}]?-?\d[\d,]*(?:\.\d+)?%?)")
_OPERATION = re.compile(rf"[\d)%]\s*(?:\*\*|[-+*/x×÷·^])\s*[-{_MONEY}(\d]")  # noqa: RUF001
_PLAIN = str.maketrans({"x": "*", **dict.fromkeys(_MONEY)})  # money on both sides is plain arithmetic
MOST_EQUATIONS = 64  # looked at in one text: bounds the work on hostile ones


class Math(Verifier):
    """1 if the answer equals the reference as mathematics; without one, the share of right equations."""

    kind: ClassVar[str] = "math"

    reference: str | None = parameter(None, "The right answer, in LaTeX or plain notation.")
    tolerance: float | None = parameter(
        None, "Relative error allowed between numbers; none: exact, or as the written digits imply.", ge=0.0
    )

    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        return await asyncio.to_thread(lambda: [self._verdict(c) for c in candidates])

    def equivalent(self, a: str, b: str) -> bool:
        from stratagem.verifiers._math import equal

        return bool(equal(a, b, tolerance=self.tolerance))

    def _verdict(self, candidate: Candidate) -> Verdict:
        from stratagem.verifiers._math import equal

        if self.reference is None:
            return self._arithmetic(candidate.text)
        if candidate.answer is None:
            return Verdict(0.0, "no answer")
        outcome = equal(candidate.answer, self.reference, tolerance=self.tolerance)
        return Verdict(float(bool(outcome)), outcome.reason)

    def _arithmetic(self, text: str) -> Verdict:
        found = [m for m in _EQUATION.finditer(text) if _OPERATION.search(m[1])][:MOST_EQUATIONS]
        wrong = [
            m[0].strip() for m in found if not self._holds(m[1].translate(_PLAIN), m[2].translate(_PLAIN))
        ]
        if not found:
            return Verdict(None, "no equation is written")
        return Verdict(1 - len(wrong) / len(found), f"wrong: {'; '.join(wrong)}" if wrong else "")

    def _holds(self, left: str, right: str) -> bool:
        """Whether both sides are equal, or the right one is the left one rounded to the decimals written there."""
        from stratagem.verifiers._math import Number, parse

        if self.equivalent(left, right):
            return True
        exact, written = parse(left), parse(right)
        _, point, decimals = right.partition(".")
        if not point or not isinstance(exact, Number) or not isinstance(written, Number):
            return False
        return bool(abs(exact.value - written.value) * 2 * 10 ** len(decimals) <= 1)
