"""The algebra of verifiers: ``a & b`` (least score), ``a | b`` (greatest), ``0.3 * a + 0.7 * b`` (weighted mean).

Least and greatest are the conjunction and disjunction of Goedel's logic: associative, commutative, idempotent.
A part that abstains on a candidate is left out there; if all abstain, so does the whole.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

from pydantic import Field, model_validator

from stratagem.core.component import parameter
from stratagem.core.protocols import Verdict, Verifier
from stratagem.core.run import Run
from stratagem.core.task import Candidate, Task


class _Composite(Verifier):
    parts: tuple[Verifier, ...] = Field(min_length=1, description="The verifiers that are composed.")

    @property
    def pointwise(self) -> bool:
        return all(part.pointwise for part in self.parts)

    async def check(self, run: Run) -> None:
        for part in self.parts:
            await part.check(run)

    def newest(self) -> Verifier:
        return self.model_copy(update={"parts": tuple(part.newest() for part in self.parts)})

    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        async def asked(part: Verifier) -> list[Verdict]:
            return await run.verify(part, task, candidates)

        rows = await run.map(asked, self.parts)
        return [self._combined(verdicts) for verdicts in zip(*rows, strict=True)]

    def _combined(self, verdicts: Sequence[Verdict]) -> Verdict:
        spoken = [(i, v.score) for i, v in enumerate(verdicts) if v.score is not None]
        reason = "; ".join(v.reason for v in verdicts if v.reason)
        return Verdict(self._score(spoken), reason) if spoken else Verdict(None, reason)

    @abstractmethod
    def _score(self, spoken: Sequence[tuple[int, float]]) -> float:
        """One score from those of the parts that spoke, each with its part's index."""

    def equivalent(self, a: str, b: str) -> bool:
        return any(part.equivalent(a, b) for part in self.parts)


class All(_Composite):
    """The least of the parts' scores: all must hold. Written ``a & b``."""

    kind: ClassVar[str] = "all"

    def _score(self, spoken: Sequence[tuple[int, float]]) -> float:
        return min(score for _, score in spoken)

    def equivalent(self, a: str, b: str) -> bool:
        return all(part.equivalent(a, b) for part in self.parts)


class AnyOf(_Composite):
    """The greatest of the parts' scores: one must hold. Written ``a | b``."""

    kind: ClassVar[str] = "any"

    def _score(self, spoken: Sequence[tuple[int, float]]) -> float:
        return max(score for _, score in spoken)


class Weighted(_Composite):
    """The weighted mean of the parts' scores. Written ``0.3 * a + 0.7 * b``."""

    kind: ClassVar[str] = "weighted"

    weights: tuple[float, ...] = parameter((), "One positive weight per part.")

    @model_validator(mode="after")
    def _weights_match(self) -> Self:
        if len(self.weights) != len(self.parts):
            raise ValueError(f"{len(self.parts)} parts need as many weights, not {len(self.weights)}")
        if not all(w > 0 and math.isfinite(w) for w in self.weights):
            raise ValueError("weights are positive numbers")
        return self

    def _score(self, spoken: Sequence[tuple[int, float]]) -> float:
        total = math.fsum(self.weights[i] for i, _ in spoken)
        mean = math.fsum(self.weights[i] * score for i, score in spoken) / total
        return min(1.0, max(0.0, mean))  # rounding

    def __mul__(self, weight: float) -> Verifier:
        return Weighted(parts=self.parts, weights=tuple(w * weight for w in self.weights))

    __rmul__ = __mul__

    def __add__(self, other: Verifier) -> Verifier:
        more = other if isinstance(other, Weighted) else Weighted(parts=(other,), weights=(1.0,))
        return Weighted(parts=self.parts + more.parts, weights=self.weights + more.weights)
