"""Particle filters over partial answers, as decisions alone: orders are given, what came of them is told.

A filter has n slots. After every step a slot's weight is multiplied by the potential of its new step, W <- W
exp(potential / tau). Slots meet in groups; where the effective sample size of a group falls below its share, the
group is resampled and each of its slots gets the group's mean weight. One group of all is the usual filter, with a
barrier at each step. Small groups, which a seeded permutation forms anew for each step, wait for themselves alone:
the interaction of alpha-SMC (Whiteley, Lee, Heine 2016, arXiv 1309.2918). Because weights are carried over, the
mean final weight is an unbiased estimate of the normalising constant for groups of any size. Who meets whom when
follows from the seed and the count of steps, never from the clock: whatever ends first, the same seed gives the
same particles.

A particle that has ended takes part with its weight. A group in which all have ended does nothing, so that what
remains when all slots have ended does not depend on when that was noticed.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from stratagem.core.seeds import derive
from stratagem.strategies._search.resampling import Scheme, effective_size, resample, scaled

S = TypeVar("S")

Weights = Literal["odds", "likelihood", "exponential"]


def log_weight(weights: Weights, reward: float) -> float:
    """The log-weight of a reward in [0, 1], which is kept 1e-7 away from both ends."""
    reward = min(max(reward, 1e-7), 1 - 1e-7)
    match weights:
        case "odds":
            return math.log(reward / (1 - reward))
        case "likelihood":
            return math.log(reward)
        case "exponential":
            return reward


def swap_probability(temperatures: tuple[float, float], log_weights: tuple[float, float]) -> float:
    """min(1, exp((1/T_1 - 1/T_2) (w_2 - w_1))): of two chains exchanging their states, whose densities are
    p(x) exp(w(x) / T)."""
    gain = (1 / temperatures[0] - 1 / temperatures[1]) * (log_weights[1] - log_weights[0])
    return math.exp(min(0.0, gain))


@dataclass(frozen=True, slots=True)
class Particle(Generic[S]):
    """A partial answer with its past: immutable, so that copies share it and none changes another."""

    states: tuple[S, ...] = ()  # after each step
    potentials: tuple[float, ...] = ()  # log-weight that each step added
    ended: bool = False

    def grown(self, state: S, potential: float, *, ended: bool) -> Particle[S]:
        """With one more step."""
        return Particle((*self.states, state), (*self.potentials, potential), ended)

    def cut(self, steps: int) -> Particle[S]:
        """Its first ``steps`` steps, going on again unless those are all."""
        return Particle(
            self.states[:steps], self.potentials[:steps], self.ended and steps >= len(self.states)
        )

    @property
    def log_weight(self) -> float:
        """Of the whole."""
        return math.fsum(self.potentials)


@dataclass(frozen=True, slots=True)
class Order(Generic[S]):
    """To be carried out now: one more step of the particle for each slot. They share all that came before."""

    particle: Particle[S]
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Meeting:
    """What became of a group after a step; ``parents`` are slots, none where it was not resampled."""

    step: int
    slots: tuple[int, ...]
    effective_size: float
    parents: tuple[int, ...] | None


class Filter(Generic[S]):
    """A particle filter that is told what came of its orders (see the module).

    Args:
        n: slots.
        seed: decides groups and resampling.
        key: states with equal keys are continued in one order.
        scheme: how a group is resampled.
        ess: a group is resampled where its effective sample size is below this share of it.
        together: most slots that meet; none: all.
        recount: at each meeting a particle that has ended adds its last potential again, as published.
        tau: the temperature of the weights.
        reference: the path that slot 0 follows, whatever is resampled (conditional SMC: Andrieu, Doucet, Holenstein
            2010). It takes part in step t with its first t steps and their weight; the others are resampled
            multinomially, for which keeping slot 0 leaves the law as it must be.
    """

    def __init__(
        self,
        n: int,
        seed: int,
        *,
        key: Callable[[S], Hashable] = id,
        scheme: Scheme = "systematic",
        ess: float = 0.5,
        together: int | None = None,
        recount: bool = False,
        tau: float = 1.0,
        reference: Particle[S] | None = None,
    ) -> None:
        self.particles: list[Particle[S]] = [Particle()] * n
        self.log_weights = [0.0] * n
        self.meetings: list[Meeting] = []
        self._seed, self._key, self._tau, self._ess, self._recount = seed, key, tau, ess, recount
        self._scheme: Scheme = "multinomial" if reference is not None else scheme
        self._groups = 1 if together is None else math.ceil(n / together)
        self._reference = reference
        self._steps = [0] * n  # taken by each slot
        self._moved: set[int] = set()  # slots that have a step on which no meeting has decided yet
        self._running = n  # slots that have not ended
        self._arrived: Counter[tuple[int, int]] = (
            Counter()
        )  # by step and first slot of a group that has not met
        self._formed: dict[int, dict[int, tuple[int, ...]]] = {}

    @property
    def log_normalizer(self) -> float:
        """Estimate of log E[exp(sum of potentials / tau)] under the model, when all have ended."""
        return scaled(self.log_weights)[1]

    def draw(self, rng: random.Random) -> Particle[S]:
        """One particle by weight."""
        return rng.choices(self.particles, scaled(self.log_weights)[0])[0]

    def begin(self) -> list[Order[S]]:
        """The first orders. What one order grows is told slot by slot, as it comes."""
        arrived: deque[int] = deque()
        return self._go_on(range(len(self.particles)), arrived) + self._settled(arrived)

    def tell(self, slot: int, particle: Particle[S]) -> list[Order[S]]:
        """``particle`` is what ``slot`` has become by its order. Gives the orders that can be carried out now."""
        self._move(slot, particle)
        return self._settled(deque([slot]))

    def _move(self, slot: int, particle: Particle[S]) -> None:
        self.particles[slot] = particle
        self.log_weights[slot] += particle.potentials[-1] / self._tau
        self._moved.add(slot)
        self._running -= particle.ended

    def _settled(self, arrived: deque[int]) -> list[Order[S]]:
        """Hold the meetings that are complete, with those that they make complete."""
        orders: list[Order[S]] = []
        while arrived:
            slot = arrived.popleft()
            step = self._steps[slot]
            group = self._group(step, slot)
            self._arrived[step, group[0]] += 1
            if self._arrived[step, group[0]] == len(group):
                del self._arrived[step, group[0]]
                self._meet(step, group)
                if self._running:
                    orders += self._go_on(group, arrived)
        return orders

    def _go_on(self, slots: Iterable[int], arrived: deque[int]) -> list[Order[S]]:
        """The next step of each: ordered, or taken here by those who need nobody for it."""
        alike: dict[Hashable, list[int]] = {}
        for slot in slots:
            particle, path = self.particles[slot], self._reference if slot == 0 else None
            self._steps[slot] += 1
            if path is not None and not particle.ended:
                self._move(slot, path.cut(self._steps[slot]))
                arrived.append(slot)
            elif particle.ended:
                arrived.append(slot)
            else:
                key = self._key(particle.states[-1]) if particle.states else None
                alike.setdefault(key, []).append(slot)
        return [Order(self.particles[same[0]], tuple(same)) for same in alike.values()]

    def _group(self, step: int, slot: int) -> tuple[int, ...]:
        if step not in self._formed:
            order = list(range(len(self.particles)))
            if self._groups > 1:
                random.Random(derive(self._seed, "groups", step)).shuffle(order)
            groups = [tuple(sorted(order[i :: self._groups])) for i in range(self._groups)]
            self._formed[step] = {member: group for group in groups for member in group}
        return self._formed[step][slot]

    def _meet(self, step: int, group: tuple[int, ...]) -> None:
        moved = self._moved.intersection(group)
        self._moved -= moved
        if self._recount and moved:
            for slot in set(group) - moved:
                self.log_weights[slot] += self.particles[slot].potentials[-1] / self._tau
        if all(self.particles[slot].ended for slot in group):
            return
        weights, log_mean = scaled([self.log_weights[slot] for slot in group])
        size, parents = effective_size(weights), None
        if size < self._ess * len(group) or self._ess == 1.0:
            rng = random.Random(derive(self._seed, "resample", step, group[0]))
            parents = self._parents(group, weights, rng)
            chosen = [self.particles[parent] for parent in parents]
            for slot, particle in zip(group, chosen, strict=True):
                self._running += self.particles[slot].ended - particle.ended
                self.particles[slot], self.log_weights[slot] = particle, log_mean
        self.meetings.append(Meeting(step, group, size, parents))

    def _parents(
        self, group: tuple[int, ...], weights: Sequence[float], rng: random.Random
    ) -> tuple[int, ...]:
        kept = self._reference is not None and group[0] == 0
        drawn = resample(self._scheme, weights, len(group) - kept, rng)
        return (*group[:kept], *(group[i] for i in drawn))
