"""How single calls are made: kept over a kill, allowed, tried otherwise, and in turn with other agents'."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import stratagem as sg
from stratagem.backends.journaled import Journal
from stratagem.core.kept import InMemory
from stratagem.core.trace import ToolFinished, ToolStarted
from stratagem.testing.loops import run
from stratagem.tools.conduct import CallJournal, Conduct
from stratagem.tools.dag import Call, Plan
from stratagem.tools.executor import Execution, Report, Skipped
from stratagem.tools.tool import Failed, Value, tool, toolbox


class Bench:
    """A tool of each effect, which count how often they began and fail where told to."""

    def __init__(self, *failing: Any) -> None:
        self.began: Counter[str] = Counter()
        self.failing = failing
        self.begun = asyncio.Event()

    def tools(self) -> dict[str, sg.Tool]:
        made = []
        for effect in ("read_only", "idempotent", "destructive"):

            @sg.tool(name=effect, effect=effect)
            async def do(x: int, effect: str = effect) -> int:
                """Do it."""
                self.began[f"{effect} {x}"] += 1
                self.begun.set()
                await asyncio.sleep(0.01)
                if x in self.failing:
                    raise ValueError(f"no {x}")
                return x

            made.append(do)

        @sg.tool(effect="read_only")
        async def text() -> str:
            """A text."""
            return "text"

        made.append(text)
        return toolbox(*made)


def call(name: str, tool: str, x: Any, **more: Any) -> dict[str, Any]:
    return {"id": name, "tool": tool, "arguments": {"x": x}, **more}


def execute(bench: Bench, calls: list[dict[str, Any]], conduct: Conduct) -> Report:
    async def main() -> Report:
        tools = bench.tools()
        return await Execution(tools, conduct=conduct).run(Plan.parse(calls, tools))

    return run(main())


def journal(kept: Any) -> CallJournal:
    seen: Counter[str] = Counter()

    def occurrence(key: str) -> int:
        seen[key] += 1
        return seen[key] - 1

    return CallJournal(kept, 0, occurrence)


def test_finished_calls_are_not_made_again_failures_neither() -> None:
    bench, kept = Bench(2), InMemory()
    calls = [
        call("a", "read_only", 1), call("b", "destructive", 2), call("c", "idempotent", {"$ref": "a"}),
        call("d", "destructive", 3),
    ]  # fmt: skip
    first = execute(bench, calls, Conduct(journal=journal(kept)))
    second = execute(bench, calls, Conduct(journal=journal(kept)))
    assert set(bench.began.values()) == {1}
    for name, outcome in first.outcomes.items():
        again = second.outcomes[name]
        assert type(again) is type(outcome)
        if isinstance(outcome, Value) and isinstance(again, Value):
            assert (again.data, again.attempts) == (outcome.data, 0)
        if isinstance(outcome, Failed) and isinstance(again, Failed):
            assert (again.why, again.message, again.attempts) == (outcome.why, outcome.message, 0)


def test_the_same_call_asked_for_twice_is_two_calls_of_the_journal() -> None:
    bench, kept = Bench(), InMemory()
    calls = [call("a", "destructive", 1), call("b", "destructive", 1)]
    execute(bench, calls, Conduct(journal=journal(kept)))
    execute(bench, calls, Conduct(journal=journal(kept)))
    assert bench.began == {"destructive 1": 2}
    execute(bench, [*calls, call("c", "destructive", 1)], Conduct(journal=journal(kept)))
    assert bench.began == {"destructive 1": 3}


@pytest.mark.parametrize(("tool", "again"), [("destructive", False), ("idempotent", True)])
def test_a_call_that_was_cut_off_is_made_again_unless_that_may_do_harm(tool: str, again: bool) -> None:
    async def main() -> Report:
        bench, kept = Bench(), InMemory()
        tools = bench.tools()
        calls = [call("a", tool, 1), call("b", "read_only", {"$ref": "a"})]
        first = Execution(tools, conduct=Conduct(journal=journal(kept)))
        task = asyncio.ensure_future(first.run(Plan.parse(calls, tools)))
        await bench.begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        report = await Execution(tools, conduct=Conduct(journal=journal(kept))).run(Plan.parse(calls, tools))
        assert bench.began[f"{tool} 1"] == 1 + again
        return report

    outcomes = run(main()).outcomes
    if again:
        assert isinstance(outcomes["b"], Value)
        return
    unknown = outcomes["a"]
    assert isinstance(unknown, Failed)
    assert (unknown.why, "not called again" in unknown.message) == ("unknown", True)
    assert outcomes["b"] == Skipped("a")


KILLED = """
import asyncio, json, os, sys
from pathlib import Path
import stratagem as sg
from stratagem.backends.journaled import Journal
from stratagem.testing.language import END
from stratagem.testing.toy import ToyModel

store, log, deadly = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
PLAN = "\\n".join([f"a{i} = get({i})" for i in range(4)] + [f"b{i} = put(a{i})" for i in range(4)])

@sg.tool(effect="read_only")
async def get(x: int) -> int:
    "Get."
    return await step("get", x)

@sg.tool(effect="destructive")
async def put(x: int) -> int:
    "Put."
    return await step("put", x)

async def step(what, x):
    with log.open("a") as file:
        file.write(f"+{what}{x}\\n")
    await asyncio.sleep(0.002 * x)
    with log.open("a") as file:
        file.write(f"-{what}{x}\\n")
    if len(log.read_text().splitlines()) >= deadly:
        os.kill(os.getpid(), 9)
    return x

def says(messages, tokens):
    return {END: 1.0} if tokens else {PLAN if len(messages) == 2 else "The answer is 1.": 1.0}

async def main():
    return await sg.solve("What?", sg.DivideThenAggregate(), llm=ToyModel(says), tools=[get, put], store=store,
    run_id="r")

answer = asyncio.run(main())
print(json.dumps([[c.name, c.result, c.error] for c in answer.calls] + [answer.value]))
"""


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_random_and_resumed_no_finished_call_is_made_twice(seed: int, tmp_path: Path) -> None:
    """Kill -9 at the end of random calls, before they could be kept: a destructive one is then unknown, not
    repeated."""
    log, rng = tmp_path / "log", random.Random(seed)
    log.touch()
    command = [sys.executable, "-c", KILLED, str(tmp_path / "s.sqlite"), str(log)]
    kills = 0
    while True:
        deadly = len(log.read_text().splitlines()) + rng.randint(2, 9) if kills < 3 else 10**6
        done = subprocess.run([*command, str(deadly)], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        kills += 1
    *calls, value = json.loads(done.stdout)
    assert value == "1"
    lines = log.read_text().splitlines()
    began = Counter(line[1:] for line in lines if line[0] == "+")
    for i in range(4):
        assert began[f"put{i}"] <= 1  # whatever happened
        assert began[f"get{i}"] <= 1 + kills
    for name, result, error in calls:
        assert result == int(name[1]) or ("not called again" in error and name[0] == "b")
    unknown = sum(bool(error) for _, _, error in calls)
    assert unknown <= kills * 4


def test_a_refused_call_fails_and_one_not_decided_waits() -> None:
    async def approve(one: Call, arguments: Mapping[str, Any]) -> bool | None:
        return {1: True, 2: False, 3: None}[arguments["x"]]

    bench = Bench()
    calls = [call(f"c{x}", "destructive", x) for x in (1, 2, 3)] + [call("r", "read_only", 2)]
    report = execute(bench, calls, Conduct(approve=approve))
    assert bench.began == {"destructive 1": 1, "read_only 2": 1}
    whys = [each.why if isinstance(each, Failed) else None for each in report.outcomes.values()]
    assert sorted(filter(None, whys)) == ["refused", "waiting"]


def test_other_arguments_are_tried_after_a_failure() -> None:
    bench = Bench(1, 2)
    more = {"alternatives": [{"x": 2}, {"x": {"$ref": "b"}}, {"x": 4}]}
    calls = [
        call("a", "read_only", 1, **more),
        call("b", "read_only", 3),
        call("c", "read_only", {"$ref": "a"}),
    ]
    report = execute(bench, calls, Conduct())
    assert bench.began == {"read_only 1": 1, "read_only 2": 1, "read_only 3": 2}  # c is the same call as b
    assert report.outcomes["a"] == Value(3, 3)


def test_whoever_made_the_plan_is_asked_and_only_its_dependants_wait() -> None:
    asked: list[tuple[str, str]] = []
    order: list[str] = []

    async def ask(one: Call, failed: Failed) -> tuple[sg.Tool, Mapping[str, Any]] | None:
        asked.append((one.id, failed.message))
        await asyncio.sleep(1.0)  # in virtual time
        order.append("told")
        return (bench.tools()["read_only"], {"x": 5}) if one.id == "a" else None

    bench = Bench(1)
    calls = [
        call("a", "read_only", 1, on_failure="ask"), call("b", "read_only", {"$ref": "a"}),
        call("c", "idempotent", 1, on_failure="ask"), call("d", "idempotent", {"$ref": "c"}),
        call("e", "read_only", 9),
    ]  # fmt: skip
    report = execute(bench, calls, Conduct(ask=ask))
    assert sorted(asked) == [("a", "read_only: ValueError: no 1"), ("c", "idempotent: ValueError: no 1")]
    assert report.outcomes["b"] == Value(5)
    assert isinstance(report.outcomes["c"], Failed)
    assert report.outcomes["d"] == Skipped("c")
    ended = report.timings["e"].ended
    started = report.timings["b"].started
    assert ended is not None
    assert started is not None
    assert ended < started


def test_a_destructive_tool_that_began_is_not_tried_otherwise() -> None:
    bench = Bench(1)
    report = execute(bench, [call("a", "destructive", 1, alternatives=[{"x": 2}])], Conduct())
    assert bench.began == {"destructive 1": 1}
    assert isinstance(report.outcomes["a"], Failed)


def test_a_destructive_tool_that_never_began_may_be_tried_otherwise() -> None:
    bench = Bench()
    report = execute(bench, [call("a", "destructive", "one", alternatives=[{"x": 2}])], Conduct())
    assert isinstance(report.outcomes["a"], Failed)  # what is wrong with the plan itself is not run at all
    wrong = call("a", "destructive", {"$ref": "b"}, alternatives=[{"x": 2}])
    report = execute(bench, [wrong, {"id": "b", "tool": "text", "arguments": {}}], Conduct())
    assert report.outcomes["a"] == Value(2)
    assert bench.began == {"destructive 2": 1}


def test_the_journal_is_the_store_of_the_models_calls(tmp_path: Path) -> None:
    async def main() -> None:
        kept = Journal(tmp_path / "s.sqlite")
        await kept.of("r").remember({"k": "v"})
        await kept.of("r").remember({"k": "w"})
        assert await kept.of("r").recall(["k", "l"]) == {"k": "w"}
        assert await kept.of("s").recall(["k"]) == {}
        await kept.aclose()

    asyncio.run(main())


def test_the_trace_tells_of_calls_that_were_cancelled_or_replayed(tmp_path: Path) -> None:
    async def main() -> None:
        bench, kept, trace = Bench(), InMemory(), sg.Trace()
        tools = bench.tools()
        calls = [call("a", "read_only", 1)]
        for _ in range(2):
            conduct = Conduct(journal=journal(kept), trace=trace)
            await Execution(tools, conduct=conduct).run(Plan.parse(calls, tools))
        assert [e.replayed for e in trace.of(ToolFinished)] == [False, True]
        assert len(trace.of(ToolStarted)) == 1
        task = asyncio.ensure_future(
            Execution(tools, conduct=Conduct(trace=trace)).run(
                Plan.parse([call("b", "idempotent", 2)], tools)
            )
        )
        bench.begun.clear()
        await bench.begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert trace.of(ToolFinished)[-1].error == "cancelled"

    asyncio.run(main())


# -- money and permits ---------------------------------------------------------------------------------------


class Purse:
    """Pays as long as it can, and keeps what was settled."""

    def __init__(self, money: float) -> None:
        self.money = money
        self.spent: list[float] = []

    async def pay(self, most: float) -> Callable[[float], None]:
        if most > self.money - sum(self.spent):
            raise sg.BudgetExhausted("no money")
        return self.spent.append


def dear(began: list[int], effect: Any = "destructive") -> sg.Tool:
    @sg.tool(cost=2.0, effect=effect)
    async def buy(x: int) -> int:
        """Buy."""
        began.append(x)
        return x

    return buy


@pytest.mark.parametrize("effect", ["destructive", "read_only"])
def test_a_call_that_was_not_paid_for_is_made_when_there_is_money(effect: str) -> None:
    async def main() -> None:
        began: list[int] = []
        tools, kept = toolbox(dear(began, effect)), InMemory()
        for money, done in ((1.0, []), (2.0, [1])):
            conduct = Conduct(pay=Purse(money).pay, journal=journal(kept))
            report = await Execution(tools, conduct=conduct).run(Plan.parse([call("a", "buy", 1)], tools))
            assert began == done
            assert isinstance(report.outcomes["a"], Value) is bool(done)

    run(main())


def test_a_replayed_call_counts_in_the_budget_as_when_it_was_paid() -> None:
    async def main() -> None:
        began: list[int] = []
        tools, kept = toolbox(dear(began)), InMemory()
        for _ in range(2):
            purse = Purse(5.0)
            conduct = Conduct(pay=purse.pay, journal=journal(kept))
            await Execution(tools, conduct=conduct).run(Plan.parse([call("a", "buy", 1)], tools))
            assert (purse.spent, began) == ([2.0], [1])

    run(main())


def test_a_permit_is_free_while_somebody_is_asked() -> None:
    """With one permit, a call that waits for its approval, and one for other arguments, hold up no other."""

    async def main() -> None:
        decided, told = asyncio.Event(), asyncio.Event()

        async def approve(one: Call, arguments: Mapping[str, Any]) -> bool:
            await decided.wait()
            return True

        async def ask(one: Call, failed: Failed) -> tuple[sg.Tool, Mapping[str, Any]]:
            await told.wait()
            return tools["read_only"], {"x": 4}

        bench = Bench(1)
        tools = bench.tools()
        calls = [
            call("a", "destructive", 2), call("b", "read_only", 1, on_failure="ask"), call("c", "idempotent", 3),
        ]  # fmt: skip
        execution = Execution(tools, permits=asyncio.Semaphore(1), conduct=Conduct(approve=approve, ask=ask))
        task = asyncio.create_task(execution.run(Plan.parse(calls, tools)))
        await asyncio.sleep(10)  # in virtual time
        assert execution.report.outcomes == {"c": Value(3)}
        decided.set()
        told.set()
        report = await task
        assert report.outcomes == {"a": Value(2), "b": Value(4, 2), "c": Value(3)}

    run(main())


def test_a_call_that_was_never_let_in_is_not_unknown_when_the_run_goes_on() -> None:
    """An earlier one hangs and holds the tool's only place."""
    made: list[int] = []
    let_go = asyncio.Event()

    @tool(concurrency=1, timeout=1.0)
    async def order(x: int) -> int:
        """Order."""
        made.append(x)
        while not let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await let_go.wait()
        return x

    async def main() -> tuple[Report, Report]:
        kept, tools = InMemory(), toolbox(order)
        plan = Plan.parse([call("a", "order", 1), call("b", "order", 2)], tools)
        first = await Execution(tools, conduct=Conduct(journal=journal(kept))).run(plan)
        let_go.set()
        await asyncio.sleep(0)
        return first, await Execution(tools, conduct=Conduct(journal=journal(kept))).run(plan)

    first, second = run(main())
    failed = first.outcomes["b"]
    assert isinstance(failed, Failed)
    assert (failed.why, failed.attempts) == ("timeout", 0)
    assert second.outcomes["b"] == Value(2)
    assert made == [1, 2]


def test_what_was_begun_in_an_earlier_sitting_is_not_tried_otherwise_in_this_one() -> None:
    bench, kept = Bench(1), InMemory()
    calls = [call("a", "destructive", 1, alternatives=[{"x": 2}])]
    first = execute(bench, calls, Conduct(journal=journal(kept)))
    again = execute(bench, calls, Conduct(journal=journal(kept)))
    assert bench.began == {"destructive 1": 1}
    for report in (first, again):
        assert isinstance(report.outcomes["a"], Failed)


def test_a_call_that_is_cancelled_has_cost_what_it_began() -> None:
    @tool(effect="idempotent", retries=5, cost=1.0)
    async def fail(x: int) -> int:
        """Fail, then hang."""
        nonlocal begun
        begun += 1
        if begun == 3:
            await asyncio.sleep(1000)
        raise OSError(str(x))

    begun = 0

    async def main() -> Execution:
        tools = toolbox(fail)
        execution = Execution(tools)
        task = asyncio.create_task(execution.run(Plan.parse([call("a", "fail", 1)], tools)))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return execution

    report = run(main()).report
    failed = report.outcomes["a"]
    assert isinstance(failed, Failed)
    assert (failed.why, failed.attempts, failed.cost, report.cost) == ("cancelled", 3, 3.0, 3.0)
