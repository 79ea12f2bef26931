"""Secrets of tools are nowhere to be read: not in answers, failures, traces or stores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, BaseModel, SecretStr

import stratagem as sg
from stratagem.core.trace import ToolFinished
from stratagem.testing.language import END
from stratagem.testing.loops import run
from stratagem.testing.toy import ToyModel
from stratagem.tools.conduct import Conduct
from stratagem.tools.dag import Plan
from stratagem.tools.executor import Execution
from stratagem.tools.schema_tool import schema_tool
from stratagem.tools.tool import Failed, Value, toolbox


def test_secrets_are_nowhere_to_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A key of the environment in a result and in an error: not in the answer, what a trace says of calls, what the
    model reads, or the store. A secret argument: not in the answer's calls nor in what a trace says of them. What a
    model has written itself stands in the trace and the store as it is: a resumed run reads it again."""
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


def test_lines_that_are_no_calls_show_no_secrets() -> None:
    """Half a call, one with a wrong name of an argument, too many of them, an unknown tool, and a name twice."""

    @sg.tool
    async def enter(password: SecretStr, times: int) -> int:
        """Enter."""
        return len(password.get_secret_value()) * times

    plan = (
        'a = enter("hunter2", \nb = enter(passwort="hunter2")\nc = enter("hunter2", 1, "hunter2")\n'
        'd = entre("hunter2")\ne = enter("hunter2", 2)\ne = enter("hunter2", 3)\nf = enter("hunter2'
    )

    def says(messages: tuple[sg.Message, ...], tokens: tuple[str, ...]) -> Mapping[str, float]:
        return {END: 1.0} if tokens else {plan if len(messages) == 2 else "The answer is 14.": 1.0}

    trace = sg.Trace()
    answer = sg.solve_sync("What?", sg.DivideThenAggregate(), llm=ToyModel(says), tools=[enter], trace=trace)
    assert [call.ok for call in answer.calls] == [False, False, False, False, True, False, False]
    assert answer.calls[4].result == 14
    told = "".join(f"{call.call} {call.error}" for call in answer.calls)
    assert "hunter2" not in told
    assert "***" in told
    assert "hunter2" not in "".join(
        record.json() for record in trace.records if record.event.type.startswith("tool")
    )
