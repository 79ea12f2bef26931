"""Particle filtering: sample from p(x) g(r(x))^(1/tau) instead of searching for the greatest reward.

N partial answers grow by a step each; W_i <- W_i (g(r_1..t) / g(r_1..t-1))^(1/tau); where ESS = (sum W)^2 / sum W^2
falls below a share of N, N particles are drawn by weight. Sources: Puri et al. 2025 (arXiv 2502.01618), whose code
weighs by the odds g(r) = r / (1 - r); Whiteley, Lee, Heine 2016 (1309.2918) for ``together``.

Chosen where the method leaves it open: a reward counts once, in the step that brings it, where the published code
weighs the whole prefix again at every step and ended particles with their last weight (``recount``); resampling is
systematic and waits for ESS < N/2 (``resampling: multinomial, ess: 1`` is as published); the particles that remain
vote with their weights (``answer: best`` is as published).

Without ``together`` every step waits for the slowest particle, since any particle may become a copy of any other.
With ``together`` there is no such barrier: so many particles resample among themselves, in groups formed anew for
each step, and go on as soon as those have come. Groups follow from the seed, not from the order of arrival, so that
the seed repeats the answer. The normalising constant stays unbiased; what small groups cost in the law of the
answers, and save in time, ``benchmarks/particles.py`` measures.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Self

from pydantic import model_validator

from stratagem.core.component import parameter
from stratagem.core.run import Run
from stratagem.core.task import Answer, Task
from stratagem.strategies._search.filtering import Filtering, same
from stratagem.strategies._search.particles import Filter
from stratagem.strategies._search.resampling import Scheme
from stratagem.strategies._search.steps import Partial


class ParticleFiltering(Filtering):
    """Particles grow step by step and are resampled by reward. Cost: about n answers, and a judgement per step."""

    kind: ClassVar[str] = "particle_filtering"

    resampling: Scheme = parameter(
        "systematic",
        "How particles are drawn by weight.",
        search=("systematic", "stratified", "residual", "multinomial"),
    )
    together: int | None = parameter(
        None, "Particles that wait for each other at a step; none: all of them.", ge=2, search=(2, 8)
    )
    recount: bool = parameter(False, "Weigh the whole prefix at every step, as published.")

    @model_validator(mode="after")
    def _can_resample(self) -> Self:
        if self.together is not None and self.together * self.ess <= 1:
            raise ValueError(
                f"an effective size is never below 1: where {self.together} meet, give ess above "
                f"{1 / self.together:.2g}"
            )
        return self

    async def __call__(self, task: Task, run: Run) -> Answer:
        filter = Filter[Partial](
            self.n,
            run.rng.getrandbits(31),
            key=same,
            scheme=self.resampling,
            ess=self.ess,
            together=self.together,
            recount=self.recount,
            tau=self.tau,
        )
        found = await self.carry_out(task, run, filter, partial(self.interim, task, run))
        return run.propose(await self.answered(task, run, found, self.equality))

    def potential(self, before: Partial, after: Partial) -> float:
        """By how much the newest step changes the log-weight."""
        return self.log_weight(after) if self.recount else super().potential(before, after)
