"""How a tool lets its calls in: who waits there holds nothing, nobody waits in vain, waiting costs little."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

import stratagem as sg
from stratagem.core.budget import Amount, Budget, Ledger
from stratagem.core.usage import Usage
from stratagem.testing.loops import run
from stratagem.tools._threads import MOST
from stratagem.tools.conduct import Conduct
from stratagem.tools.dag import Plan
from stratagem.tools.executor import Execution, Report
from stratagem.tools.fair import FairPermits
from stratagem.tools.tool import Failed, Tool, Value, toolbox


def calls(each: Tool, count: int) -> Plan:
    plan = Plan.parse(
        [{"id": f"c{i}", "tool": each.name, "arguments": {"i": i}} for i in range(count)], toolbox(each)
    )
    assert not plan.problems
    return plan


def test_a_retry_that_waits_for_its_tool_holds_no_permit() -> None:
    """One permit of the plan, one place of the tool, and a first attempt that fails: no two wait for each other."""
    failed: set[int] = set()

    @sg.tool(effect="idempotent", retries=1, concurrency=1, timeout=1.0)
    async def get(i: int) -> int:
        """Get."""
        await asyncio.sleep(0.1)
        if i not in failed:
            failed.add(i)
            raise OSError("once")
        return i

    report = run(Execution(toolbox(get), permits=FairPermits(1).share()).run(calls(get, 3)))
    assert report.outcomes == {f"c{i}": Value(i, 2) for i in range(3)}


def test_a_retry_that_waits_for_its_rate_holds_no_permit() -> None:
    @sg.tool(effect="idempotent", retries=3, rate=1.0)
    async def fail(i: int) -> int:
        """Fail."""
        raise OSError(str(i))

    @sg.tool(effect="idempotent")
    async def fine(i: int) -> int:
        """Work."""
        return i

    async def main() -> float:
        permits = FairPermits(1)
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            slow = group.create_task(Execution(toolbox(fail), permits=permits.share()).run(calls(fail, 2)))
            await asyncio.sleep(0.5)
            await Execution(toolbox(fine), permits=permits.share()).run(calls(fine, 5))
            took = loop.time()
        assert all(isinstance(each, Failed) for each in slow.result().outcomes.values())
        assert loop.time() >= 6.0  # the eighth start
        return took

    assert run(main()) < 0.6


@contextmanager
def hanging() -> Iterator[tuple[Tool, threading.Event]]:
    """A tool whose thread goes on until the event."""
    let_go = threading.Event()

    @sg.tool(effect="idempotent", timeout=0.1)
    def hang(i: int) -> int:
        """Hang."""
        let_go.wait()
        return i

    try:
        yield hang, let_go
    finally:
        let_go.set()


def test_where_calls_that_hang_hold_all_threads_others_fail_in_their_time() -> None:
    @sg.tool(effect="idempotent", timeout=0.2)
    def fine(i: int) -> int:
        """Work."""
        return i

    async def main(hang: Tool, let_go: threading.Event) -> None:
        report = await Execution(toolbox(hang)).run(calls(hang, MOST))
        assert all(isinstance(each, Failed) for each in report.outcomes.values())
        outcome = await fine(i=1)
        assert isinstance(outcome, Failed)
        assert (outcome.why, outcome.attempts) == ("timeout", 0)
        let_go.set()
        again: Any = None
        while not isinstance(again, Value):
            again = await fine(i=2)
        assert again == Value(2)

    with hanging() as (hang, let_go):
        asyncio.run(main(hang, let_go))


def test_where_there_is_no_thread_to_be_had_the_call_fails_and_gives_its_place_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @sg.tool(effect="idempotent", concurrency=1)
    def fine(i: int) -> int:
        """Work."""
        return i

    def none_left(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", none_left)
            outcome = await fine(i=1)
        assert isinstance(outcome, Failed)
        assert "can't start new thread" in outcome.message
        assert await fine(i=2) == Value(2)

    asyncio.run(main())


def test_waiting_for_a_tool_whose_calls_time_out_costs_each_the_same() -> None:
    @sg.tool(effect="idempotent", concurrency=4, timeout=1.0)
    async def slow(i: int) -> int:
        """Take too long."""
        await asyncio.sleep(100)
        return i

    def cost(count: int) -> float:
        plan, started = calls(slow, count), time.process_time()
        report: Report = run(Execution(toolbox(slow)).run(plan))
        assert all(isinstance(each, Failed) and each.attempts for each in report.outcomes.values())
        return time.process_time() - started

    cost(50)
    assert min(cost(1600), cost(1600)) < 10 * min(cost(400), cost(400))


def test_who_waits_for_money_holds_nothing_that_others_wait_for() -> None:
    """The first call keeps what its retry may cost, and needs the tool's only place again."""
    tried: list[int] = []

    @sg.tool(effect="idempotent", concurrency=1, retries=1, cost=1.0, timeout=5.0)
    async def pay(i: int) -> int:
        """Pay."""
        await asyncio.sleep(0.1)
        tried.append(i)
        if tried.count(i) == 1:
            raise OSError("once")
        return i

    async def main() -> Report:
        ledger = Ledger(Budget(money=3.0))

        async def reserve(most: float) -> Callable[[float], None]:
            held = await ledger.reserve(Amount(money=most))
            return lambda money: held.settle(Usage(money=money))

        return await Execution(toolbox(pay), conduct=Conduct(pay=reserve)).run(calls(pay, 2))

    report = run(main())
    assert report.outcomes["c0"] == Value(0, 2)
    failed = report.outcomes["c1"]
    assert isinstance(failed, Failed)
    assert failed.why == "budget"  # two were spent: a retry of the other would be too much
    assert report.cost == 2.0


def test_a_cancelled_call_that_goes_on_lets_nobody_wait_for_ever() -> None:
    async def main(hang: Tool, let_go: threading.Event) -> None:
        one = hang.replace(concurrency=1)
        task = asyncio.create_task(one(i=1))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        outcome = await one(i=2)
        assert isinstance(outcome, Failed)
        assert (outcome.why, outcome.attempts) == ("timeout", 0)
        let_go.set()

    with hanging() as (hang, let_go):
        asyncio.run(main(hang, let_go))


def test_a_wrapper_around_an_async_function_keeps_its_place_until_that_has_ended() -> None:
    now = most = 0

    @sg.tool(effect="idempotent", concurrency=1)
    def wrapped(i: int) -> int:
        """Wrap."""

        async def inner() -> int:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.02)
            now -= 1
            return i

        return inner()  # type: ignore[return-value]

    async def main() -> list[Value | Failed]:
        return await asyncio.gather(*(wrapped(i=i) for i in range(3)))

    assert asyncio.run(main()) == [Value(i) for i in range(3)]
    assert most == 1


def test_starts_are_spaced_where_permits_are_short_too() -> None:
    started: list[float] = []

    @sg.tool(effect="idempotent", rate=5.0)
    async def spaced(i: int) -> int:
        """Start."""
        started.append(asyncio.get_running_loop().time())
        return i

    async def main() -> None:
        permits = FairPermits(3)
        others = [permits.share() for _ in range(3)]
        for each in others:
            await each.acquire()
        running = asyncio.create_task(
            Execution(toolbox(spaced), permits=permits.share()).run(calls(spaced, 6))
        )
        await asyncio.sleep(2.0)
        for each in others:
            each.release()
        await running

    run(main())
    assert len(started) == 6
    assert all(b - a >= 0.2 - 1e-6 for a, b in pairwise(started))
