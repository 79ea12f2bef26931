"""Native calls of tools, over HTTP against the simulated server: parallel calls, results, resume, errors."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

import stratagem as sg
from stratagem.core.native import as_call, read_call
from stratagem.testing.server import SimCompletion, SimRequest, SimSettings, SimulatedServer, tokenize

FLAVOURS = ("vllm", "openai")


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


class Script:
    """A model that plays turns, and keeps what it was asked."""

    def __init__(self, *turns: str) -> None:
        self.turns = turns
        self.seen: list[SimRequest] = []

    def __call__(self, request: SimRequest) -> list[SimCompletion]:
        self.seen.append(request)
        return [SimCompletion(self.turns[sum(m["role"] == "assistant" for m in request.messages)])]


def tools() -> list[sg.Tool]:
    @sg.tool(effect="read_only")
    async def size(of: str) -> int:
        """Length of a word."""
        if of == "moon":
            raise ValueError("too far")
        return len(of)

    @sg.tool(effect="read_only")
    async def note(text: str, tags: list[str]) -> dict[str, Any]:
        """Note a text."""
        return {"text": text, "tags": tags}

    return [size, note]


def solve(script: Script, flavour: Any = "vllm", strategy: Any = None, **options: Any) -> sg.Answer:
    async def main() -> sg.Answer:
        async with SimulatedServer(SimSettings(model="m", flavour=flavour), responder=script) as server:
            llm = sg.connect(server.url, model="m")
            try:
                return await sg.solve(
                    "What?",
                    strategy or sg.DivideThenAggregate(format="native"),
                    llm=llm,
                    tools=tools(),
                    **options,
                )
            finally:
                await llm.aclose()

    return asyncio.run(main())


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_parallel_calls_and_their_results(flavour: str) -> None:
    script = Script(
        "I look.\n" + call("size", of="pen") + "\n" + call("note", text='say "hi"\nnow', tags=["a", "b"]),
        call("size", of="moon"),
        "The answer is 3.",
    )
    answer = solve(script, flavour)
    assert (answer.value, answer.usage.calls) == ("3", 3)
    assert [(c.name, c.tool, c.result) for c in answer.calls] == [
        ("call1", "size", 3), ("call2", "note", {"text": 'say "hi"\nnow', "tags": ["a", "b"]}),
        ("call3", "size", None),
    ]  # fmt: skip
    assert answer.basis == ("call1",)
    first, second, third = script.seen
    assert [t["function"]["name"] for t in first.body["tools"]] == ["size", "note"]
    assistant, *results = second.messages[-3:]
    assert assistant["content"] == "I look."
    calls = assistant["tool_calls"]
    assert [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls] == [
        ("size", {"of": "pen"}), ("note", {"text": 'say "hi"\nnow', "tags": ["a", "b"]}),
    ]  # fmt: skip
    assert [(m["role"], m["tool_call_id"]) for m in results] == [("tool", c["id"]) for c in calls]
    assert results[0]["content"] == "3"
    assert "too far" in third.messages[-1]["content"]


def test_one_call_at_a_time() -> None:
    script = Script(call("size", of="pen") + "\n" + call("size", of="lamp"), "The answer is 3.")
    answer = solve(script, strategy=sg.SequentialCalling(format="native"))
    assert [c.result for c in answer.calls] == [3]


def test_the_last_turn_may_call_nothing() -> None:
    """The tools stay in the prompt, for the prefix cache; the server is told that none may be called."""
    script = Script(call("size", of="pen"), call("size", of="lamp"))
    answer = solve(script, strategy=sg.DivideThenAggregate(format="native", rounds=1))
    assert [request.body.get("tool_choice") for request in script.seen] == [None, "none"]
    assert script.seen[1].body["tools"] == script.seen[0].body["tools"]
    assert [c.result for c in answer.calls] == [3]


def test_a_run_that_is_resumed_asks_for_nothing_twice(tmp_path: Path) -> None:
    script = Script(call("size", of="pen"), "The answer is 3.")

    async def main() -> list[sg.Answer]:
        async with SimulatedServer(SimSettings(model="m"), responder=script) as server:
            llm = sg.connect(server.url, model="m")
            found = [
                await sg.solve(
                    "What?", sg.DivideThenAggregate(format="native"), llm=llm, tools=tools(), budget=budget,
                    store=tmp_path / "s.sqlite", run_id="r",
                )
                for budget in ("calls=1", "calls=2")
            ]  # fmt: skip
            await llm.aclose()
            return found

    stopped, answer = asyncio.run(main())
    assert (stopped.stopped, stopped.value) == ("budget", "3")
    assert (answer.stopped, answer.value, answer.usage.calls) == ("complete", "3", 2)
    assert len(script.seen) == 2


def test_a_call_that_is_none_is_read_by_the_model() -> None:
    script = Script(call("sise", of="pen") + "\n" + call("size", off="pen"), "The answer is 0.")
    answer = solve(script)
    assert "no tool 'sise'" in answer.calls[0].error
    assert "no parameter 'off'" in answer.calls[1].error


@pytest.mark.parametrize(("flavour", "why"), [("vllm", "wanted"), ("openai", "the turn ended within it")])
def test_a_call_that_was_cut_short_is_told_and_is_no_answer(flavour: str, why: str) -> None:
    """It has no place for a result, so the user tells; of vLLM only the half call itself does."""
    half = '<tool_call>{"name": "size", "arguments": {"of": "pe'
    plan = call("size", of="lamp") + "\n" + half
    script = Script(plan + 'n"}}</tool_call>', "The answer is 4.")
    strategy = sg.DivideThenAggregate(format="native", max_tokens=len(tokenize(plan)))
    answer = solve(script, flavour, strategy)
    assert (answer.value, [c.ok for c in answer.calls]) == ("4", [True, False])
    *_, assistant, result, user = script.seen[1].messages
    assert [c["function"]["name"] for c in assistant["tool_calls"]] == ["size"]
    assert (result["role"], result["content"], user["role"]) == ("tool", "4", "user")
    assert "failed" in user["content"]
    assert "<tool_call>" in user["content"]
    assert why in user["content"]


def test_data_that_looks_like_a_reference_stays_data() -> None:
    script = Script(call("note", text="x", tags=[{"$ref": "call1"}]), "The answer is 0.")
    answer = solve(script)
    assert "tags" in answer.calls[0].error  # a list of strings is wanted, and no call is waited for


def test_where_there_are_none_it_says_so() -> None:
    with pytest.raises(sg.ConfigurationError, match="format='lines'"):
        sg.solve_sync("What?", sg.DivideThenAggregate(format="native"), tools=tools())
    with pytest.raises(sg.ConfigurationError, match="use 'lines'"):
        sg.Strategy.load({"kind": "react", "format": "native"})


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ('<tool_call>{"name": "f", "arguments": {"a": "x = g()", "b": [1, null]}}</tool_call>',
         'f(a="x = g()", b=[1, null])'),
        ('  <tool_call>{"name": "a-b.c", "arguments": {}}</tool_call> ', "a_b_c()"),
        ('<tool_call>{"name": "f"}</tool_call>', "f()"),
        ("<tool_call>{</tool_call>", "<tool_call>{</tool_call>"),
        ('<tool_call>{"name": 3}</tool_call>', '<tool_call>{"name": 3}</tool_call>'),
        ('<tool_call>[1]</tool_call>', '<tool_call>[1]</tool_call>'),
        ("f(1)", None),
    ],
)  # fmt: skip
def test_lines_as_calls(line: str, read: str | None) -> None:
    assert as_call(line) == read
    assert (read_call(line) is None) == (read in (None, line))
