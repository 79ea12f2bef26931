"""Particle Gibbs: T filters in turn, each around one answer of the one before, a Markov chain that keeps p(x)
g(r(x))^(1/tau).

Iteration i runs a filter (see particle_filtering) in which slot 0 follows the reference x*_{i-1}, whatever is
resampled, and draws x*_i by the final weights. At step t the reference takes part with its first t steps and
*their* weight, also when it has ended long before (the published code compares its final weight there); a copy of
it is cut to t steps and goes on from there. Sources: Puri et al. 2025 (arXiv 2502.01618); Andrieu, Doucet,
Holenstein 2010 for the law.

Chosen: resampling is multinomial, for which the chain keeps its law although slot 0 stays. The answer comes from
the particles of all iterations, each iteration with the same weight, since all of them were paid for (``pool:
false``: of the last alone, as published).
"""

from __future__ import annotations

from typing import ClassVar

from stratagem.core.component import parameter
from stratagem.core.run import Run
from stratagem.core.task import Answer, Task
from stratagem.strategies._search.filtering import Filtering, Weighted, same
from stratagem.strategies._search.particles import Filter, Particle
from stratagem.strategies._search.steps import Partial


class ParticleGibbs(Filtering):
    """Particle filters in turn, each around an answer of the last. Cost: about n * iterations answers."""

    kind: ClassVar[str] = "particle_gibbs"

    n: int = parameter(8, "Particles, the reference included.", ge=2, search=(2, 32))
    iterations: int = parameter(4, "Filters in turn.", ge=1, search=(1, 8))
    pool: bool = parameter(True, "Answer from the particles of all iterations; false: of the last.")

    async def __call__(self, task: Task, run: Run) -> Answer:
        found: Weighted = []
        last: Weighted = []
        reference: Particle[Partial] | None = None

        async def interim(growing: Weighted) -> None:
            await self.interim(task, run, [*found, *growing])

        for _ in range(self.iterations):
            filter = Filter[Partial](
                self.n,
                run.rng.getrandbits(31),
                key=same,
                scheme="multinomial",
                ess=self.ess,
                tau=self.tau,
                reference=reference,
            )
            last = await self.carry_out(task, run, filter, interim)
            found += [(partial, w - filter.log_normalizer) for partial, w in last]
            reference = filter.draw(run.rng)
        return run.propose(await self.answered(task, run, found if self.pool else last, self.equality))
