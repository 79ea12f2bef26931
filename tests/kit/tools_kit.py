"""Tools that work, tools that fail, and random plans of them: what the tests of the executor share."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from stratagem.testing.loops import run
from stratagem.tools.dag import Plan
from stratagem.tools.executor import Execution, Report
from stratagem.tools.tool import Tool, Value, tool, toolbox


@tool(timeout=1e9, effect="idempotent")
async def work(name: str, seconds: float, inputs: list[Any]) -> dict[str, Any]:
    """Works so long; tells what it is and what it was given."""
    await asyncio.sleep(seconds)
    return {"name": name, "inputs": inputs}


WORK = toolbox(work)


Needs = dict[str, list[str]]


def job(name: str, seconds: float, needs: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """A call that is given the names of those it needs."""
    inputs = [{"$ref": need, "path": ["name"]} for need in needs]
    return {
        "id": name,
        "tool": "work",
        "arguments": {"name": name, "seconds": seconds, "inputs": inputs},
        **more,
    }


def random_needs(rng: random.Random) -> Needs:
    """Width 1-16, depth 1-8: each call needs one of the layer before, or more of any earlier."""
    layers: list[list[str]] = []
    needs: Needs = {}
    for depth in range(rng.randint(1, 8)):
        layer = [f"{depth}.{i}" for i in range(rng.randint(1, 16))]
        earlier = [name for each in layers for name in each]
        for name in layer:
            chosen = (
                {rng.choice(layers[-1]), *rng.sample(earlier, min(len(earlier), rng.randint(0, 3)))}
                if layers
                else set()
            )
            needs[name] = sorted(chosen)
        layers.append(layer)
    names = list(needs)
    rng.shuffle(names)  # so that calls may stand before those they need
    return {name: needs[name] for name in names}


def skewed(rng: random.Random, names: Sequence[str]) -> dict[str, float]:
    """Most calls are quick, some take a hundred times as long."""
    return {name: rng.lognormvariate(-2, 1.5) for name in names}


def plan_of(needs: Needs, seconds: Mapping[str, float]) -> Plan:
    plan = Plan.parse([job(name, seconds[name], lacks) for name, lacks in needs.items()], WORK)
    assert plan.problems == ()
    return plan


def bound(plan: Plan, seconds: Mapping[str, float]) -> float:
    """Seconds of its critical path."""
    return plan.critical_path(lambda call: seconds[call.id])[1]


def executed(
    plan: Plan, tools: Mapping[str, Tool] = WORK, permits: int | None = None
) -> tuple[Report, float]:
    """Its report and makespan in virtual seconds; nothing is left in the loop."""

    async def main() -> tuple[Report, float]:
        semaphore = None if permits is None else asyncio.Semaphore(permits)
        loop = asyncio.get_running_loop()
        began = loop.time()
        report = await Execution(tools, permits=semaphore).run(plan)
        seconds = loop.time() - began
        await nothing_left()
        assert semaphore is None or semaphore._value == permits
        return report, seconds

    return run(main())


async def nothing_left() -> None:
    assert asyncio.all_tasks() == {asyncio.current_task()}
    loop = asyncio.get_running_loop()
    assert [timer for timer in loop._scheduled if not timer.cancelled()] == []  # type: ignore[attr-defined]  # pyright: ignore


def value(report: Report, name: str) -> Any:
    outcome = report.outcomes[name]
    assert isinstance(outcome, Value), outcome
    return outcome.data


@tool(timeout=2.0)
async def raises() -> Any:
    """Breaks."""
    raise RuntimeError("broken")


@tool(timeout=2.0)
async def hangs() -> Any:
    """Hangs."""
    await asyncio.Event().wait()


@tool
async def huge() -> Any:
    """Gives too much."""
    return "x" * 200_000


@tool
async def malformed() -> int:
    """Gives what it should not."""
    return "no number"  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


TOOLS = toolbox(work, raises, hangs, huge, malformed)


def streamed(*items: Any, pause: float = 1.0, error: Exception | None = None) -> tuple[Report, float]:
    async def calls() -> AsyncIterator[Any]:
        for item in items:
            yield item
            await asyncio.sleep(pause)
        if error is not None:
            raise error

    async def main() -> tuple[Report, float]:
        report = await Execution(TOOLS).run(calls())
        await nothing_left()
        return report, asyncio.get_running_loop().time()

    return run(main())
