"""How a tool lets its calls in: who waits there holds nothing, nobody waits in vain, waiting costs little."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import stratagem as sg
from stratagem.testing.loops import run
from stratagem.tools._threads import MOST
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
