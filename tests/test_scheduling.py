"""Through the framework the same calls end as early as by hand: counted in decoding steps of the server, in virtual
time, which no busy machine disturbs.

`benchmarks/scheduling.py` measures the same in seconds, where what this process computes counts too.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from scheduling import GOAL, GRADE, Noting, Raw, framework, timed
from stratagem.core.backend import Message
from stratagem.core.protocols import Strategy
from stratagem.core.task import Task
from stratagem.testing.loops import run
from stratagem.testing.server import SimSettings, SimulatedServer, Totals

STEP = 0.01  # virtual seconds
SETTINGS = SimSettings(per_token=STEP)


class Careless(Raw):
    """Grades when all samples of a problem have come: a barrier that the algorithm does not need."""

    async def best(self, task: Task, _: int) -> object:
        drawn = await asyncio.gather(*(self.sample(task, i) for i in range(self.n)))
        return await asyncio.gather(*(self.grade(*sample) for sample in drawn))


class Shape:
    """So many problems at once, samples of each, and sequences decoded at a time."""

    def __init__(self, kind: str, problems: int, n: int, permits: int) -> None:
        self.kind, self.n, self.permits = kind, n, permits
        self.tasks = [Task.of(f"What is {i} + {i}?") for i in range(problems)]
        self.seeds: dict[tuple[Message, ...], int] = {}

    async def framework(self) -> tuple[float, Totals]:
        """Steps that it takes, and the server's books."""
        judged = {"verifier": GRADE.dump()} if self.kind == "best_of_n" else {}
        strategy = Strategy.load({"kind": self.kind, "n": self.n, **judged})
        async with SimulatedServer(SETTINGS) as server:
            async with aclosing(Noting(server.url, permits=self.permits)) as backend:
                backend.seeds = self.seeds
                seconds, _ = await timed(framework(strategy, backend), self.tasks)
            return seconds / STEP, server.totals()

    async def by_hand(self, side: type[Raw]) -> tuple[float, Totals]:
        """The same, with the seeds that the framework took."""
        async with SimulatedServer(SETTINGS) as server:
            async with aclosing(side(server.url, self.permits, self.n, self.seeds)) as raw:
                seconds, _ = await timed(raw.best if self.kind == "best_of_n" else raw.vote, self.tasks)
            return seconds / STEP, server.totals()


@pytest.mark.parametrize("kind", ["self_consistency", "best_of_n"])
@pytest.mark.parametrize(("problems", "n", "permits"), [(1, 16, 32), (8, 16, 32), (3, 5, 7), (5, 4, 3)])
def test_no_schedule_by_hand_is_faster(kind: str, problems: int, n: int, permits: int) -> None:
    async def main() -> None:
        shape = Shape(kind, problems, n, permits)
        ours, books = await shape.framework()
        theirs, other = await shape.by_hand(Raw)
        print(f"{kind} {problems} x {n} at {permits}: {ours:.0f} steps, by hand {theirs:.0f}")
        assert 0 < ours <= GOAL * theirs
        assert (books.decoded, books.finished) == (other.decoded, books.requests)  # the same work, all of it
        assert books.peak_sequences == min(permits, problems * n)
        assert books.peak_connections <= permits

    run(main())


def test_a_needless_barrier_would_be_seen() -> None:
    """The measure tells: at the simplest shape above grading late misses the goal by far."""

    async def main() -> None:
        shape = Shape("best_of_n", 1, 16, 32)
        await shape.framework()
        (early, _), (late, _) = await shape.by_hand(Raw), await shape.by_hand(Careless)
        assert late > 1.1 * GOAL * early

    run(main())
