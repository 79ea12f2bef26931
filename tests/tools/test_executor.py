"""The executor against the bounds of schedules, in virtual time, and against faults at random places."""

from __future__ import annotations

import asyncio
import heapq
import json
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from stratagem.testing.loops import VirtualLoop, run
from stratagem.tools.dag import Call, Plan
from stratagem.tools.executor import Execution, Report, Skipped
from stratagem.tools.tool import Failed, Tool, Value, tool, toolbox

NESTFUL = Path(__file__).resolve().parents[3] / "shared" / "data" / "nestful" / "nestful.jsonl"


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


def test_makespan_is_the_critical_path_on_random_plans() -> None:
    rng = random.Random(1)
    for _ in range(1000):
        needs = random_needs(rng)
        seconds = skewed(rng, list(needs))
        plan = plan_of(needs, seconds)
        report, makespan = executed(plan)
        assert makespan == pytest.approx(bound(plan, seconds), rel=1e-9)
        assert report.complete
        for name, lacks in needs.items():
            assert value(report, name)["inputs"] == lacks
            timing = report.timings[name]
            assert timing.started == timing.ready
            assert timing.ready == pytest.approx(
                max((report.timings[each].ended or 0.0 for each in lacks), default=0.0)
            )


def listed(needs: Needs, seconds: Mapping[str, float], permits: int) -> float:
    """The makespan of a list schedule that serves what is ready in the order in which it became so."""
    lacks = {name: set(each) for name, each in needs.items()}
    ready = [name for name, each in lacks.items() if not each]
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < permits:
            name = ready.pop(0)
            heapq.heappush(running, (now + seconds[name], name))
        now, ended = heapq.heappop(running)
        for name, each in lacks.items():
            if ended in each:
                each.discard(ended)
                if not each:
                    ready.append(name)
    return now


@pytest.mark.parametrize("permits", [1, 3, 8])
def test_with_few_permits_no_permit_idles(permits: int) -> None:
    rng = random.Random(permits)
    total = 0.0
    simulated = 0.0
    for _ in range(100):
        needs = random_needs(rng)
        seconds = skewed(rng, list(needs))
        plan = plan_of(needs, seconds)
        report, makespan = executed(plan, permits=permits)
        assert report.complete
        longest = bound(plan, seconds)
        # Graham 1969: what any schedule keeps that lets no permit idle while a call is ready.
        assert makespan <= sum(seconds.values()) / permits + longest * (1 - 1 / permits) + 1e-9
        assert makespan <= listed(needs, seconds, permits) * 1.02
        total += makespan
        simulated += listed(needs, seconds, permits)
    assert total == pytest.approx(simulated, rel=1e-3)


def gold() -> Iterator[Needs]:
    """Each plan of nestful as who needs whom. Labels that are undefined or stand twice, of which
    the data has some, are left out."""
    for line in NESTFUL.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        names = [call.get("label", f"end{i}") for i, call in enumerate(row["output"])]
        needs: Needs = {}
        for i, (name, call) in enumerate(zip(names, row["output"], strict=True)):
            text = json.dumps(call["arguments"])
            needs[name] = [
                each for each in dict.fromkeys(names[:i]) if f"${each}$" in text or f"${each}." in text
            ]
        if len(needs) == len(names):
            yield needs


@pytest.mark.skipif(not NESTFUL.exists(), reason="the data of nestful is not here")
def test_makespan_is_the_critical_path_on_gold_plans() -> None:
    rng = random.Random(2)
    plans = list(gold())
    assert len(plans) > 100
    assert sum(bool(lacks) for needs in plans for lacks in needs.values()) > 100
    for needs in plans:
        seconds = skewed(rng, list(needs))
        plan = plan_of(needs, seconds)
        report, makespan = executed(plan)
        assert report.complete
        assert makespan == pytest.approx(bound(plan, seconds), rel=1e-9)


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


FAULTS = {"raises": "error", "hangs": "timeout", "huge": "too_large", "malformed": "result"}
TOOLS = toolbox(work, raises, hangs, huge, malformed)


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


def counting(effect: Any, fails: int = 0) -> tuple[Tool, list[int]]:
    begun: list[int] = []

    @tool(effect=effect, cost=0.5)
    async def look(at: int) -> int:
        """Looks."""
        begun.append(at)
        await asyncio.sleep(1)
        if len(begun) <= fails:
            raise OSError("no")
        return at * 2

    return look, begun


def looks(**more: Any) -> list[dict[str, Any]]:
    """Three equal calls, one of them later, and one that differs."""
    first = [
        {"id": name, "tool": "look", "arguments": {"at": at}, **more}
        for name, at in [("a", 1), ("b", 1), ("d", 2)]
    ]
    return [*first, {"id": "c", "tool": "look", "arguments": {"at": 1}, **more}, job("end", 0, ())]


def test_equal_calls_of_a_read_only_tool_are_made_once() -> None:
    look, begun = counting("read_only")
    later = {"id": "e", "tool": "look", "arguments": {"at": {"$ref": "half"}}}

    @tool
    async def half(of: int) -> int:
        """Half of it."""
        return of // 2

    plan = [*looks(), {"id": "half", "tool": "half", "arguments": {"of": {"$ref": "a"}}}, later]
    tools = toolbox(work, look, half)
    report, seconds = executed(Plan.parse(plan, tools), tools)
    assert report.complete
    assert begun == [1, 2]
    assert [value(report, name) for name in "abcde"] == [2, 2, 2, 4, 2]
    assert report.cost == 1.0
    assert seconds == pytest.approx(1.0)
    shared = report.outcomes["b"]
    assert isinstance(shared, Value)
    assert shared.attempts == 0


@pytest.mark.parametrize("effect", ["idempotent", "destructive"])
def test_other_calls_are_made_each(effect: str) -> None:
    look, begun = counting(effect)
    tools = toolbox(work, look)
    executed(Plan.parse(looks(), tools), tools)
    assert sorted(begun) == [1, 1, 1, 2]


def test_retries_of_a_call_and_never_of_a_destructive_one() -> None:
    for effect, count in (("idempotent", 3), ("destructive", 1)):
        look, begun = counting(effect, fails=2)
        tools = toolbox(look)
        plan = Plan.parse([{"id": "a", "tool": "look", "arguments": {"at": 1}, "retries": 2}], tools)
        report, _ = executed(plan, tools)
        assert len(begun) == count
        assert report.complete == (effect == "idempotent")
        assert report.cost == 0.5 * count


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


def test_a_call_starts_while_the_plan_is_still_written() -> None:
    report, seconds = streamed(job("a", 2), job("b", 0.5, ["a"]), job("c", 3))
    assert {name: timing.started for name, timing in report.timings.items()} == {"a": 0, "b": 2, "c": 2}
    assert seconds == pytest.approx(5)
    assert report.complete


def test_a_streamed_plan_gives_what_the_whole_gives() -> None:
    rng = random.Random(4)
    for _ in range(50):
        needs = random_needs(rng)
        seconds = skewed(rng, list(needs))
        jobs = [job(name, seconds[name], lacks) for name, lacks in needs.items()]
        report, _ = streamed(*jobs, pause=0.1)
        whole, _ = executed(plan_of(needs, seconds))
        assert report.outcomes == whole.outcomes


def test_a_planner_that_stops_leaves_what_it_began() -> None:
    broke = ConnectionError("the model is gone")
    report, _ = streamed(job("a", 5), job("b", 0, ["a"]), job("c", 0, ["z"]), job("d", 0, ["c"]), error=broke)
    assert value(report, "b")["inputs"] == ["a"]
    lost = report.outcomes["c"]
    assert isinstance(lost, Failed)
    assert lost.why == "plan"
    assert report.outcomes["d"] == Skipped("c")
    assert report.error is broke


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


def test_executions_share_permits_first_come_first_served() -> None:
    async def main() -> tuple[float, ...]:
        permits = asyncio.Semaphore(2)
        many = Plan.parse([job(str(i), 1) for i in range(8)], WORK)
        few = Plan.parse([job("a", 1)], WORK)
        reports = await asyncio.gather(
            *(Execution(WORK, permits=permits).run(plan) for plan in (few, many, few))
        )
        return tuple(max(t.ended or 0.0 for t in report.timings.values()) for report in reports)

    assert run(main()) == pytest.approx((1.0, 5.0, 5.0))


@pytest.mark.parametrize("shape", ["chain", "wide", "layers", "chain that fails"])
def test_ten_thousand_calls(shape: str) -> None:
    size = 10_000
    needs: dict[str, Callable[[int], list[str]]] = {
        "chain": lambda i: [str(i - 1)] if i else [],
        "chain that fails": lambda i: [str(i - 1)] if i else ["nobody"],
        "wide": lambda i: [],
        "layers": lambda i: [str(j) for j in range(max(0, i - i % 100 - 3), i - i % 100)],
    }
    plan = Plan.parse([job(str(i), 0.0, needs[shape](i)) for i in range(size)], WORK)
    report, _ = executed(plan)
    assert len(report.outcomes) == size
    assert report.complete == (shape != "chain that fails")


def test_an_execution_runs_once() -> None:
    async def main() -> None:
        execution = Execution(WORK)
        assert (await execution.run(Plan(()))).complete
        with pytest.raises(RuntimeError, match="runs once"):
            await execution.run(Plan(()))

    run(main())


def test_calls_may_be_objects() -> None:
    call = Call.parse(job("a", 0))
    assert isinstance(call, Call)
    assert streamed(call)[0].complete
