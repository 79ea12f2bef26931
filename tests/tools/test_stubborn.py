"""Tools that do not end when they are told to: nothing waits for them for ever."""

from __future__ import annotations

import asyncio
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
