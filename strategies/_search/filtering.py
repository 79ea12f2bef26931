"""Filters over answers: the decisions of :mod:`particles`, carried out through a run, and the answer they give.

The target is p(x) g(r(x))^(1 / tau): r(x) is the aggregate of the rewards of all steps of x, g its weight. After
step t a particle's weight is multiplied by g(r_1..t) / g(r_1..t-1), so that a reward counts once however often it
has been looked at, and a particle that has ended keeps its weight. With ``aggregate: product`` and ``weights:
likelihood`` that is the state-space model prod_t p(x_t) r_t.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import replace
from typing import Literal

from stratagem.core.component import parameter
from stratagem.core.concurrency import task_group
from stratagem.core.errors import BudgetExhausted
from stratagem.core.protocols import Verifier
from stratagem.core.run import Run
from stratagem.core.seeds import derive
from stratagem.core.task import Answer, Task
from stratagem.strategies._search.particles import Filter, Order, Weights, log_weight
from stratagem.strategies._search.resampling import scaled
from stratagem.strategies._search.steps import Partial, Stepwise
from stratagem.strategies._voting import elect

Weighted = list[tuple[Partial, float]]  # answers with their log-weights


class Filtering(Stepwise):
    """What strategies that filter particles share."""

    n: int = parameter(16, "Particles.", ge=1, search=(2, 64))
    weights: Weights = parameter(
        "odds", "Weight of a reward r: r / (1 - r), r itself, or e^r.", search=("odds", "likelihood")
    )
    tau: float = parameter(1.0, "Weights are raised to 1 / tau.", gt=0, search=(0.5, 4.0))
    ess: float = parameter(
        0.5,
        "Resample where the effective sample size is below this share; 1: at every step.",
        gt=0,
        le=1,
        search=(0.25, 1.0),
    )
    max_steps: int = parameter(40, "Steps; the last one goes on to the end of the answer.", ge=1)
    answer: Literal["vote", "best", "sample"] = parameter(
        "vote",
        "The answer of most weight, the text of greatest reward, or a text drawn by weight.",
        search=("vote", "best"),
    )
    equality: Verifier | None = parameter(None, "Verifier whose equality groups answers; none: equal text.")

    async def carry_out(
        self, task: Task, run: Run, filter: Filter[Partial], propose: Callable[[Weighted], Awaitable[None]]
    ) -> Weighted:
        """Fill the filter, each order the moment it is given, and give the answers with their weights.

        A slot calls through a run of its own, so that seeds follow from slot and step, not from the clock.
        ``propose`` is told what there is at the first step and when a particle has ended. Where the budget ends, so
        do particles.

        Raises:
            BudgetExhausted: not even the first step was affordable.
        """
        runs = [run.child() for _ in filter.particles]
        judging = run.child()
        rated: dict[Hashable, asyncio.Task[Partial]] = {}  # equal answers are judged once

        async with task_group() as group:

            def start(orders: Sequence[Order[Partial]]) -> None:
                for order in orders:
                    group.create_task(extend(order))

            async def rate(partial: Partial) -> Partial:
                try:
                    return await self.judge(task, judging, partial)
                except BudgetExhausted:  # unjudged is better than none
                    return partial

            async def extend(order: Order[Partial]) -> None:
                particle, missing = order.particle, set(order.slots)
                begun = particle.states[-1] if particle.states else Partial()

                async def arrived(longer: Partial) -> None:
                    slot = order.slots[longer.index]
                    missing.discard(slot)
                    if not _begun(filter):  # should the time run out
                        await propose([(longer, 0.0)])
                    key = (longer.text, longer.ended, longer.rewards)
                    if key not in rated:
                        rated[key] = group.create_task(rate(longer))
                    judged = await rated[key]
                    longer = replace(longer, rewards=judged.rewards, judged=judged.judged)
                    grown = particle.grown(longer, self.potential(begun, longer), ended=longer.ended)
                    start(filter.tell(slot, grown))
                    if longer.ended:
                        await propose(_begun(filter))

                try:
                    await self.extend(task, runs[order.slots[0]], begun, len(order.slots), then=arrived)
                except BudgetExhausted:
                    if not particle.states:
                        raise
                for slot in sorted(missing):  # what cannot begin has no weight
                    cut = particle.grown(begun, 0.0 if particle.states else -math.inf, ended=True)
                    start(filter.tell(slot, cut))

            start(filter.begin())
        return _begun(filter)

    def potential(self, before: Partial, after: Partial) -> float:
        """By how much the newest step changes the log-weight."""
        return self.log_weight(after) - self.log_weight(before)

    def log_weight(self, partial: Partial) -> float:
        """log g(r) of an answer so far, 0 where nothing was said of it."""
        return log_weight(self.weights, self.score(partial)) if partial.rewards else 0.0

    async def interim(self, task: Task, run: Run, found: Weighted) -> None:
        """Propose what has been found so far."""
        run.propose(await self.answered(task, run, found, None))

    async def answered(self, task: Task, run: Run, found: Weighted, equality: Verifier | None) -> Answer:
        """The answer that weighted ones give."""
        candidates = [self.candidate(task, partial) for partial, _ in found]
        log_weights = [w for _, w in found]
        if self.answer == "vote":
            return await elect(candidates, log_weights, equality)
        if self.answer == "best":
            chosen = max(candidates, key=lambda c: c.scores.get(self.verifier.kind, -1.0))
        else:
            rng = random.Random(derive(run.seed, "answer"))
            [chosen] = rng.choices(candidates, scaled(log_weights)[0])
        return Answer.of(chosen, tuple(candidates), chosen.scores.get(self.verifier.kind))


def same(partial: Partial) -> tuple[object, ...]:
    """What must be equal for two partial answers to be continued in one request."""
    return partial.written, partial.rewards, partial.token_count


def _begun(filter: Filter[Partial]) -> Weighted:
    """The answers that have begun, or of these those that have ended if there are any."""
    begun = [
        (particle.states[-1], w)
        for particle, w in zip(filter.particles, filter.log_weights, strict=True)
        if particle.states and (particle.states[-1].steps or particle.states[-1].ended)  # one may be empty
    ]
    return [pair for pair in begun if pair[0].ended] or begun
