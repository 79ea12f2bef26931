"""Agents with tools on a real vLLM server: plans decoded under its regular expressions, calls begun meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel

import stratagem as sg
from stratagem.backends.vllm.server import VLLMServer
from stratagem.bench.gym.toolworld import ToolWorld
from stratagem.core.trace import CompletionArrived, ToolStarted
from stratagem.tools.dag import Call
from stratagem.tools.notation import parse
from stratagem.tools.patterns import pattern
from stratagem.tools.tool import toolbox
from stratagem.tools.toolbox import read_only

pytestmark = pytest.mark.vllm
PROBLEMS = 8


def test_plans_are_well_formed_and_begin_while_they_are_written(server: VLLMServer) -> None:
    right = plans = early = 0

    async def main() -> None:
        nonlocal right, plans, early
        llm = sg.connect(server.url, model=server.name)
        world = ToolWorld()
        for i in range(PROBLEMS):
            problem = world.problem("test", 5000 + i)
            tools = read_only(world.functions(problem))
            trace = sg.Trace()
            answer = await sg.solve(
                problem.question, sg.DivideThenAggregate(), llm=llm, tools=tools, trace=trace
            )
            right += answer.value == problem.answer
            assert all(call.tool for call in answer.calls), answer.calls  # none malformed
            order = [r.event for r in trace.records if isinstance(r.event, ToolStarted | CompletionArrived)]
            first = next(e for e in order if isinstance(e, CompletionArrived))
            if first.text.count("\n"):
                plans += 1
                early += isinstance(order[0], ToolStarted)
        await llm.aclose()

    asyncio.run(main())
    assert right >= PROBLEMS // 4
    assert early == plans > PROBLEMS // 2


class Box(BaseModel):
    """A box."""

    name: str
    size: float = 1.0
    parts: list[dict[str, int]] = []


@sg.tool
async def pack(box: Box, others: list[list[int]], note: str | None = None, more: Any = None) -> bool:
    """Pack it."""
    return bool(box and others and note and more)


@sg.tool
async def now(zone: str = "UTC", short: bool = False) -> str:
    """The time."""
    return f"{zone}{short}"


def test_the_server_decodes_nothing_but_calls(server: VLLMServer) -> None:
    """At a high temperature, of tools that the model has never seen."""
    box = toolbox(pack, now)
    one = pattern(box.values(), fallbacks=True)

    async def main() -> sg.Generation:
        llm = sg.connect(server.url, model=server.name)
        try:
            return await llm.generate(
                sg.Request(
                    (sg.Message("user", "Plan."),), n=16, max_tokens=160, temperature=1.5, seed=1,
                    constraint=sg.Constraint("regex", f"{one}(?:\\n{one}){{0,2}}"),
                )
            )  # fmt: skip
        finally:
            await llm.aclose()

    lines = [
        line
        for completion in asyncio.run(main()).completions
        for line in completion.text.split("\n")[: None if completion.finish == "stop" else -1]
    ]
    assert len(lines) >= 8
    for line in lines:
        call = parse(line, box)
        assert isinstance(call, Call), (line, call)
        assert not list(call.problems(box))
