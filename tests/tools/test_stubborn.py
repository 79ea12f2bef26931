"""Tools that do not end when they are told to: nothing waits for them for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from typing import Any

import pytest

from stratagem.testing.loops import run
from stratagem.tools.dag import Plan
from stratagem.tools.executor import Execution, Report
from stratagem.tools.tool import Failed, Value, tool, toolbox
from tools_kit import job, work


@tool(timeout=5.0, effect="idempotent")
async def stubborn(seconds: float) -> str:
    """Goes on for so long, whoever cancels it."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while (left := end - loop.time()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            continue
    return "done"


TOOLS = toolbox(stubborn, work)


def calls(seconds: float) -> Plan:
    listed: list[Any] = [{"id": "a", "tool": "stubborn", "arguments": {"seconds": seconds}}, job("b", 1)]
    return Plan.parse(listed, TOOLS)


def test_a_time_out_ends_the_wait() -> None:
    async def main() -> tuple[Report, float]:
        loop = asyncio.get_running_loop()
        report = await Execution(TOOLS).run(calls(1000))
        ended = loop.time()
        await asyncio.sleep(2000)  # it ends by itself, unseen
        return report, ended

    report, ended = run(main())
    failed = report.outcomes["a"]
    assert isinstance(failed, Failed)
    assert (failed.why, "goes on" in failed.message) == ("timeout", True)
    assert isinstance(report.outcomes["b"], Value)
    assert 5.0 <= ended <= 10.0


def test_one_that_ends_soon_after_its_time_has_ended() -> None:
    report = run(Execution(TOOLS).run(calls(5.5)))
    assert report.outcomes["a"] == Value("done")


def test_a_cancellation_ends_the_wait() -> None:
    execution = Execution(TOOLS)

    async def main() -> float:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(execution.run(calls(1000)))
        await asyncio.sleep(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ended = loop.time()
        await asyncio.sleep(2000)
        return ended

    assert run(main()) <= 7.0
    failed = execution.report.outcomes["a"]
    assert isinstance(failed, Failed)
    assert failed.why == "cancelled"


def test_a_result_that_takes_its_time_to_be_read_counts_as_the_call() -> None:
    """An iterator of a tool that blocks is read in the tool's thread, under its time-out; the loop goes on."""
    let_go = threading.Event()

    @tool(timeout=0.2)
    def lines() -> Iterable[int]:
        """Lines, one by one."""
        yield 1
        let_go.wait()
        yield 2

    async def main() -> tuple[Value | Failed, Value | Failed]:
        try:
            late = await lines()
        finally:
            let_go.set()
        return late, await lines()

    late, good = asyncio.run(main())
    assert isinstance(late, Failed)
    assert late.why == "timeout"
    assert good == Value([1, 2])
