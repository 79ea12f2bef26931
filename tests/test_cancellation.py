"""Cancelled at 500 random points, a run leaves no permit, task, reservation or open request behind."""

from __future__ import annotations

import asyncio
import random

import pytest

from runs_kit import cancel_at_random_points, strategies
from stratagem.core.asking import POLICY
from stratagem.core.budget import Budget, Ledger
from stratagem.core.concurrency import task_group
from stratagem.core.errors import BackendError, BudgetExhausted
from stratagem.core.run import Run
from stratagem.core.task import Task
from stratagem.testing.loops import run
from stratagem.testing.toy import ToyModel, jittered

TASK = Task.of("How many apples are left?")


def test_500_random_points(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = strategies(8, beside=False)

    async def main() -> int:
        toys: list[ToyModel] = []

        def toy(number: int) -> ToyModel:
            # Two permits and a budget of about 150 tokens make calls wait for both.
            permits = random.Random(number).choice([None, 1, 2])
            toys.append(ToyModel(permits=permits, pace=jittered(number, most=2)))
            return toys[-1]

        async def check(ledger: Ledger) -> None:
            books = toys[-1].books
            assert (books.in_flight, books.permits) == (0, 0)
            assert ledger.spent == books.usage

        return await cancel_at_random_points(500, chosen, toy, check, tokens=[None, 150, 600])

    taken = run(main())
    with capsys.disabled():
        print(f"\n{len(chosen)} strategies cancelled at 500 random points while under way, in {taken} runs")


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
