"""How single calls are made: kept over a kill, allowed, tried otherwise, and in turn with other agents'."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, SecretStr

import stratagem as sg
from stratagem.backends.journaled import Journal
from stratagem.core.kept import InMemory
from stratagem.core.trace import ToolFinished, ToolStarted
from stratagem.testing.language import END
from stratagem.testing.loops import run
from stratagem.testing.toy import ToyModel
from stratagem.tools.conduct import CallJournal, Conduct
from stratagem.tools.dag import Call, Plan
from stratagem.tools.executor import Execution, Report, Skipped
from stratagem.tools.fair import FairPermits
from stratagem.tools.schema_tool import schema_tool
from stratagem.tools.tool import Failed, Value, toolbox


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

    return CallJournal(kept, occurrence)


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

    async def ask(one: Call, failed: Failed) -> Mapping[str, Any] | None:
        asked.append((one.id, failed.message))
        await asyncio.sleep(1.0)  # in virtual time
        order.append("told")
        return {"x": 5} if one.id == "a" else None

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


# -- permits in turn -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4), st.lists(st.integers(1, 12), min_size=1, max_size=5), st.randoms(use_true_random=False)
)
def test_permits_go_round_the_shares_that_wait(permits: int, sizes: list[int], rng: random.Random) -> None:
    """Between two turns of a share that waits, every other share that waits gets at most one."""

    async def main() -> None:
        fair = FairPermits(permits)
        order: list[int] = []
        held = 0

        async def one(owner: int, share: Any) -> None:
            nonlocal held
            async with share:
                held += 1
                assert held <= permits
                order.append(owner)
                await asyncio.sleep(1.0)
                held -= 1

        async with asyncio.TaskGroup() as group:
            for owner, size in enumerate(sizes):
                share = fair.share()
                for _ in range(size):
                    group.create_task(one(owner, share))
        assert Counter(order) == Counter(dict(enumerate(sizes)))
        left = Counter(dict(enumerate(sizes)))
        for owner in order[:permits]:
            left[owner] -= 1
        last: list[int] = []
        for owner in order[permits:]:
            waiting = {other for other, n in left.items() if n > 0}
            since = last[-(last[::-1].index(owner)) :] if owner in last and last[-1] != owner else []
            assert all(n == 1 for n in Counter(since).values())
            if owner in last and last[-1] == owner:
                assert waiting == {owner}
            left[owner] -= 1
            last.append(owner)
        async with fair.share():  # all are back
            pass

    run(main())


def test_an_agent_with_a_thousand_calls_does_not_starve_one_with_three() -> None:
    async def main() -> tuple[int, int]:
        fair = FairPermits(4)
        many, few = fair.share(), fair.share()
        done = [0, 0]

        async def one(owner: int, share: Any) -> None:
            async with share:
                await asyncio.sleep(1.0)
                done[owner] += 1

        async with asyncio.TaskGroup() as group:
            crowd = [group.create_task(one(0, many)) for _ in range(1000)]
            await asyncio.sleep(0.5)
            await asyncio.wait([group.create_task(one(1, few)) for _ in range(3)])
            before = done[0]
            for task in crowd:
                task.cancel()
        return before, done[1]

    before, few = run(main())
    assert few == 3
    assert before <= 16


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.randoms(use_true_random=False))
def test_permits_come_back_whoever_is_cancelled_when(permits: int, rng: random.Random) -> None:
    async def main() -> None:
        fair = FairPermits(permits)
        shares = [fair.share() for _ in range(3)]

        async def one(share: Any) -> None:
            async with share:
                await asyncio.sleep(rng.choice((0, 1, 2)))

        tasks = [asyncio.ensure_future(one(rng.choice(shares))) for _ in range(20)]
        for _ in range(10):
            await asyncio.sleep(rng.choice((0, 1)))
            rng.choice(tasks).cancel()
        await asyncio.wait(tasks)
        async with asyncio.timeout(1.0), fair.share():
            for _ in range(permits - 1):
                await fair.share().__aenter__()

    run(main())


def test_no_permit_is_refused() -> None:
    with pytest.raises(sg.ConfigurationError, match="at least one"):
        FairPermits(0)


# -- traces and secrets ------------------------------------------------------------------------------------


def test_secrets_are_nowhere_to_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A key of the environment in a result and in an error, and a secret argument: not in the answer, the trace,
    what the model reads, or the store."""
    monkeypatch.setenv("SHOP_KEY", "sk-1234567")
    read: list[str] = []

    @sg.tool(effect="read_only", needs=("SHOP_KEY",))
    async def look(item: str) -> dict[str, Any]:
        """Look."""
        key = os.environ["SHOP_KEY"]
        if item == "moon":
            raise PermissionError(f"401 for {key}")
        return {"item": item, "as": [f"key {key}"], key: 1}

    @sg.tool
    async def enter(password: SecretStr, times: int) -> int:
        """Enter."""
        return len(password.get_secret_value()) * times

    def says(messages: tuple[sg.Message, ...], tokens: tuple[str, ...]) -> Mapping[str, float]:
        read.append(messages[-1].content)
        plan = 'a = look("pen")\nb = look("moon")\nc = enter("hunter2", 2)'
        return {END: 1.0} if tokens else {plan if len(messages) == 2 else "The answer is 14.": 1.0}

    trace = sg.Trace()
    answer = sg.solve_sync(
        "What?", sg.DivideThenAggregate(), llm=ToyModel(says), tools=[look, enter], trace=trace,
        store=tmp_path / "s.sqlite", run_id="r",
    )  # fmt: skip
    assert [c.result for c in answer.calls] == [{"item": "pen", "as": ["key ***"], "***": 1}, None, 14]
    assert answer.calls[1].error == "look: PermissionError: 401 for ***"
    assert answer.calls[2].call == 'enter("***", 2)'
    told = [(e.name, e.call, e.error) for e in trace.of(ToolFinished)]
    assert ("c", 'enter("***", 2)', "") in told
    assert ("b", 'look("moon")', "error: look: PermissionError: 401 for ***") in told
    events = "\n".join(record.json() for record in trace.records if record.event.type.startswith("tool"))
    assert "sk-1234567" not in events + read[-1] + answer.model_dump_json()
    assert "hunter2" not in events
    assert b"sk-1234567" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


class Login(BaseModel):
    user: str
    password: SecretStr


def _long_enough(value: SecretStr) -> SecretStr:
    raise ValueError(f"{value.get_secret_value()} is too short")


def test_a_secret_in_any_shape_is_masked() -> None:
    """One that another holds, one inside a type, one with signs that the notation escapes, and one where a trace
    cuts."""

    cut = "s3cret" * 200

    @sg.tool(effect="read_only", secrets=("key", "key-long", 'q"\n', cut))
    async def enter(login: Login | None, pin: SecretStr | None, note: str) -> str:
        """Enter."""
        known = login and login.password.get_secret_value()
        if note == "fail":
            raise ValueError(f"no {known} {pin and pin.get_secret_value()}")
        return f"{known} {note}"

    assert enter.hidden == {"login", "pin"}
    assert "secrets" not in repr(enter)
    login = {"user": "ann", "password": "hunter2"}

    async def main() -> None:
        assert await enter(login=login, pin=None, note="key-long key") == Value("*** *** ***")
        failed = await enter(login=login, pin="0042", note="fail")
        assert isinstance(failed, Failed)
        assert failed.message == "enter: ValueError: no *** ***"
        assert "hunter2" in str(failed.error)  # for whoever debugs, but not where it is printed
        assert "hunter2" not in repr(failed)
        trace = sg.Trace()
        tools = toolbox(enter)
        calls = [
            {"id": str(i), "tool": "enter", "arguments": {"login": login, "pin": None, "note": note}}
            for i, note in enumerate(('a q"\n', "x" * 940 + cut))
        ]
        await Execution(tools, conduct=Conduct(trace=trace)).run(Plan.parse(calls, tools))
        told = [event.call for event in trace.of(ToolFinished)]
        assert told == [f'enter("***", "***", "{note}***")' for note in ("a ", "x" * 940)]

    run(main())


def test_arguments_that_do_not_fit_are_told_without_secrets() -> None:
    @sg.tool
    async def enter(password: Annotated[SecretStr, AfterValidator(_long_enough)]) -> None:
        """Enter."""

    async def anything(**arguments: Any) -> None:
        """Nothing."""

    schema = {"properties": {"password": {"type": "string", "minLength": 9, "writeOnly": True}}}
    for each in (enter, schema_tool("enter", "Enter.", schema, anything)):
        failed = run(each(password="hunter2"))
        assert isinstance(failed, Failed)
        assert (failed.why, "***" in failed.message, "hunter2" in failed.message) == (
            "arguments",
            True,
            False,
        )


def test_the_trace_tells_what_a_call_cost() -> None:
    async def main() -> None:
        @sg.tool(effect="read_only", cost=0.5, retries=2)
        async def flaky() -> int:
            """Fails."""
            raise ValueError("no")

        trace, tools = sg.Trace(), toolbox(flaky)
        plan = Plan.parse([{"id": "a", "tool": "flaky", "arguments": {}, "retries": 2}], tools)
        report = await Execution(tools, conduct=Conduct(trace=trace)).run(plan)
        assert [event.cost for event in trace.of(ToolFinished)] == [1.5] == [report.cost]

    run(main())


def test_a_tool_without_its_key_is_an_error_where_it_is_defined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOP_KEY", raising=False)
    with pytest.raises(sg.ConfigurationError, match="needs SHOP_KEY"):

        @sg.tool(needs=("SHOP_KEY",))
        async def look() -> int:
            """Look."""
            return 1


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
