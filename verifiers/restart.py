"""Self-evaluation: s(x, y) = P(no) / (P(no) + P(yes)) to "would you do better if you started over?".

Source: Manvi, Singh, Ermon 2024 (arXiv 2410.02725). It estimates the probability that a fresh sample of the same
model would be no better. The wording of the question and of its answers is ours: the paper's is not published.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from stratagem.core.component import parameter
from stratagem.core.prompts import RESTART_QUESTION
from stratagem.core.protocols import Verdict, Verifier
from stratagem.core.run import Run
from stratagem.core.task import Candidate, Task
from stratagem.verifiers._asking import checked, probability


class Restart(Verifier):
    """The model says in one token whether starting over would not do better; also of a partial answer."""

    kind: ClassVar[str] = "restart"

    question: str = parameter(RESTART_QUESTION, "Asked after the answer; no is good.")

    async def check(self, run: Run) -> None:
        """Raises UnsupportedError where the judge gives no log-probabilities."""
        await checked(run)

    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        async def judged(candidate: Candidate) -> Verdict:
            return Verdict(
                await probability(run, task, candidate, candidate.text, self.question, "no", "yes")
            )

        return await run.map(judged, candidates)
