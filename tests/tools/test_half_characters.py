"""Lone surrogates, which JSON can escape and UTF-8 cannot hold, in what models and tools give: nothing fails."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import stratagem as sg
from stratagem.core.native import read_call
from stratagem.core.text import encodable
from stratagem.core.trace import JsonLines
from stratagem.testing.language import END
from stratagem.testing.server import SimCompletion, SimRequest, SimSettings, SimulatedServer
from stratagem.testing.toy import ToyModel
from stratagem.tools.dag import Call, Plan
from stratagem.tools.notation import parse
from stratagem.tools.schema_tool import schema_tool
from stratagem.tools.tool import Failed, Value

HALF = "\ud83d"
MARK = "\ufffd"


@pytest.mark.parametrize(
    ("data", "clean"),
    [
        (f"a{HALF}b", f"a{MARK}b"),
        ("\udcff\ud800", MARK * 2),
        ("\ud83d\ude00", "\U0001f600"),  # halves that a stream has torn apart
        ({HALF: [HALF, 1, (HALF, None)]}, {MARK: [MARK, 1, (MARK, None)]}),
    ],
)
def test_halves_are_marked_and_pairs_joined(data: Any, clean: Any) -> None:
    assert encodable(data) == clean


@pytest.mark.parametrize("data", ["a", "é\U0001f600", {"a": ["é", ("b",)]}, [], 7, None, b"\xff"])
def test_what_has_no_half_stays_the_same_object(data: Any) -> None:
    assert encodable(data) is data


@dataclass
class Note:
    """One."""

    text: str


async def echo(**arguments: Any) -> Any:
    """What it is given."""
    return arguments


@sg.tool(effect="read_only")
async def half(of: str) -> dict[str, str]:
    """Half a character."""
    return {HALF: of + HALF}


@sg.tool(effect="read_only")
async def note(of: str) -> Note:
    """One in an object."""
    return Note(of + HALF)


@sg.tool(effect="read_only")
async def wrong(of: str) -> str:
    """Fails."""
    raise ValueError(of + HALF)


PLAN = f'a = half("x\\ud83d")\nb = note(a["{HALF}"])\nc = wrong("{HALF}")\nd = gone("\\ud83d")'


def says(messages: tuple[sg.Message, ...], tokens: tuple[str, ...]) -> dict[str, float]:
    for message in messages:
        message.content.encode()  # a server could not be sent it
    return {END: 1.0} if tokens else {PLAN if len(messages) == 2 else f"The answer is {HALF}1.": 1.0}


def test_a_run_ends_dumps_and_goes_on(tmp_path: Path) -> None:
    def solve(budget: str) -> sg.Answer:
        trace = sg.Trace()
        log = JsonLines(tmp_path / "trace")
        trace.listeners.append(log)
        answer = sg.solve_sync(
            "What?", sg.DivideThenAggregate(), llm=ToyModel(says), tools=[half, note, wrong], budget=budget,
            store=tmp_path / "s.sqlite", run_id="r", trace=trace,
        )  # fmt: skip
        log.close()
        return answer

    stopped, answer, again = (solve(f"calls={calls}") for calls in (1, 2, 2))
    assert (stopped.stopped, answer.stopped, again.calls) == ("budget", "complete", answer.calls)
    assert sg.Answer.model_validate_json(answer.model_dump_json()) == answer
    results = [each.result for each in answer.calls]
    assert results[0] == {MARK: f"x{MARK}{MARK}"}
    assert results[1]["text"].startswith(f"x{MARK}{MARK}{MARK}")  # as pydantic dumps an object
    assert results[2:] == [None, None]
    assert answer.calls[2].error == f"wrong: ValueError: {MARK}{MARK}"
    assert answer.text == f"The answer is {MARK}1."
    for line in (tmp_path / "trace").read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["run_id"] == "r"


def test_native_calls(tmp_path: Path) -> None:
    """They are sent back to the server as they were written."""
    seen: list[int] = []

    def respond(request: SimRequest) -> list[SimCompletion]:
        seen.append(len(request.messages))
        asked = json.dumps({"name": "half", "arguments": {"of": HALF}})
        return [SimCompletion(f"<tool_call>{asked}</tool_call>" if len(seen) == 1 else "The answer is 1.")]

    async def main() -> sg.Answer:
        async with SimulatedServer(SimSettings(model="m"), responder=respond) as server:
            llm = sg.connect(server.url, model="m")
            try:
                return await sg.solve(
                    "What?", sg.DivideThenAggregate(format="native"), llm=llm, tools=[half],
                    store=tmp_path / "s.sqlite", run_id="r",
                )  # fmt: skip
            finally:
                await llm.aclose()

    answer = asyncio.run(main())
    assert answer.value == "1"
    assert [each.result for each in answer.calls] == [{MARK: MARK * 2}]
    assert answer.model_dump_json()
    assert read_call('<tool_call>{"name": "f", "arguments": {"\\ud83d": "\\ud83d"}}</tool_call>') == (
        "f", {MARK: MARK},
    )  # fmt: skip


def test_plans() -> None:
    call = parse('a = half("\\ud83d")', {"half": half})
    assert isinstance(call, Call)
    assert call.arguments == {"of": MARK}
    plan = Plan.parse('[{"id": "a", "tool": "half", "arguments": {"of": "\\ud83d"}}]', {"half": half})
    assert plan.calls[0].arguments == {"of": MARK}


def test_tools_of_others() -> None:
    tool = schema_tool("f", f"F{HALF}.", {"properties": {"a": {"default": HALF}}}, echo)
    assert json.dumps(tool.schema, ensure_ascii=False).encode()
    assert asyncio.run(tool(a=[HALF, {"b": HALF}])) == Value({"a": [MARK, {"b": MARK}]})


def test_results_of_an_mcp_server() -> None:
    pytest.importorskip("mcp")
    from stratagem.tools.mcp import mcp_tools

    child = [sys.executable, str(Path(__file__).with_name("mcp_child.py")), "raw", "result"]
    told = [{"type": "text", "text": HALF}]

    async def main(result: dict[str, Any]) -> Value | Failed:
        async with mcp_tools([*child, json.dumps(result)], timeout=20.0) as [tool]:
            return await tool()

    for result in ({"content": told}, {"content": told, "isError": True}):
        outcome = asyncio.run(main(result))
        assert (outcome.message if isinstance(outcome, Failed) else json.dumps(outcome.data)).encode()
