"""Candidates with a verifier's scores attached, and the best of them."""

from __future__ import annotations

from collections.abc import Sequence

from stratagem.core.protocols import Verifier
from stratagem.core.run import Run
from stratagem.core.task import Answer, Candidate, Task


async def judge(run: Run, verifier: Verifier, task: Task, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Copies of the candidates with ``scores[verifier.kind]`` set, where the verifier did not abstain."""
    verdicts = await run.verify(verifier, task, candidates)
    return [
        candidate if verdict.score is None else candidate.scored(**{verifier.kind: verdict.score})
        for candidate, verdict in zip(candidates, verdicts, strict=True)
    ]


def best(candidates: Sequence[Candidate], verifier: Verifier) -> Answer:
    """The answer with the greatest score, the first of equals; an abstention ranks below every score."""
    chosen = max(candidates, key=lambda c: c.scores.get(verifier.kind, -1.0))
    return Answer.of(chosen, tuple(candidates), chosen.scores.get(verifier.kind))
