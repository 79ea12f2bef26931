"""Agents as graphs: the same answer as by themselves, a checkpoint after each step, and going on from one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

import stratagem as sg
from stratagem.graphs.agents import agent_graph
from stratagem.strategies._agent import ANSWER_NOW
from stratagem.testing.language import END, Distribution
from stratagem.testing.toy import ToyModel

TURNS = ('a = size("pen")\nb = size("lamp")', "c = plus(a, b)", "The answer is 7.")
Messages = tuple[sg.Message, ...]


def language(messages: Messages, tokens: tuple[str, ...]) -> Distribution:
    turn = sum(m.role == "assistant" for m in messages)
    said = "The answer is 0." if ANSWER_NOW in messages[-1].content else TURNS[turn]
    return {END: 1.0} if tokens else {said: 1.0}


class Count:
    """Tools that count their calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.dies = False

    def box(self) -> sg.Toolbox:
        @sg.tool(effect="read_only")
        async def size(of: str) -> int:
            """Length of a word."""
            self.calls.append(of)
            return len(of)

        @sg.tool(effect="read_only")
        async def plus(a: int, b: int) -> int:
            """Their sum."""
            self.calls.append("plus")
            if self.dies:
                raise asyncio.CancelledError
            return a + b

        return sg.Toolbox([size, plus])


CONFIG: RunnableConfig = {"configurable": {"thread_id": "t"}}


def test_the_graph_answers_as_the_strategy_does_with_a_checkpoint_after_each_step() -> None:
    async def main() -> None:
        toy, strategy = ToyModel(language), sg.DivideThenAggregate()
        graph = agent_graph(strategy, Count().box(), llm=toy).compile(checkpointer=InMemorySaver())
        result = await graph.ainvoke({"question": "What?"}, CONFIG)
        answer = sg.Answer.model_validate(result["answer"])
        alone = await sg.solve("What?", strategy, llm=toy, tools=Count().box())
        assert (answer.text, answer.value, answer.basis) == (alone.text, alone.value, alone.basis)
        assert [(c.name, c.result) for c in answer.calls] == [(c.name, c.result) for c in alone.calls]
        assert answer.usage == alone.usage
        steps = [state.next async for state in graph.aget_state_history(CONFIG)]
        round_ = [("divide",), ("execute",), ("aggregate",)]
        assert steps[::-1][1:] == [*round_, *round_, ("divide",), ()]

    asyncio.run(main())


def test_a_thread_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    """Stopped before the second execution and gone on with in another graph: nothing is asked or called again."""

    async def main() -> None:
        toy, count = ToyModel(language), Count()
        async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "s.sqlite")) as saver:
            graph = agent_graph(sg.DivideThenAggregate(), count.box(), llm=toy)
            first = graph.compile(checkpointer=saver, interrupt_before=["execute"])
            await first.ainvoke({"question": "What?"}, CONFIG)
            await first.ainvoke(None, CONFIG)
            assert (count.calls, toy.books.usage.calls) == (["pen", "lamp"], 2)
            state = await graph.compile(checkpointer=saver).ainvoke(None, CONFIG)
        assert (count.calls, toy.books.usage.calls) == (["pen", "lamp", "plus"], 3)
        assert state["answer"]["value"] == "7"

    asyncio.run(main())


def test_the_last_round_has_to_answer() -> None:
    async def main() -> None:
        graph = agent_graph(sg.DivideThenAggregate(rounds=1), Count().box(), llm=ToyModel(language))
        state = await graph.compile().ainvoke(
            {"question": {"messages": [{"role": "user", "content": "What?"}]}}
        )
        assert state["answer"]["value"] == "0"
        assert len(state["answer"]["calls"]) == 2

    asyncio.run(main())


def test_the_budget_is_the_threads() -> None:
    async def main() -> None:
        for calls, stopped in ((3, "complete"), (2, "budget")):
            graph = agent_graph(
                sg.DivideThenAggregate(), Count().box(), llm=ToyModel(language), budget=f"calls={calls}"
            )
            state = await graph.compile().ainvoke({"question": "What?"})
            answer = sg.Answer.model_validate(state["answer"])
            assert (answer.stopped, answer.value, answer.usage.calls) == (stopped, "7", calls)
        graph = agent_graph(
            sg.DivideThenAggregate(), Count().box(), llm=ToyModel(language), budget="tokens=1"
        )
        with pytest.raises(sg.BudgetExhausted):
            await graph.compile().ainvoke({"question": "What?"})

    asyncio.run(main())
