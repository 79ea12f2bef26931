"""The model that the package ships, with the tools of worlds that it has never seen."""

from __future__ import annotations

import asyncio

import stratagem as sg
from stratagem.bench.gym.toolworld import ToolWorld
from stratagem.tools.toolbox import read_only


def test_it_divides_and_aggregates() -> None:
    """Greedy, on 16 worlds: a floor far under the measured figure. Without tools there is no answer to guess."""

    async def main() -> tuple[int, int]:
        world, llm = ToolWorld(), sg.connect()
        right = calls = 0
        for index in range(16):
            problem = world.problem("test", index)
            tools = read_only(world.functions(problem))
            answer = await sg.solve(problem.question, sg.DivideThenAggregate(), llm=llm, tools=tools)
            right += answer.value == problem.answer
            calls += len(answer.calls)
            assert all(call.tool for call in answer.calls), "every line of a constrained plan is a call"
        return right, calls

    right, calls = asyncio.run(main())
    assert right >= 5
    assert calls >= 32
