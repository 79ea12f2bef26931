"""The executor against faults at random places: it ends with the right part, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from stratagem.testing.loops import VirtualLoop, run
from stratagem.tools.dag import Plan
from stratagem.tools.executor import Execution, Report, Skipped
from stratagem.tools.tool import Failed, Value, tool, toolbox
from tools_kit import (
    TOOLS,
    WORK,
    Needs,
    bound,
    executed,
    job,
    nothing_left,
    plan_of,
    raises,
    random_needs,
    skewed,
    streamed,
    value,
    work,
)

FAULTS = {"raises": "error", "hangs": "timeout", "huge": "too_large", "malformed": "result"}


def downstream(needs: Needs, name: str) -> set[str]:
    """All that needs it, directly or not."""
    found = {name}
    while more := {
        each for each, lacks in needs.items() if each not in found and not found.isdisjoint(lacks)
    }:
        found |= more
    return found - {name}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_what_depends_on_it_and_nothing_else(fault: str) -> None:
    rng = random.Random(fault)
    for _ in range(200):
        needs = random_needs(rng)
        seconds = skewed(rng, list(needs))
        bad = rng.choice(list(needs))
        jobs = [job(name, seconds[name], lacks) for name, lacks in needs.items()]
        # The faulty call keeps its place: it needs what it needed, by a call that passes them on.
        gate = {**job("gate", 0.0, needs[bad])}
        calls = [gate, *({"id": bad, "tool": fault} if each["id"] == bad else each for each in jobs)]
        report, _ = executed(Plan.parse(calls, TOOLS), TOOLS)
        outcome = report.outcomes[bad]
        assert isinstance(outcome, Failed)
        assert outcome.why == FAULTS[fault]
        assert (outcome.error is None) == (fault == "huge")
        lost = downstream(needs, bad)
        for name in needs.keys() - {bad}:
            if name in lost:
                assert report.outcomes[name] == Skipped(bad)
            else:
                assert value(report, name)["inputs"] == needs[name]
        assert not report.complete
        assert report.outcomes.keys() == {*needs, "gate"}


def small_needs(rng: random.Random) -> Needs:
    """Up to five layers of up to four calls, so that every node can have its turn."""
    needs: Needs = {}
    layers: list[list[str]] = []
    for depth in range(rng.randint(1, 5)):
        layer = [f"{depth}.{i}" for i in range(rng.randint(1, 4))]
        earlier = [name for each in layers for name in each]
        for name in layer:
            lacks = {rng.choice(layers[-1]), *rng.sample(earlier, min(len(earlier), 2))} if layers else set()
            needs[name] = sorted(lacks)
        layers.append(layer)
    return needs


def test_every_fault_at_every_node_of_200_plans() -> None:
    """Each node once, faults in turn: what a tool does, a cycle, and a planner that stops there."""
    rng = random.Random(11)
    kinds = [*FAULTS, "cycle", "planner stops", "planner fails"]
    seen = dict.fromkeys(kinds, 0)
    for number in range(200):
        needs = small_needs(rng)
        seconds = skewed(rng, list(needs))
        for place, bad in enumerate(needs):
            kind = kinds[(number + place) % len(kinds)]
            seen[kind] += 1
            jobs = {name: job(name, seconds[name], lacks) for name, lacks in needs.items()}
            lost = downstream(needs, bad)
            if kind in FAULTS:
                jobs[bad] = {"id": bad, "tool": kind}
                report, _ = executed(Plan.parse(list(jobs.values()), TOOLS), TOOLS)
                failed = report.outcomes[bad]
                assert isinstance(failed, Failed)
                assert failed.why == FAULTS[kind]
                gone = {name: Skipped(bad) for name in lost}
            elif kind == "cycle":
                jobs[bad] = job(bad, 1.0, [*needs[bad], bad, *sorted(lost)[:1]])
                report, _ = executed(Plan.parse(list(jobs.values()), WORK))
                failed = report.outcomes[bad]
                assert isinstance(failed, Failed)
                assert failed.why == "plan"
                assert any(problem.kind == "cycle" and problem.call == bad for problem in report.problems)
                gone = {name: report.outcomes[name] for name in lost}
                assert not any(isinstance(outcome, Value) for outcome in gone.values())
            else:
                told = list(jobs.values())[:place]
                report = stopped(told, fails=kind == "planner fails")
                assert (report.error is not None) == (kind == "planner fails")
                assert report.outcomes.keys() == {each["id"] for each in told}
                lost, gone = set(list(needs)[place:]), {}
            for name in needs.keys() - lost - {bad}:
                assert value(report, name)["inputs"] == needs[name]
            assert {name: report.outcomes[name] for name in gone} == gone
            assert report.complete == (kind == "planner stops")
    assert min(seen.values()) > 100


def stopped(calls: list[dict[str, Any]], *, fails: bool) -> Report:
    """A planner that tells of these calls, one a second, and then no more."""

    async def planner() -> AsyncIterator[Any]:
        for each in calls:
            yield each
            await asyncio.sleep(1)
        if fails:
            raise ConnectionError("the planner is gone")

    async def main() -> Report:
        report = await Execution(WORK).run(planner())
        await nothing_left()
        return report

    return run(main())


def test_cancelled_by_the_user_anywhere() -> None:
    rng = random.Random(3)
    for _ in range(200):
        needs = random_needs(rng)
        seconds = skewed(rng, list(needs))
        plan = plan_of(needs, seconds)
        permits = asyncio.Semaphore(4)
        execution = Execution(WORK, permits=permits if rng.random() < 0.5 else None)
        when = rng.random() * bound(plan, seconds)

        async def main() -> None:
            task = asyncio.create_task(execution.run(plan))  # noqa: B023 - ends within the round
            await asyncio.sleep(when)  # noqa: B023
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await nothing_left()
            assert permits._value == 4  # noqa: B023

        run(main())
        outcomes, timings = execution.report.outcomes, execution.report.timings
        assert outcomes.keys() == needs.keys()
        for name, lacks in needs.items():
            outcome = outcomes[name]
            timing = timings.get(name)
            if isinstance(outcome, Value):
                assert outcome.data["inputs"] == lacks
                assert all(isinstance(outcomes[each], Value) for each in lacks)
            elif isinstance(outcome, Failed):
                assert outcome.why == "cancelled"
                assert timing is not None
                assert timing.started is not None
            else:
                assert outcome == Skipped(None)
                assert timing is None or timing.started is None


def test_cancelled_at_every_step_of_the_loop() -> None:
    calls = [job("a", 1), job("b", 0, ["a"]), job("c", 2, ["a"]), job("d", 0, ["b", "c"])]
    cancelled = 0
    execution = Execution(WORK)
    for step in range(1, 200):
        execution = Execution(WORK, permits=asyncio.Semaphore(1))

        async def main(at: int = step, execution: Execution = execution) -> bool:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualLoop)
            task = asyncio.create_task(execution.run(Plan.parse(calls, WORK)))
            loop.plan(at, task.cancel)
            await asyncio.wait([task])
            loop.cancel_plan()
            await nothing_left()
            return task.cancelled()

        if not run(main()):
            break
        cancelled += 1
    assert cancelled > 10
    assert execution.report.complete


def test_policies() -> None:
    def report(**policy: Any) -> Report:
        calls = [
            {"id": "bad", "tool": "raises", **policy},
            job("after", 1, ()),
            {
                "id": "user",
                "tool": "work",
                "arguments": {"name": "user", "seconds": 0, "inputs": [{"$ref": "bad"}]},
            },
        ]
        return executed(Plan.parse(calls, TOOLS), TOOLS)[0]

    skip = report()
    assert skip.outcomes["user"] == Skipped("bad")
    assert value(skip, "after")["name"] == "after"
    stop = report(on_failure="fail")
    assert stop.outcomes["user"] == Skipped("bad")
    assert stop.outcomes["after"] in (
        Skipped("bad"),
        Failed("cancelled", "after was cancelled while it ran.", attempts=1),
    )
    default = report(on_failure="default", default={"x": 1})
    assert value(default, "user")["inputs"] == [{"x": 1}]
    bad = default.outcomes["bad"]
    assert isinstance(bad, Value)
    assert bad.failure is not None
    assert bad.failure.why == "error"
    assert not default.complete


def test_fail_cancels_what_runs_and_ends_the_stream() -> None:
    cancelled: list[str] = []

    @tool(timeout=1e9)
    async def long(name: str) -> None:
        """Runs long."""
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(name)

    closed = False

    async def calls() -> AsyncIterator[Any]:
        nonlocal closed
        try:
            yield {"id": "a", "tool": "long", "arguments": {"name": "a"}}
            await asyncio.sleep(1)
            yield {"id": "b", "tool": "raises", "on_failure": "fail"}
            await asyncio.Event().wait()
        finally:
            closed = True

    async def main() -> Report:
        report = await Execution(toolbox(long, raises)).run(calls())
        await nothing_left()
        return report

    report = run(main())
    assert cancelled == ["a"]
    assert closed
    first, second = report.outcomes["a"], report.outcomes["b"]
    assert isinstance(first, Failed)
    assert isinstance(second, Failed)
    assert (first.why, second.why) == ("cancelled", "error")


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_wrong_with_a_plan_costs_only_its_part(whole: bool) -> None:
    calls: list[Any] = [
        job("a", 1),
        job("a", 9),
        job("x", 0, ["y"]),
        job("y", 0, ["x"]),
        job("after", 0, ["a", "x"]),
        job("loose", 0, ["nowhere"]),
        {"id": "fly", "tool": "fly"},
        {"id": "bad", "tool": "work", "arguments": {"name": 1}},
        "no call",
        job("b", 1, ["a"]),
    ]
    report = executed(Plan.parse(calls, TOOLS), TOOLS)[0] if whole else streamed(*calls)[0]
    assert value(report, "b")["inputs"] == ["a"]
    for name in ("x", "y", "loose", "fly", "bad"):
        outcome = report.outcomes[name]
        assert isinstance(outcome, Failed)
        assert outcome.why == "plan"
    assert report.outcomes["after"] in (Skipped("x"), Skipped("y"))
    assert {problem.kind for problem in report.problems} == {
        "duplicate_id",
        "cycle",
        "dangling_reference",
        "unknown_tool",
        "bad_arguments",
        "malformed",
    }
    assert len(report.problems) == len(set(report.problems))


def test_a_reference_to_what_a_result_lacks_fails_that_call() -> None:
    bad = {
        "id": "b",
        "tool": "work",
        "arguments": {"name": {"$ref": "a", "path": ["nom"]}, "seconds": 0, "inputs": []},
    }
    unfit = {"id": "c", "tool": "work", "arguments": {"name": {"$ref": "a"}, "seconds": 0, "inputs": []}}
    report, _ = executed(Plan.parse([job("a", 0), bad, unfit, job("d", 0, ["b"])], WORK))
    b, c = report.outcomes["b"], report.outcomes["c"]
    assert isinstance(b, Failed)
    assert isinstance(c, Failed)
    assert (b.why, c.why) == ("reference", "arguments")
    assert report.outcomes["d"] == Skipped("b")


def test_a_tool_that_ignores_its_cancellation_starts_nothing_more() -> None:
    @tool(timeout=1e9)
    async def stubborn() -> str:
        """Goes on."""
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            await asyncio.sleep(1)
        return "done"

    tools = toolbox(stubborn, work)
    execution = Execution(tools)

    async def main() -> None:
        calls = [{"id": "a", "tool": "stubborn"}, job("b", 0, ["a"])]
        task = asyncio.create_task(execution.run(Plan.parse(calls, tools)))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await nothing_left()

    run(main())
    assert execution.report.outcomes == {"a": Value("done"), "b": Skipped(None)}
