"""The executor against the bounds of schedules, in virtual time."""

from __future__ import annotations

import asyncio
import heapq
import json
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from stratagem.testing.loops import run
from stratagem.tools.conduct import Conduct
from stratagem.tools.dag import Call, Plan
from stratagem.tools.executor import Execution, Skipped
from stratagem.tools.notation import parse
from stratagem.tools.tool import Failed, Tool, Value, tool, toolbox
from tools_kit import (
    WORK,
    Needs,
    bound,
    executed,
    job,
    plan_of,
    random_needs,
    skewed,
    streamed,
    value,
    work,
)

NESTFUL = Path(__file__).resolve().parents[3] / "shared" / "data" / "nestful" / "nestful.jsonl"


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


@pytest.mark.parametrize("seconds", [0.0, 5.0])
def test_a_name_that_is_known_is_the_old_result_for_calls_before_it_and_the_new_one_after(
    seconds: float,
) -> None:
    """However long its calls take."""

    @tool(effect="idempotent")
    async def add(a: int, b: int) -> int:
        """The sum."""
        await asyncio.sleep(seconds)
        return a + b

    tools = toolbox(add)

    def plus(name: str, a: str, b: Any) -> dict[str, Any]:
        return {"id": name, "tool": "add", "arguments": {"a": {"$ref": a}, "b": b}}

    async def main(*calls: dict[str, Any]) -> Mapping[str, Any]:
        async def arriving() -> AsyncIterator[Any]:
            for each in calls:
                yield each

        report = await Execution(tools, known={"a": 2}).run(arriving())
        assert report.problems == []
        return {name: outcome.data for name, outcome in report.outcomes.items() if isinstance(outcome, Value)}

    y = {"$ref": "y"}
    assert run(main(plus("x", "a", 10), plus("a", "x", 100), plus("z", "a", 0))) == {
        "x": 12,
        "a": 112,
        "z": 112,
    }
    assert run(main(plus("a", "a", 10), plus("b", "a", 0))) == {"a": 12, "b": 12}
    late = run(main(plus("x", "a", y), plus("a", "a", 100), plus("y", "a", 0)))
    assert late == {"x": 2 + 102, "a": 102, "y": 102}


def test_equal_calls_of_which_one_asks_are_no_longer_one() -> None:
    """Each does after a failure what it says itself."""
    asked: list[str] = []

    @tool(effect="read_only")
    async def fail(x: int) -> int:
        """Fail."""
        raise OSError(str(x))

    async def ask(call: Call, failed: Failed) -> None:
        asked.append(call.id)

    def calls() -> Plan:
        arguments = {"tool": "fail", "arguments": {"x": 1}}
        return Plan.parse(
            [{"id": "a", **arguments}, {"id": "b", **arguments, "on_failure": "ask"}], toolbox(fail)
        )

    run(Execution(toolbox(fail), conduct=Conduct(ask=ask)).run(calls()))
    assert asked == ["b"]


def test_a_line_that_cannot_be_read_leaves_no_old_result_under_its_name() -> None:
    """Who takes it afterwards is left out; a later call of that name gives it again."""

    @tool(effect="idempotent")
    async def add(a: int, b: int) -> int:
        """The sum."""
        return a + b

    tools = toolbox(add)

    async def main(*lines: str) -> Mapping[str, Any]:
        async def arriving() -> AsyncIterator[Any]:
            for line in lines:
                yield parse(line, tools)

        report = await Execution(tools, known={"a": 99}).run(arriving())
        return report.outcomes

    assert run(main("a = add(1, 2, 3)", "b = add(a, 1)")) == {"b": Skipped("a")}
    assert run(main("a = add(1, ", "b = add(a, 1)")) == {"b": Skipped("a")}
    assert run(main("a = add(1, ", "a = add(1, 1)", "b = add(a, 1)")) == {"a": Value(2), "b": Value(3)}


def test_other_arguments_are_tried_where_a_reference_leads_nowhere_and_wait_for_nothing_that_failed() -> None:
    @tool(effect="idempotent")
    async def add(a: int, b: int) -> int:
        """The sum."""
        if a < 0:
            raise ValueError("negative")
        return a + b

    tools = toolbox(add)

    def outcomes(*lines: str) -> Mapping[str, Any]:
        async def arriving() -> AsyncIterator[Any]:
            for line in lines:
                yield parse(line, tools)

        return run(Execution(tools).run(arriving())).outcomes

    found = outcomes("p = add(1, 2)", "b = add(p.no, 2) else add(1, 2) else 0")
    assert found["b"].data == 3
    found = outcomes("q = add(-1, 0)", "b = add(1, 2) else add(q, 2)")
    assert found["b"] == Value(3)
    found = outcomes("q = add(-1, 0)", "b = add(-1, 2) else add(q, 2) else 7")
    assert found["b"].data == 7
