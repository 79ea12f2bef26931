"""Self-certainty: argmax_a sum_{i: a_i = a} (n + 1 - r_i)^power, r_i the rank of sample i by self-certainty.

Self-certainty is the divergence of the model's distribution from uniform, KL(U || p) = -1/V sum_j log(V p_j),
averaged over the tokens of a text. Source: Kang, Zhao, Song 2025 (arXiv 2502.18581). power = 0 is majority vote; a
large one takes the most certain sample, as the paper does where answers cannot be compared; 0.5 is the default of
its code.

Servers do not give the whole distribution: V here counts the ``top`` likeliest tokens, as DeepConf (2508.15260)
does. The constant log V changes no rank. Equals rank in the order in which they were drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from stratagem.core.component import parameter
from stratagem.core.protocols import Verifier
from stratagem.core.run import Run
from stratagem.core.task import Answer, Candidate, Task
from stratagem.strategies._confidence import logprobs_of, mean, token_confidence
from stratagem.strategies._sampler import Sampler
from stratagem.strategies._voting import elect


class SelfCertainty(Sampler):
    """Borda vote by how far the model's distributions are from uniform. Cost: n completions of one prompt."""

    kind: ClassVar[str] = "self_certainty"

    n: int = parameter(16, "Samples.", ge=1, search=(1, 64))
    power: float = parameter(
        0.5, "What rank counts: 0 nothing (majority), large everything.", ge=0.0, search=(0.0, 2.0)
    )
    top: int = parameter(20, "Likeliest tokens that are looked at, or as many as the model gives.", ge=2)
    equality: Verifier | None = parameter(
        None, "Verifier whose equality groups answers; none: equal text (math: 1/2 = 0.5)."
    )

    async def __call__(self, task: Task, run: Run) -> Answer:
        top = await logprobs_of(run, self.kind, self.top)
        seen: list[Candidate] = []

        async def weigh(candidate: Candidate) -> Candidate:
            # Its tokens with their alternatives are large, and nobody needs them any more.
            certainty = mean([token_confidence(token, top) for token in candidate.tokens])
            candidate = replace(candidate.scored(self_certainty=certainty), tokens=())
            seen.append(candidate)
            run.propose(await elect(seen, self._log_weights(seen), None))  # equal text: cheap, as an interim
            return candidate

        drawn = await run.sample(
            self.prompt(task), self.n, sampling=self.sampling(logprobs=top), task=task, then=weigh
        )
        return run.propose(await elect(drawn, self._log_weights(drawn), self.equality))

    def _log_weights(self, candidates: Sequence[Candidate]) -> list[float]:
        n = len(candidates)
        ranked = sorted(range(n), key=lambda i: -candidates[i].scores["self_certainty"])
        logs = {i: self.power * math.log(n - place) for place, i in enumerate(ranked)}
        return [logs[i] for i in range(n)]
