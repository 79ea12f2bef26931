"""Runs under observation: what came out, what it cost, and whether anything was left behind."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from stratagem.core.budget import Budget
from stratagem.core.component import Component
from stratagem.core.run import Run
from stratagem.core.usage import Usage
from stratagem.testing.loops import StepLoop
from stratagem.testing.toy import ToyModel


def require(holds: bool, law: str, broken: str) -> None:
    """Raise the ``AssertionError`` of a law, also where ``assert`` statements are switched off."""
    if not holds:
        raise AssertionError(f"{law}: {broken}")


def loads_from_its_dump(part: Component, family: type[Component]) -> None:
    """The part survives its plain data and JSON."""
    law = "loads from its dump"
    data = part.dump()
    require(data.get("kind") == part.kind != "", law, f"the dump names the kind {data.get('kind')!r}")
    require(family.load(data) == part, law, f"{family.load(data)!r} is not {part!r}")
    require(family.load(json.loads(json.dumps(data))) == part, law, f"JSON changes it: {data!r}")


def leaves_nothing(run: Run, toy: ToyModel, when: str) -> None:
    """The run, now over, has left no task, permit, reservation or request, and all it spent is on its bill."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    books = toy.books
    law = "leaves nothing behind"
    require(not tasks, law, f"{when}: tasks still run: {tasks}")
    require(books.in_flight == 0, law, f"{when}: {books.in_flight} requests are still in flight")
    require(books.permits == 0, law, f"{when}: {books.permits} permits were not given back")
    require(run.ledger.idle, law, f"{when}: still reserved: {run.ledger.reserved}")
    spent, billed = books.usage, run.ledger.spent
    require(billed == spent, "every call is on the bill", f"{when}: billed {billed}, spent {spent}")


def never_overspends(budget: Budget, spent: Usage) -> None:
    """What the backend counted is within the budget."""
    within = (
        (budget.tokens is None or spent.tokens <= budget.tokens)
        and (budget.calls is None or spent.calls <= budget.calls)
        and (budget.money is None or spent.money <= budget.money)
    )
    limits = budget.model_dump(exclude_none=True)
    require(within, "never overspends", f"budget {limits}: spent {spent}")


def sampled(points: Sequence[int], most: int) -> Sequence[int]:
    """All points, or ``most`` random ones, in order."""
    return points if len(points) <= most else sorted(random.Random(0).sample(points, most))


async def cancelled_everywhere(
    start: Callable[[int], Coroutine[Any, Any, object]], check: Callable[[str], None], most: int
) -> None:
    """Cancel a run at each of its steps, or at ``most`` random ones, and ``check`` what is left.

    ``start(number)`` makes run ``number``; number 0 is not cancelled. Needs a :class:`StepLoop`.
    """
    law = "cancelled anywhere, it ends there"
    loop = asyncio.get_running_loop()
    assert isinstance(loop, StepLoop)
    begun = loop.steps
    await asyncio.create_task(start(0))
    check("not cancelled")
    steps = range(1, loop.steps - begun)
    for number, step in enumerate(sampled(steps, most), 1):
        when = f"cancelled at step {step} of {len(steps)}"
        task = asyncio.create_task(start(number))
        asked: list[bool] = []
        loop.plan(step, partial(_cancel, task, asked))
        await asyncio.wait({task})
        loop.cancel_plan()
        check(when)
        if not task.cancelled():
            require(task.exception() is None, law, f"{when}: it ended with {task.exception()!r}")
            require(not any(asked), law, f"{when}: it went on as if it had not been")


def _cancel(task: asyncio.Task[object], asked: list[bool]) -> None:
    asked.append(task.cancel())
