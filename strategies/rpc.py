"""RPC: argmax_a sum_t p(t) over the distinct texts t that answer a, after pruning texts of low probability.

p(t) = p(t | x)^(1/|t|), the length-normalised probability that the authors' code uses. Perplexity consistency is
the sum: identical texts count once. Reasoning pruning fits a mixture of two Weibull distributions to the p of all
samples and drops those with P(high component | p) < 1/2 that are also below the mean. Source: Zhou et al. 2025
(arXiv 2502.00511, 2510.15444) and its code.

Chosen here: fewer than ``least`` samples, or samples of one p, are not pruned, since the fit means nothing there; a
tie goes to the answer seen first (the paper's evaluation shares the credit); texts without an answer cannot win but
lower the confidence, which is the winner's share of all that is left.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from stratagem.core.component import parameter
from stratagem.core.protocols import Verifier
from stratagem.core.run import Run
from stratagem.core.task import Answer, Candidate, Task
from stratagem.strategies._confidence import logprobs_of
from stratagem.strategies._sampler import Sampler
from stratagem.strategies._voting import elect
from stratagem.strategies._weibull import improbable


class RPC(Sampler):
    """Vote by the probability of distinct texts, improbable ones pruned. Cost: n completions of one prompt."""

    kind: ClassVar[str] = "rpc"

    n: int = parameter(64, "Samples.", ge=1, search=(8, 128))
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = parameter(
        1.0, "Sampling temperature; none: the model's own default.", search=(0.4, 1.3)
    )
    prune: bool = parameter(True, "Drop improbable samples; if not: perplexity consistency.")
    least: int = parameter(8, "Fewest samples that are pruned.", ge=2)
    equality: Verifier | None = parameter(
        None, "Verifier whose equality groups answers; none: equal text (math: 1/2 = 0.5)."
    )

    async def __call__(self, task: Task, run: Run) -> Answer:
        logprobs = await logprobs_of(run, self.kind, 0)
        seen: list[Candidate] = []

        async def count(candidate: Candidate) -> Candidate:
            seen.append(candidate)
            run.propose(await elect(seen, _log_weights(seen, set()), None))  # unpruned, as an interim
            return candidate

        drawn = await run.sample(
            self.prompt(task), self.n, sampling=self.sampling(logprobs=logprobs), task=task, then=count
        )
        gone: set[int] = set()
        if self.prune and len(drawn) >= self.least:
            gone = await asyncio.to_thread(improbable, [_probability(c) for c in drawn])
        drawn = [c.scored(rpc=0.0 if i in gone else _probability(c)) for i, c in enumerate(drawn)]
        return run.propose(await elect(drawn, _log_weights(drawn, gone), self.equality))


def _probability(candidate: Candidate) -> float:
    """The length-normalised probability of the text; 0 where the model gave no log-probabilities for it."""
    log = candidate.mean_logprob
    return 0.0 if log is None else math.exp(min(0.0, log))


def _log_weights(candidates: Sequence[Candidate], gone: set[int]) -> list[float]:
    """log p of the first sample of each distinct text; -inf of the others and of those that are gone."""
    weights: list[float] = []
    texts: set[str] = set()
    for i, candidate in enumerate(candidates):
        counts = i not in gone and candidate.text not in texts
        if i not in gone:  # another copy may survive: servers do not always give equal texts equal numbers
            texts.add(candidate.text)
        p = _probability(candidate)
        weights.append(math.log(p) if counts and p > 0 else -math.inf)
    return weights
