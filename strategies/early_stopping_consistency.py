"""Early-stopping consistency: argmax_a v_a over k samples, k the first with P(p_1 > p_2 | v) >= confidence.

v_a counts the samples that answer a; p is the unknown distribution of answers, uniform before the first sample.
``beta`` compares the two answers with the most votes, ``dirichlet`` the first with all others and one not yet seen.
Sources: Aggarwal et al. 2023 (arXiv 2305.11860), Adaptive-Consistency, for the rule; Li et al. 2024 (2401.10480)
for the name. It also stops where the samples left of n could not change the winner.

Instead of one sample after the other, or windows of them, as many run as a decision will need at the least, given
the answers so far: nothing that is decoded is dropped. ``ahead`` trades tokens for time; those in flight when the
vote is decided are stopped in the engine. Only the first k samples count, whatever has come after them.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import ClassVar, Literal

from stratagem.core.component import parameter
from stratagem.core.concurrency import task_group
from stratagem.core.errors import BudgetExhausted
from stratagem.core.protocols import Verifier
from stratagem.core.run import Run
from stratagem.core.task import Answer, Candidate, Task
from stratagem.strategies._sampler import Sampler
from stratagem.strategies._stopping import Leads, beta, dirichlet, labels, least
from stratagem.strategies._voting import elect

_LEADS: dict[str, Leads] = {"beta": beta, "dirichlet": dirichlet}


class EarlyStoppingConsistency(Sampler):
    """Majority vote that stops when it is decided. Cost: at most n completions of one prompt."""

    kind: ClassVar[str] = "early_stopping_consistency"

    n: int = parameter(32, "Most samples.", ge=1, search=(4, 64))
    confidence: float = parameter(
        0.95, "Posterior probability that the leader is the likeliest.", gt=0.5, lt=1.0, search=(0.8, 0.99)
    )
    posterior: Literal["beta", "dirichlet"] = parameter(
        "beta", "The leader against the next, or against all.", search=("beta", "dirichlet")
    )
    ahead: int = parameter(0, "Samples to run beyond those that are certainly needed.", ge=0)
    equality: Verifier | None = parameter(
        None, "Verifier whose equality groups answers; none: equal text (math: 1/2 = 0.5)."
    )

    async def __call__(self, task: Task, run: Run) -> Answer:
        request = run.request(self.prompt(task), self.n, sampling=self.sampling())
        drawn: dict[int, Candidate] = {}
        drawing: list[asyncio.Task[None]] = []
        refused: list[BudgetExhausted | None] = []
        changed = asyncio.Event()

        async def draw(start: int, count: int) -> None:
            async def count_in(index: int, candidate: Candidate) -> Candidate:
                drawn[start + index] = candidate
                seen = [drawn[i] for i in sorted(drawn)]
                run.propose(await elect(seen, [0.0] * len(seen), None))  # equal text: cheap, as an interim
                changed.set()
                return candidate

            try:
                part = await run.draw(replace(request.sibling(start), n=count), task=task, then=count_in)
                refused.extend([None] * (count - len(part)))  # as many as the budget did not hold
            except BudgetExhausted as error:
                refused.append(error)
            changed.set()

        async with task_group() as group:
            begun = 0
            while True:
                changed.clear()
                known = {i: c.answer for i, c in drawn.items()}
                needed = await self._needed(known)
                if known.keys() >= set(range(needed)):
                    break
                more = min(self.n, needed + self.ahead) - begun
                if more > 0 and not refused:
                    drawing.append(group.create_task(draw(begun, more)))
                    begun += more
                elif refused and all(one.done() for one in drawing):
                    needed = self.n
                    break
                await changed.wait()
            for late in drawing:
                late.cancel()
        counted = [drawn[i] for i in sorted(drawn) if i < needed]
        if not counted and refused[0] is not None:
            raise refused[0]
        # The classes by which it was decided, also of an equality that is not transitive.
        label = await self._labels({i: c.answer for i, c in enumerate(counted)})
        heads = sorted({head for head in label.values() if head is not None})
        groups = [[i for i, each in label.items() if each == head] for head in heads]
        return run.propose(await elect(counted, [0.0] * len(counted), self.equality, groups))

    async def _labels(self, known: dict[int, str | None]) -> dict[int, int | None]:
        if self.equality is None:
            return labels(known, None)
        return await asyncio.to_thread(labels, known, self.equality.equivalent)

    async def _needed(self, known: dict[int, str | None]) -> int:
        """How many samples, in order, decide the vote at the least."""
        return least(await self._labels(known), self.n, _LEADS[self.posterior], self.confidence)
