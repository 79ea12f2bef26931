"""What particle filters cost in law and in time, with a barrier at every step and without.

    python benchmarks/particles.py [--runs 20000] [--law-runs 4000] [--particles 16] [--problems 8] [--permits 8]

Law: on a toy model that is enumerated, the mean estimate of the normalising constant against the exact one, in
standard errors (goal: at most 3), for every way of resampling and for groups that do not wait for the others. Then
what groups do to the answers: the bias of the estimated posterior (total variation between its mean over runs and
the exact one; what chance alone would leave of it stands beside) and the error of one run.

Time: in virtual time, a hundredth of a second a token, steps of which one in five is forty times as long. Wall time
against the dependency bound, which is what each step must wait for and nothing else (goal: at most 1.05); and, with
as few permits as given, the share of permits that were idle while a step was ready (goal: at most 0.05).

Exits with 1 if a goal is missed (--informative: with 0).
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any, ClassVar

from goals import Goals, parser
from stratagem.core.asking import POLICY
from stratagem.core.backend import Message, Request, ScoreRequest
from stratagem.core.protocols import Verdict, Verifier
from stratagem.core.run import Run
from stratagem.core.seeds import derive
from stratagem.core.task import Candidate, Task
from stratagem.strategies._search.filtering import Weighted, same
from stratagem.strategies._search.particles import Filter, Order, Particle
from stratagem.strategies._search.resampling import scaled
from stratagem.strategies._search.steps import Partial
from stratagem.strategies.particle_filtering import ParticleFiltering
from stratagem.testing.loops import run as run_loop
from stratagem.testing.toy import ToyModel

# Texts of up to three steps: {text so far: {step: probability}}; a text without a row has ended.
TABLE = {
    "": {"a": 0.6, "b": 0.4},
    "a": {"c": 0.5, "1": 0.5},
    "b": {"c": 0.3, "2": 0.7},
    "ac": {"1": 0.2, "2": 0.8},
    "bc": {"1": 0.9, "2": 0.1},
}
REWARD = {"a": 0.7, "b": 0.4, "ac": 0.3, "a1": 0.9, "bc": 0.8, "b2": 0.2}
REWARD |= {"ac1": 0.6, "ac2": 0.35, "bc1": 0.5, "bc2": 0.9}
SCHEMES = ("systematic", "stratified", "residual", "multinomial")
ASYNCHRONOUS: dict[str, dict[str, Any]] = {
    "barrier": {},
    "groups of 4": {"together": 4},
    "groups of 2": {"together": 2, "ess": 0.8},
}
Aggregate = Callable[[Sequence[float]], float]

TICK = 0.01
ANSWER = "The answer is 1."


def rewards(text: str) -> list[float]:
    """Of the steps of a text."""
    return [REWARD[text[:k]] for k in range(1, len(text) + 1)]


def posterior(aggregate: Aggregate = math.prod, tau: float = 1.0) -> tuple[dict[str, float], float]:
    """p(x) r(x)^(1 / tau) of every text, normalised, and what it was divided by."""
    law = ToyModel(TABLE).enumerate("Which?")
    mass = {text: p * aggregate(rewards(text)) ** (1 / tau) for text, p in law.items()}
    total = math.fsum(mass.values())
    return {text: m / total for text, m in mass.items()}, total


def grown(particle: Particle[str], rng: random.Random, aggregate: Aggregate = math.prod) -> Particle[str]:
    """With one more step of the table."""
    text = particle.states[-1] if particle.states else ""
    longer = text + rng.choices(list(TABLE[text]), list(TABLE[text].values()))[0]
    before = math.log(aggregate(rewards(text))) if text else 0.0
    return particle.grown(longer, math.log(aggregate(rewards(longer))) - before, ended=longer not in TABLE)


def filtered(
    n: int, seed: int, *, aggregate: Aggregate = math.prod, order: int | None = None, **options: Any
) -> Filter[str]:
    """A filter over the table, run to its end; ``order`` shuffles what ends first."""
    made = Filter[str](n, seed, key=str, **options)
    shared, shuffle = random.Random(seed), random.Random(order)
    pending = [(o, slot) for o in made.begin() for slot in o.slots]
    while pending:
        o, slot = pending.pop(-1 if order is None else shuffle.randrange(len(pending)))
        rng = shared if order is None else random.Random(derive(seed, slot, len(o.particle.states)))
        more = made.tell(slot, grown(o.particle, rng, aggregate))
        pending += [(other, s) for other in more for s in other.slots]
    return made


def z_score(values: Sequence[float], exact: float) -> float:
    """By how many standard errors their mean is off."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return (mean - exact) / math.sqrt(variance / len(values))


def shares(made: Filter[str]) -> dict[str, float]:
    """The posterior that one filter estimates."""
    weights, _ = scaled(made.log_weights)
    ends = [particle.states[-1] for particle in made.particles]
    return {
        text: math.fsum(w for w, end in zip(weights, ends, strict=True) if end == text) / math.fsum(weights)
        for text in posterior()[0]
    }


def bias(n: int, runs: int, options: dict[str, Any]) -> tuple[float, float, float]:
    """Of the estimated posterior: total variation of its mean from the exact one, what chance leaves of that (the
    mean of half the sum of absolute standard errors), and the mean total variation of a single run."""
    exact, _ = posterior()
    found = [shares(filtered(n, seed, **options)) for seed in range(runs)]
    off = chance = 0.0
    for text, p in exact.items():
        mean = math.fsum(f[text] for f in found) / runs
        variance = math.fsum((f[text] - mean) ** 2 for f in found) / (runs - 1)
        off += abs(mean - p) / 2
        chance += math.sqrt(variance / runs * 2 / math.pi) / 2
    single = math.fsum(abs(f[text] - p) / 2 for f in found for text, p in exact.items()) / runs
    return off, chance, single


def uneven(messages: tuple[Message, ...], tokens: tuple[str, ...]) -> dict[str, float]:
    """Eight steps, one in five of which takes forty times as long, then the answer."""
    lines = "".join(tokens).split("\n")
    if lines[-1] == ANSWER:
        return {"": 1.0}
    if len(lines) > 8:
        return {ANSWER: 1.0}
    if not lines[-1]:
        return {f"{word}\n": 0.1 for word in "abcdefgh"} | {"long": 0.2}
    return {"." if len(lines[-1]) < 43 else "\n": 1.0}


class Spread(Verifier):
    """A reward between 0.2 and 0.8 that a text always gets."""

    kind: ClassVar[str] = "spread_in_benchmarks"

    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        return [Verdict(0.2 + 0.6 * derive(c.text) / 2**31) for c in candidates]


class Bounded(Filter[Partial]):
    """Knows the earliest time at which each slot can be where it is, if nothing but its dependencies delays it."""

    def __init__(self, n: int, seed: int, **options: Any) -> None:
        super().__init__(n, seed, key=same, **options)
        self.ready = [0.0] * n

    def tell(self, slot: int, particle: Particle[Partial]) -> list[Order[Partial]]:
        *before, after = (0, *(state.token_count for state in particle.states))
        self.ready[slot] += (after - before[-1]) * TICK
        met = len(self.meetings)
        orders = super().tell(slot, particle)
        for meeting in self.meetings[met:]:
            last = max(self.ready[s] for s in meeting.slots)
            for s in meeting.slots:
                self.ready[s] = last
        return orders


_asking: ContextVar[list[float]] = ContextVar("asking")  # of an order: when it was given, when it began


class Watched(ParticleFiltering):
    """Notes when an order is given; the model notes when it begins."""

    kind: ClassVar[str] = "watched_in_benchmarks"
    orders: ClassVar[list[list[float]]] = []

    async def extend(
        self,
        task: Task,
        run: Run,
        partial: Partial,
        n: int = 1,
        *,
        whole: bool = False,
        then: Callable[[Partial], Awaitable[None]] | None = None,
    ) -> list[Partial]:
        times: list[float] = []
        self.orders.append(times)
        _asking.set(times)
        return await super().extend(task, run, partial, n, whole=whole, then=then)


async def pace(_: Request | ScoreRequest) -> None:
    if not (times := _asking.get()):
        times.append(asyncio.get_running_loop().time())
    await asyncio.sleep(TICK)


async def timed(
    n: int, seed: int, permits: int | None, options: dict[str, Any]
) -> tuple[float, float, float]:
    """Wall time, its dependency bound, and the share of permits that were idle while a step was ready."""
    loop = asyncio.get_running_loop()
    strategy = Watched(n=n, verifier=Spread())
    model = ToyModel(uneven, pace=pace, permits=permits)
    made = Bounded(n, seed, **{"ess": 0.5, **options})
    Watched.orders.clear()
    idle: list[float] = []

    async def watch() -> None:
        await asyncio.sleep(TICK / 2)
        while True:
            waiting = sum(not times for times in Watched.orders)
            idle.append(min(waiting, permits - model.books.permits) / permits if permits else 0.0)
            await asyncio.sleep(TICK)

    async def ignore(_: Weighted) -> None:
        pass

    begun = loop.time()
    watching = asyncio.create_task(watch())
    await strategy.carry_out(Task.of("Which?"), Run({POLICY: model}, seed=seed), made, ignore)
    wall = loop.time() - begun
    watching.cancel()
    return wall, max(made.ready), math.fsum(idle) / len(idle)


def main() -> int:
    takes = parser(__doc__)
    takes.add_argument("--runs", type=int, default=20_000, help="for each normalising constant")
    takes.add_argument("--law-runs", type=int, default=4000, help="for each bias of the posterior")
    takes.add_argument("--particles", type=int, default=16)
    takes.add_argument("--problems", type=int, default=8)
    takes.add_argument("--permits", type=int, default=8)
    args = takes.parse_args()
    goals = Goals(informative=args.informative)

    _, exact = posterior()
    sorts = {scheme: {"scheme": scheme, "ess": 1.0} for scheme in SCHEMES} | ASYNCHRONOUS
    for name, options in sorts.items():
        seeds = [derive(name, i) for i in range(args.runs)]  # of its own: no luck is shared
        found = [math.exp(filtered(5, seed, **options).log_normalizer) for seed in seeds]
        off = z_score(found, exact)
        print(
            f"{name:<12} normalising constant {math.fsum(found) / len(found):.5f} of {exact:.5f}, off by "
            f"{off:+.2f} standard errors ({goals.at_most(abs(off), 3)})",
            flush=True,
        )
    for n in (4, args.particles):
        for name, options in ASYNCHRONOUS.items():
            off, chance, single = bias(n, args.law_runs, options)
            print(
                f"{name:<12} posterior of {n} particles: bias {off:.4f}, of which chance {chance:.4f}; "
                f"error of one run {single:.4f}",
                flush=True,
            )

    async def spans(permits: int | None, options: dict[str, Any]) -> list[tuple[float, float, float]]:
        return [await timed(args.particles, seed, permits, options) for seed in range(args.problems)]

    for name, options in ASYNCHRONOUS.items():
        free, tight = run_loop(spans(None, options)), run_loop(spans(args.permits, options))
        wall, bound = (math.fsum(span[i] for span in free) for i in (0, 1))
        idle = math.fsum(span[2] * span[0] for span in tight) / math.fsum(span[0] for span in tight)
        print(
            f"{name:<12} wall time {wall:.2f} s, bound {bound:.2f} s, ratio {wall / bound:.3f} "
            f"({goals.at_most(wall / bound, 1.05)}); with {args.permits} permits "
            f"{math.fsum(span[0] for span in tight):.2f} s, idle while a step was ready {idle:.3f} "
            f"({goals.at_most(idle, 0.05)})",
            flush=True,
        )
    return goals.code


if __name__ == "__main__":
    sys.exit(main())
