"""Tools in whole runs: what they cost, and whose calls are whose."""

from __future__ import annotations

from typing import Any

import pytest

import stratagem as sg
from stratagem.core.kept import InMemory
from stratagem.core.run import Run
from stratagem.testing.language import END
from stratagem.testing.loops import run
from stratagem.testing.toy import ToyModel
from stratagem.tools.tool import tool


def test_what_another_tool_cost_is_that_tools_price() -> None:
    @tool(effect="idempotent", cost=0.01, on_failure="ask")
    async def cheap(x: int) -> int:
        """Fail."""
        raise OSError(str(x))

    @tool(effect="idempotent", cost=5.0)
    async def dear(x: int) -> int:
        """Work."""
        return x

    def says(messages: tuple[sg.Message, ...], tokens: tuple[str, ...]) -> dict[str, float]:
        text = {2: "a = cheap(1)", 4: "a = dear(1)"}.get(len(messages), "The answer is 1.")
        if len(messages) == 4 and "failed" not in messages[-1].content:
            text = "The answer is 1."
        return {END: 1.0} if tokens else {text: 1.0}

    answer = sg.solve_sync("What?", sg.DivideThenAggregate(), llm=ToyModel(says), tools=[cheap, dear])
    [made] = answer.calls
    assert (made.call, made.ok) == ("dear(1)", True)
    assert made.cost == pytest.approx(5.01)
    assert answer.usage.money == pytest.approx(5.01)


def test_runs_within_a_run_do_not_take_each_others_calls_for_their_own() -> None:
    """Each of two orders once, and none twice when the run is begun again."""
    made: list[int] = []

    @sg.tool
    async def order(n: int) -> int:
        """Order."""
        made.append(n)
        return len(made)

    def says(messages: tuple[sg.Message, ...], tokens: tuple[str, ...]) -> dict[str, float]:
        return {END: 1.0} if tokens else {"a = order(1)" if len(messages) == 2 else "The answer is 1.": 1.0}

    kept = InMemory()

    async def main() -> list[Any]:
        whole = Run({"policy": ToyModel(says)}, tools=sg.Toolbox([order]), kept=kept)
        agent, task = sg.DivideThenAggregate(), sg.Task.of("What?")
        answers = await whole.map(lambda one: agent(task, one), [whole.child(), whole.child()])
        return [answer.calls[0].result for answer in answers]

    assert sorted(run(main())) == [1, 2]
    assert sorted(run(main())) == [1, 2]
    assert made == [1, 1]
