"""The two families of components that a user composes: strategies and verifiers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stratagem.core.component import Component
from stratagem.core.errors import VerifierError
from stratagem.core.task import Answer, Candidate, Task

if TYPE_CHECKING:
    from stratagem.core.errors import StratagemError
    from stratagem.core.run import Run


class Strategy(Component):
    """An inference-time algorithm: from a task to an answer, meeting the world only through its run."""

    family: ClassVar[str] = "strategy"
    group: ClassVar[str] = "stratagem.strategies"

    @abstractmethod
    async def __call__(self, task: Task, run: Run) -> Answer:
        """Answer ``task``. Proposes its best so far to ``run``, so that it can be stopped at any time."""

    async def check(self, run: Run) -> None:
        """See, before anything is spent, that the models of ``run`` can do what its verifiers will ask.

        Raises what :meth:`Verifier.check` does.
        """
        for name in type(self).model_fields:
            if isinstance(part := getattr(self, name), Verifier):
                await part.check(run)


class Spreading(Strategy):
    """A strategy that answers many tasks at once and decides how much each of them gets."""

    @abstractmethod
    async def spread(self, tasks: Sequence[Task], runs: Sequence[Run]) -> dict[int, StratagemError]:
        """Answer ``tasks``, each in its own run, whose ledgers share a budget: propose to each its best so far.

        Returns what kept which task from more than it got, by index. It raises what concerns all of them.
        """


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of one candidate: a score in [0, 1], or ``None`` to abstain."""

    score: float | None
    reason: str = ""


def checked_verdicts(verifier: Verifier, verdicts: Sequence[Verdict], candidates: int) -> None:
    """Raises VerifierError: it gave too many or too few, or a score outside [0, 1]."""
    if len(verdicts) != candidates:
        raise VerifierError(
            f"Verifier {verifier.kind!r} gave {len(verdicts)} verdicts on {candidates} candidates."
        )
    for verdict in verdicts:
        if verdict.score is not None and not 0.0 <= verdict.score <= 1.0:
            raise VerifierError(
                f"Verifier {verifier.kind!r} gave the score {verdict.score}.",
                remedy="A score lies in [0, 1]; None abstains.",
            )


class Verifier(Component):
    """Says how good candidates are, all at once (listwise), each with a score in [0, 1] or an abstention.

    ``a & b`` is the least of the scores (all must hold), ``a | b`` the greatest, and
    ``0.3 * a + 0.7 * b`` their weighted mean; abstentions are left out of each.
    """

    family: ClassVar[str] = "verifier"
    group: ClassVar[str] = "stratagem.verifiers"

    @property
    def pointwise(self) -> bool:
        """Whether the verdict on a candidate does not depend on the others, so that it may be had early."""
        return True

    @abstractmethod
    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        """One verdict per candidate, in order."""

    async def check(self, run: Run) -> None:
        """See, before anything is spent, that the models of ``run`` can do what this will ask of them.

        Raises:
            UnsupportedError: one cannot.
            ConfigurationError: one that it needs is not there.
        """

    def newest(self) -> Verifier:
        """The verifier to ask about an answer that has grown by a step, where the scores of the steps before are
        kept: one that judges step by step asks about the last alone; others judge the answer so far as ever."""
        return self

    def equivalent(self, a: str, b: str) -> bool:
        """Whether two extracted answers count as the same answer. May be CPU-bound: call it in a thread."""
        return a.strip() == b.strip()

    def __and__(self, other: Verifier) -> Verifier:
        return Verifier.load({"kind": "all", "parts": [self, other]})

    def __or__(self, other: Verifier) -> Verifier:
        return Verifier.load({"kind": "any", "parts": [self, other]})

    def __mul__(self, weight: float) -> Verifier:
        return Verifier.load({"kind": "weighted", "parts": [self], "weights": [weight]})

    __rmul__ = __mul__

    def __add__(self, other: Verifier) -> Verifier:
        return (self * 1.0) + (other * 1.0)
