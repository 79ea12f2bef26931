"""Candidates with a verifier's scores attached."""

from __future__ import annotations

from collections.abc import Sequence

from stratagem.core.protocols import Verifier
from stratagem.core.run import Run
from stratagem.core.task import Candidate, Task


async def judge(run: Run, verifier: Verifier, task: Task, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Copies of the candidates with ``scores[verifier.kind]`` set, where the verifier did not abstain."""
    verdicts = await run.verify(verifier, task, candidates)
    return [
        candidate if verdict.score is None else candidate.scored(**{verifier.kind: verdict.score})
        for candidate, verdict in zip(candidates, verdicts, strict=True)
    ]
