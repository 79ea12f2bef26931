"""Weighted vote: argmax_a sum_i w_i 1[a_i = a] over n sampled chains of thought.

``by`` says what w_i is: ``probability`` p(y_i | x); ``normalized_probability`` p(y_i | x)^(1/|y_i|), the
length-normalised form; ``verifier`` the score of a verifier (a judge), as in weighted best-of-N.
Sources: Wang et al. 2022 (arXiv 2203.11171, table 1) for probabilities; Li et al. 2022 (2206.02336) for verifiers.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from stratagem.core.component import parameter
from stratagem.core.protocols import Verifier
from stratagem.core.run import Run
from stratagem.core.task import Answer, Candidate, Task
from stratagem.strategies._judging import judge
from stratagem.strategies._sampler import Sampler
from stratagem.strategies._voting import elect


class WeightedVote(Sampler):
    """Vote weighted by probability or by a judge. Cost: n completions, plus n judgements with a verifier."""

    kind: ClassVar[str] = "weighted_vote"

    n: int = parameter(16, "Samples.", ge=1, search=(1, 64))
    by: Literal["probability", "normalized_probability", "verifier"] = parameter(
        "normalized_probability", "Weight of a sample.", search=("probability", "normalized_probability")
    )
    verifier: Verifier | None = parameter(None, "Gives the weights when by = verifier.")
    equality: Verifier | None = parameter(None, "Verifier whose equality groups answers; none: equal text.")

    @model_validator(mode="after")
    def _has_weights(self) -> Self:
        if (self.by == "verifier") != (self.verifier is not None):
            raise ValueError("'by: verifier' and a 'verifier' go together: give both or neither")
        return self

    async def __call__(self, task: Task, run: Run) -> Answer:
        seen: list[Candidate] = []

        async def weigh(candidate: Candidate) -> Candidate:
            if run.best is None:
                run.propose(Answer.of(candidate))  # unjudged is better than none, should the time run out
            if self.verifier is not None and self.verifier.pointwise:
                [candidate] = await judge(run, self.verifier, task, [candidate])
            seen.append(candidate)
            run.propose(await elect(seen, [self._log_weight(c) for c in seen], None))
            return candidate

        logprobs = None if self.by == "verifier" else 0
        drawn = await run.sample(
            self.prompt(task), self.n, sampling=self.sampling(logprobs=logprobs), task=task, then=weigh
        )
        if self.verifier is not None and not self.verifier.pointwise:
            drawn = await judge(run, self.verifier, task, drawn)
        return run.propose(await elect(drawn, [self._log_weight(c) for c in drawn], self.equality))

    def _log_weight(self, candidate: Candidate) -> float:
        if self.verifier is not None:
            score = candidate.scores.get(self.verifier.kind, 0.0)
            return math.log(score) if score > 0 else -math.inf
        weight = candidate.logprob if self.by == "probability" else candidate.mean_logprob
        return -math.inf if weight is None else weight
