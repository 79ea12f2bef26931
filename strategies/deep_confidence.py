"""DeepConf: argmax_a sum_i C_i 1[a_i = a] over the samples i whose confidence C_i is at least s.

A token's confidence is -1/k sum_j log p_j over the k likeliest tokens, a group's the mean over ``window`` tokens in
a row; C_i is the ``lowest`` group's, or the mean of the lowest 10 % of groups (``bottom``), of the last group
(``tail``) or of all tokens (``mean``). s is the (1 - keep)-quantile of C over the first ``warmup`` samples. Source:
Fu et al. 2025 (arXiv 2508.15260) and its code; keep 0.9 and 0.1 are its DeepConf-high and -low. With ``warmup`` >=
n it is the offline method: all are drawn, then filtered.

Online, a later sample is stopped in the engine at the first group below s (``lowest`` alone can tell before the
end), and all are once the leader has the share ``consensus`` of the weight. That is asked after each sample in the
order in which they were begun: those after the deciding one do not count, whatever has come of them, so the answer
depends on no order of arrival. The paper's groups have 2,048 tokens, for answers of tens of thousands; the default
fits 512.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from stratagem.core.backend import Chunk
from stratagem.core.component import parameter
from stratagem.core.concurrency import task_group
from stratagem.core.errors import BudgetExhausted
from stratagem.core.protocols import Verifier
from stratagem.core.run import Run
from stratagem.core.task import Answer, Candidate, Task
from stratagem.strategies._confidence import Gauge, Measure, logprobs_of, quantile
from stratagem.strategies._sampler import Sampler
from stratagem.strategies._voting import elect


class DeepConfidence(Sampler):
    """Vote of confident samples; the others are stopped on the way. Cost: at most n completions of one prompt."""

    kind: ClassVar[str] = "deep_confidence"

    n: int = parameter(32, "Most samples.", ge=1, search=(8, 128))
    warmup: int = parameter(16, "Samples that are always drawn whole and give the threshold.", ge=1)
    keep: float = parameter(
        0.9, "Share of the warm-up that is above the threshold.", gt=0.0, le=1.0, search=(0.1, 0.9)
    )
    measure: Measure = parameter(
        "lowest",
        "How the confidence of a sample follows from its tokens'.",
        search=("lowest", "bottom", "tail"),
    )
    window: int = parameter(32, "Tokens in a group.", ge=1)
    top: int = parameter(20, "Likeliest tokens that are looked at, or as many as the model gives.", ge=1)
    consensus: float = parameter(0.95, "Share of the weight at which it stops; above 1: never.", gt=0.5)
    parallel: int = parameter(16, "Most samples at a time after the warm-up.", ge=1)
    ahead: bool = parameter(
        False, "Begin them as the warm-up's end, before the threshold is known: less time, more tokens."
    )
    equality: Verifier | None = parameter(
        None, "Verifier whose equality groups answers; none: equal text (math: 1/2 = 0.5)."
    )

    async def __call__(self, task: Task, run: Run) -> Answer:
        top = await logprobs_of(run, self.kind, self.top)
        request = run.request(self.prompt(task), self.n, sampling=self.sampling(logprobs=top))
        warm = min(self.warmup, self.n)
        slots = asyncio.Semaphore(0)
        free = self.parallel  # slots to hand out
        threshold = -math.inf
        gauges = {i: Gauge(top, self.window) for i in range(warm, self.n)}
        drawn: dict[int, Candidate] = {}

        def hand_out(count: int) -> None:
            nonlocal free
            for _ in range(min(count, free)):
                slots.release()
                free -= 1

        async def warmed(index: int, candidate: Candidate) -> Candidate:
            gauge = Gauge(top, self.window)
            gauge.add(candidate.tokens)
            drawn[index] = candidate = self._rated(candidate, gauge)
            run.propose(await self._vote([drawn[i] for i in sorted(drawn)], None))
            if self.ahead:
                hand_out(1)
            return candidate

        def hopeless(index: int) -> bool:
            return self.measure == "lowest" and gauges[index].lowest < threshold

        async def draw(index: int) -> None:
            def read(_: int, chunk: Chunk) -> None:
                gauges[index].add(chunk.tokens)
                if hopeless(index):
                    late[index].cancel()

            async with slots:
                try:
                    [candidate] = await run.draw(request.sibling(index), task=task, piece=read)
                except BudgetExhausted:  # those that it does hold still vote
                    return
            drawn[index] = self._rated(candidate, gauges[index])

        async with task_group() as group:
            late = {i: group.create_task(draw(i)) for i in gauges}
            await run.draw(replace(request, n=warm), task=task, then=warmed)
            counted = [drawn[i] for i in sorted(drawn) if i < warm]
            threshold = quantile([c.scores[self.kind] for c in counted], 1 - self.keep)
            for index in filter(hopeless, late):
                late[index].cancel()
            answer = run.propose(await self._vote(counted, self.equality, threshold))
            for index, one in late.items():
                if (answer.confidence or 0.0) >= self.consensus:
                    break
                hand_out(self.parallel)
                await asyncio.wait([one])
                if index in drawn and drawn[index].scores[self.kind] >= threshold:
                    counted.append(drawn[index])
                    answer = run.propose(await self._vote(counted, self.equality, threshold))
            for one in late.values():
                one.cancel()
        return answer

    def _rated(self, candidate: Candidate, gauge: Gauge) -> Candidate:
        """With its confidence; without its tokens, which with their alternatives are large."""
        return replace(candidate.scored(**{self.kind: gauge.value(self.measure)}), tokens=())

    async def _vote(
        self, counted: Sequence[Candidate], equality: Verifier | None, threshold: float = -math.inf
    ) -> Answer:
        scores = [c.scores[self.kind] for c in counted]
        return await elect(
            counted, [math.log(s) if s > 0 and s >= threshold else -math.inf for s in scores], equality
        )
