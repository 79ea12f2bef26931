"""Parallel tempering: chains of particle Gibbs on p(x) g(r(x))^(1/(tau T_k)), T_1 = 1 < T_2 < ..., that exchange
their references.

After an iteration, chains k and k + 1 exchange with probability

    alpha = min(1, exp((1/T_k - 1/T_k+1) (w(x_k+1) - w(x_k)))),    w = log g(r) / tau.

Source: Puri et al. 2025 (arXiv 2502.01618). The ratio printed there (version 1) has one expression above and below
the line and is always 1; this is the standard one (Earl and Deem 2005, physics/0508111).

Chosen: neighbours exchange by turns, the pairs (1, 2), (3, 4), ... after odd iterations and (2, 3), (4, 5), ...
after even ones (Syed et al. 2022, 1905.02939), so that a chain waits for one neighbour instead of for all; a chain
ends when nothing that it finds can reach the first any more; the answer comes from all particles of the first
chain.
"""

from __future__ import annotations

import asyncio
import random
from typing import ClassVar, Self

from pydantic import Field, model_validator

from stratagem.core.component import parameter
from stratagem.core.run import Run
from stratagem.core.seeds import derive
from stratagem.core.task import Answer, Task
from stratagem.strategies._search.filtering import Filtering, Weighted, same
from stratagem.strategies._search.particles import Filter, Particle, swap_probability
from stratagem.strategies._search.steps import Partial


class ParallelTempering(Filtering):
    """Particle Gibbs at several temperatures. Cost: about n * iterations answers for each temperature."""

    kind: ClassVar[str] = "parallel_tempering"

    n: int = parameter(8, "Particles of a chain, its reference included.", ge=2, search=(2, 32))
    iterations: int = parameter(4, "Filters in turn, of each chain.", ge=1, search=(2, 8))
    temperatures: tuple[float, ...] = Field(
        (1.0, 2.0, 4.0), description="Of the chains: 1 first, then rising."
    )

    @model_validator(mode="after")
    def _rise_from_1(self) -> Self:
        rising = all(a < b for a, b in zip(self.temperatures, self.temperatures[1:], strict=False))
        if self.temperatures[:1] != (1.0,) or not rising:
            raise ValueError("temperatures begin with 1 and rise, for example (1, 2, 4)")
        if self.iterations == 1 and len(self.temperatures) > 1:
            raise ValueError("chains exchange between iterations: give at least 2, or one temperature")
        return self

    async def __call__(self, task: Task, run: Run) -> Answer:
        found: Weighted = []
        needed = self.needed()
        runs = [run, *(run.child() for _ in self.temperatures[1:])]
        ends: dict[tuple[int, int], asyncio.Future[Particle[Partial]]] = {
            (k, i): asyncio.get_running_loop().create_future()
            for k in range(len(needed))
            for i in range(needed[k])
        }

        async def chain(k: int) -> None:
            reference: Particle[Partial] | None = None
            for i in range(needed[k]):
                filter = self._filter(runs[k], self.temperatures[k], reference)
                growing = await self.carry_out(task, runs[k], filter, cold if k == 0 else hot)
                if k == 0:
                    found.extend((partial, w - filter.log_normalizer) for partial, w in growing)
                reference = filter.draw(runs[k].rng)
                ends[k, i].set_result(reference)
                other = _neighbour(k, i)
                if i + 1 < needed[k] and (other, i) in ends:
                    theirs = await asyncio.shield(ends[other, i])  # a wait that is cancelled leaves it be
                    reference = self._exchanged(run, k, i, reference, theirs)

        async def cold(growing: Weighted) -> None:
            await self.interim(task, run, [*found, *growing])

        async def hot(growing: Weighted) -> None:
            if run.best is None:  # better than none
                await self.interim(task, run, growing)

        await run.map(chain, range(len(self.temperatures)))
        return run.propose(await self.answered(task, run, found, self.equality))

    def needed(self) -> list[int]:
        """How many iterations of each chain can bear on the answer."""
        needed = [self.iterations, *(0 for _ in self.temperatures[1:])]
        for i in reversed(range(self.iterations - 1)):
            for k in range(len(needed)):
                other = _neighbour(k, i)
                if 0 <= other < len(needed) and needed[other] > i + 1:
                    needed[k] = max(needed[k], i + 1)
        return needed

    def _filter(self, run: Run, temperature: float, reference: Particle[Partial] | None) -> Filter[Partial]:
        return Filter[Partial](
            self.n,
            run.rng.getrandbits(31),
            key=same,
            scheme="multinomial",
            ess=self.ess,
            tau=self.tau * temperature,
            reference=reference,
        )

    def _exchanged(
        self, run: Run, k: int, i: int, mine: Particle[Partial], theirs: Particle[Partial]
    ) -> Particle[Partial]:
        """The reference of chain ``k`` after iteration ``i``; both chains of a pair decide alike."""
        other = _neighbour(k, i)
        temperatures = (self.temperatures[k], self.temperatures[other])
        alpha = swap_probability(temperatures, (mine.log_weight / self.tau, theirs.log_weight / self.tau))
        accepted = random.Random(derive(run.seed, "exchange", i, min(k, other))).random() < alpha
        return theirs if accepted else mine


def _neighbour(k: int, i: int) -> int:
    """The chain that chain ``k`` may exchange with after iteration ``i``; it may not exist."""
    return k + 1 if (k + i) % 2 == 0 else k - 1
