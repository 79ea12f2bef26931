"""Cancelled at 500 random points, a run leaves no permit, task, reservation or open request behind."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import Any

import pytest

from stratagem.core.budget import Budget, Ledger
from stratagem.core.concurrency import task_group
from stratagem.core.errors import BackendError, BudgetExhausted
from stratagem.core.execute import execute
from stratagem.core.protocols import Strategy
from stratagem.core.run import POLICY, Run
from stratagem.core.task import Task
from stratagem.testing.loops import StepLoop, run
from stratagem.testing.toy import ToyModel, jittered

TASK = Task.of("How many apples are left?")
STRATEGIES: list[dict[str, Any]] = [
    {"kind": "direct", "max_tokens": 20},
    {"kind": "chain_of_thought", "max_tokens": 20},
    {"kind": "self_consistency", "n": 8, "max_tokens": 20},
    {"kind": "self_consistency", "n": 8, "max_tokens": 20, "equality": "math"},
    {"kind": "weighted_vote", "n": 8, "max_tokens": 20},
    {"kind": "weighted_vote", "n": 6, "max_tokens": 20, "by": "verifier", "verifier": "judge"},
    {"kind": "best_of_n", "n": 8, "max_tokens": 20},
    {"kind": "best_of_n", "n": 6, "max_tokens": 20, "verifier": "restart"},
]


def test_500_random_points(capsys: pytest.CaptureFixture[str]) -> None:
    reached = run(_cancel_at_random_points(500))
    with capsys.disabled():
        print(f"\ncancelled at 500 random points of {len(STRATEGIES)} strategies, {reached} while under way")
    assert reached > 300


def _cancel(task: asyncio.Task[Any], asked: list[bool]) -> None:
    asked.append(task.cancel())


async def _cancel_at_random_points(points: int) -> int:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, StepLoop)
    rng = random.Random(0)
    lengths: dict[int, int] = {}
    reached = 0
    for point in range(points):
        which = point % len(STRATEGIES)
        strategy = Strategy.load(STRATEGIES[which])
        # Two permits and a budget of about 150 tokens make calls wait for both.
        toy = ToyModel(permits=rng.choice([None, 1, 2]), pace=jittered(point, most=2))
        budget = Budget(tokens=rng.choice([None, 150, 600]), seconds=rng.choice([None, 60]))
        ledger = Ledger(budget, clock=loop.time)
        begun = loop.steps
        task = asyncio.create_task(execute(strategy, TASK, Run({POLICY: toy}, ledger=ledger, seed=point)))
        asked: list[bool] = []
        loop.plan(rng.randint(1, lengths.get(which, 40)), partial(_cancel, task, asked))
        await asyncio.wait({task})
        loop.cancel_plan()
        lengths[which] = max(lengths.get(which, 0), loop.steps - begun)
        assert task.cancelled() == any(asked), (strategy, point)
        reached += task.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert ledger.idle
        assert (toy.books.in_flight, toy.books.permits) == (0, 0)
        assert ledger.spent == toy.books.usage
    return reached


def test_a_cancellation_is_not_lost_to_an_error_inside() -> None:
    async def main() -> None:
        async def fail() -> None:
            raise BackendError("gone")

        async def slow_to_stop() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(1)

        async def group() -> None:
            async with task_group() as children:
                children.create_task(fail())
                children.create_task(slow_to_stop())

        task = asyncio.create_task(group())
        await asyncio.sleep(0.5)  # the error is there, the sibling still stops
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()

    run(main())


def test_a_deadline_is_told_from_a_cancellation_after_an_error_was_handled() -> None:
    async def main() -> None:
        async def fail(_: int) -> None:
            raise BackendError("gone")

        loop = asyncio.get_running_loop()
        outer = Run({POLICY: ToyModel()}, ledger=Ledger(Budget(seconds=5), clock=loop.time))

        async def handles_an_error_and_goes_on() -> None:
            async with outer.deadline():
                with pytest.raises(BackendError):
                    await outer.map(fail, range(2))
                await asyncio.sleep(60)

        with pytest.raises(BudgetExhausted, match="time is up"):
            await handles_an_error_and_goes_on()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run(main())


def test_leaving_a_stream_stops_the_engine() -> None:
    async def main() -> None:
        toy = ToyModel(permits=1)
        outer = Run({POLICY: toy}, ledger=Ledger(Budget(tokens=3000)))
        async with outer.stream(TASK, 4) as stream:
            await anext(aiter(stream))
            assert outer.ledger.reserved.tokens > 0
        assert toy.books.aborted == 4
        assert outer.ledger.idle
        assert outer.ledger.spent == toy.books.usage == stream.usage
        await outer.sample(TASK)

    run(main())
