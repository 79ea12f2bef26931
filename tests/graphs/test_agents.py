"""Agents as graphs: the same answer as by themselves, a checkpoint after each step, and going on from one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import Command

import stratagem as sg
from stratagem.backends.journaled import Journal
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
        assert steps[::-1][1:] == [("begin",), *round_, *round_, ("divide",), ()]

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


def test_a_thread_may_be_asked_again() -> None:
    async def main() -> None:
        count = Count()
        graph = agent_graph(sg.DivideThenAggregate(), count.box(), llm=ToyModel(language))
        compiled = graph.compile(checkpointer=InMemorySaver())
        for _ in range(2):
            state = await compiled.ainvoke({"question": "What?"}, CONFIG)
            assert state["answer"]["value"] == "7"
            assert len(state["answer"]["calls"]) == 3
        assert count.calls == ["pen", "lamp", "plus"] * 2

    asyncio.run(main())


ORDER = ('a = size("pen")\nb = buy(a)\nc = buy(100)\nd = plus(b, 1)', "The answer is 1.")


class Shop(Count):
    """A tool that cannot be undone."""

    def box(self) -> sg.Toolbox:
        @sg.tool
        async def buy(n: int) -> int:
            """Buy so many."""
            self.calls.append(f"buy {n}")
            return n

        return sg.Toolbox([*super().box().tools.values(), buy])


def ordering(messages: Messages, tokens: tuple[str, ...]) -> Distribution:
    turn = sum(m.role == "assistant" for m in messages)
    return {END: 1.0} if tokens else {ORDER[turn]: 1.0}


@pytest.mark.parametrize(
    ("told", "bought", "failed"),
    [
        (True, ["buy 3", "buy 100"], []),
        (False, [], ["b", "c"]),
        ({"b": True, "c": False}, ["buy 3"], ["c"]),
        ({"b": {"n": 5}, "c": {"n": "many"}}, ["buy 5"], ["c"]),
    ],
)
def test_destructive_calls_wait_for_approval_all_in_one_interrupt(
    told: bool | dict[str, Any], bought: list[str], failed: list[str], tmp_path: Path
) -> None:
    """The graph goes on in another process's place: another saver, another graph, the journal in the same file."""

    async def main() -> None:
        shop, path = Shop(), str(tmp_path / "s.sqlite")

        async def sit(given: Any) -> dict[str, Any]:
            journal = Journal(path)
            async with AsyncSqliteSaver.from_conn_string(path) as saver:
                graph = agent_graph(
                    sg.DivideThenAggregate(),
                    shop.box(),
                    llm=ToyModel(ordering),
                    keep=journal.of,
                    ask_approval=True,
                )
                state = await graph.compile(checkpointer=saver).ainvoke(given, CONFIG)
            await journal.aclose()
            return state

        state = await sit({"question": "What?"})
        [asked] = state["__interrupt__"]
        assert asked.value == {
            "approve": [{"name": "b", "call": "buy(3)"}, {"name": "c", "call": "buy(100)"}]
        }
        assert shop.calls == ["pen"]
        state = await sit(Command(resume=told))
        answer = sg.Answer.model_validate(state["answer"])
        assert sorted(c for c in shop.calls if c.startswith("buy")) == sorted(bought)
        assert shop.calls.count("pen") == 1  # what was done before is not done again
        assert [c.name for c in answer.calls if c.error] == failed
        why = "do not fit" if told == {"b": {"n": 5}, "c": {"n": "many"}} else "not allowed"
        assert all(why in c.error for c in answer.calls if c.error)
        assert {c.name: c.call for c in answer.calls}["b"] == ("buy(5)" if "buy 5" in bought else "buy(a)")
        assert answer.calls[3].ok is ("b" not in failed)

    asyncio.run(main())


def test_an_approval_that_is_none_is_asked_for_again() -> None:
    async def main() -> None:
        graph = agent_graph(sg.DivideThenAggregate(), Shop().box(), llm=ToyModel(ordering), ask_approval=True)
        compiled = graph.compile(checkpointer=InMemorySaver())
        await compiled.ainvoke({"question": "What?"}, CONFIG)
        for nonsense in ("perhaps", {"b": True}):
            state = await compiled.ainvoke(Command(resume=nonsense), CONFIG)
            assert "resume=True" in state["__interrupt__"][0].value["error"]
        state = await compiled.ainvoke(Command(resume=True), CONFIG)
        assert state["answer"]["value"] == "1"

    asyncio.run(main())


def test_what_calls_cost_counts_once_however_often_the_graph_is_interrupted() -> None:
    async def main() -> None:
        @sg.tool(effect="read_only", cost=0.5)
        async def size(of: str) -> int:
            """Length of a word."""
            return len(of)

        @sg.tool(cost=2.0)
        async def buy(n: int) -> int:
            """Buy so many."""
            return n

        @sg.tool(effect="read_only")
        async def plus(a: int, b: int) -> int:
            """Their sum."""
            return a + b

        box = sg.Toolbox([size, buy, plus])
        graph = agent_graph(
            sg.DivideThenAggregate(), box, llm=ToyModel(ordering), ask_approval=True, budget="money=4.5"
        )
        compiled = graph.compile(checkpointer=InMemorySaver())
        await compiled.ainvoke({"question": "What?"}, CONFIG)
        await compiled.ainvoke(Command(resume="perhaps"), CONFIG)
        state = await compiled.ainvoke(Command(resume=True), CONFIG)
        answer = sg.Answer.model_validate(state["answer"])
        assert all(call.ok for call in answer.calls)
        assert (answer.usage.money, answer.stopped) == (4.5, "complete")

    asyncio.run(main())


def test_the_model_is_asked_for_another_call_once_however_often_the_graph_is_interrupted() -> None:
    """As by itself; a node that runs again has what the model said, and its cost, from what it keeps."""
    asked: list[str] = []

    def language(messages: Messages, tokens: tuple[str, ...]) -> Distribution:
        last = messages[-1].content
        if sum(m.role == "assistant" for m in messages) == 0:
            said = 'a = price("pen")\nb = buy(3)'
        elif "failed" in last:
            if not tokens:
                asked.append(last)
            said = 'a = price("pens")'
        else:
            said = "The answer is 4."
        return {END: 1.0} if tokens else {said: 1.0}

    def box() -> sg.Toolbox:
        @sg.tool(effect="read_only", on_failure="ask")
        async def price(item: str) -> int:
            """Price of an item."""
            if item == "pen":
                raise LookupError("only in packs")
            return len(item)

        @sg.tool
        async def buy(n: int) -> int:
            """Buy so many."""
            return n

        return sg.Toolbox([price, buy])

    async def main() -> None:
        toy, strategy = ToyModel(language), sg.DivideThenAggregate()
        compiled = agent_graph(strategy, box(), llm=toy, ask_approval=True).compile(
            checkpointer=InMemorySaver()
        )
        await compiled.ainvoke({"question": "What?"}, CONFIG)
        assert asked == ["a failed: price: LookupError: only in packs"]
        await compiled.ainvoke(Command(resume="perhaps"), CONFIG)
        state = await compiled.ainvoke(Command(resume=True), CONFIG)
        assert len(asked) == 1
        answer = sg.Answer.model_validate(state["answer"])
        assert [(c.call, c.ok) for c in answer.calls] == [('price("pens")', True), ("buy(3)", True)]
        assert answer.usage.tokens == toy.books.usage.tokens
        alone = await sg.solve("What?", strategy, llm=ToyModel(language), tools=box())
        assert (answer.value, answer.usage) == (alone.value, alone.usage)

    asyncio.run(main())


@pytest.mark.parametrize("kept", [False, True])
def test_another_process_repeats_no_destructive_call_unsaid(kept: bool, tmp_path: Path) -> None:
    """One that goes on before the calls of a plan cannot know, without a journal, whether they were begun."""
    bought: list[int] = []

    def language(messages: Messages, tokens: tuple[str, ...]) -> Distribution:
        said = "a = buy(3)" if sum(m.role == "assistant" for m in messages) == 0 else "The answer is 3."
        return {END: 1.0} if tokens else {said: 1.0}

    def box() -> sg.Toolbox:
        @sg.tool
        async def buy(n: int) -> int:
            """Buy so many."""
            bought.append(n)
            return n

        return sg.Toolbox([buy])

    async def main() -> sg.Answer:
        saver, journal = InMemorySaver(), Journal(tmp_path / "s.sqlite")
        keep = journal.of if kept else None
        sittings: tuple[Any, ...] = ({"question": "What?"}, None)
        state: Any = None
        for given in sittings:
            graph = agent_graph(sg.DivideThenAggregate(), box(), llm=ToyModel(language), keep=keep)
            compiled = graph.compile(checkpointer=saver, interrupt_before=["execute"] if given else None)
            state = await compiled.ainvoke(given, CONFIG)
        await journal.aclose()
        return sg.Answer.model_validate(state["answer"])

    answer = asyncio.run(main())
    [call] = answer.calls
    if kept:
        assert (bought, call.ok) == ([3], True)
    else:
        assert (bought, call.ok) == ([], False)
        assert "not allowed" in call.error


def test_an_agent_that_goes_back_is_no_graph_of_turns() -> None:
    with pytest.raises(sg.ConfigurationError, match=r"dfsdt goes back.*node\("):
        agent_graph(sg.DFSDT(), Count().box(), llm=ToyModel(language))


def test_a_model_that_names_no_calls_is_allowed_each_of_them_once() -> None:
    """Calls are numbered through the talk: what was allowed is what is made, in later turns too."""
    turns = (
        "Thought: first.\nAction: order(1)",
        "Thought: then.\nAction: order(2)",
        "The answer is 2.",
    )
    made: list[int] = []

    @sg.tool
    async def order(n: int) -> int:
        """Order."""
        made.append(n)
        return n

    def says(messages: tuple[sg.Message, ...], tokens: tuple[str, ...]) -> dict[str, float]:
        return {END: 1.0} if tokens else {turns[sum(m.role == "assistant" for m in messages)]: 1.0}

    async def main() -> None:
        graph = agent_graph(sg.ReAct(), sg.Toolbox([order]), llm=ToyModel(says), ask_approval=True)
        compiled = graph.compile(checkpointer=InMemorySaver())
        state = await compiled.ainvoke({"question": "What?"}, CONFIG)
        asked: list[Any] = []
        while "__interrupt__" in state and len(asked) < 5:
            asked += state["__interrupt__"][0].value["approve"]
            state = await compiled.ainvoke(Command(resume=True), CONFIG)
        assert asked == [{"name": "call1", "call": "order(1)"}, {"name": "call2", "call": "order(2)"}]
        assert made == [1, 2]
        assert [call["name"] for call in state["answer"]["calls"]] == ["call1", "call2"]

    asyncio.run(main())


def test_an_approval_is_of_a_call_and_not_of_a_name() -> None:
    """Other arguments, which the plan names for a failure, are asked for anew."""
    made: list[tuple[str, int]] = []

    @sg.tool
    async def order(item: str, n: int = 1) -> int:
        """Order."""
        made.append((item, n))
        return n

    def says(messages: tuple[sg.Message, ...], tokens: tuple[str, ...]) -> dict[str, float]:
        first = len(messages) == 2
        return (
            {END: 1.0}
            if tokens
            else {'b = order("pens") else order("gold", 99)' if first else "The answer is 1.": 1.0}
        )

    async def main() -> None:
        graph = agent_graph(
            sg.DivideThenAggregate(), sg.Toolbox([order]), llm=ToyModel(says), ask_approval=True
        )
        compiled = graph.compile(checkpointer=InMemorySaver())
        state = await compiled.ainvoke({"question": "What?"}, CONFIG)
        assert state["__interrupt__"][0].value["approve"] == [{"name": "b", "call": 'order("pens")'}]
        state = await compiled.ainvoke(Command(resume={"b": {"n": "three"}}), CONFIG)  # which does not fit
        assert state["__interrupt__"][0].value["approve"] == [{"name": "b", "call": 'order("gold", 99)'}]
        await compiled.ainvoke(Command(resume=False), CONFIG)
        assert made == []

    asyncio.run(main())


def test_a_graph_that_forgets_makes_no_call_that_another_may_have_begun_whatever_was_allowed() -> None:
    made: list[int] = []
    begun = asyncio.Event()

    @sg.tool
    async def order(n: int) -> int:
        """Order."""
        made.append(n)
        begun.set()
        await asyncio.sleep(60)
        return n

    def says(messages: tuple[sg.Message, ...], tokens: tuple[str, ...]) -> dict[str, float]:
        return {END: 1.0} if tokens else {"b = order(1)" if len(messages) == 2 else "The answer is 1.": 1.0}

    async def main() -> None:
        saver = InMemorySaver()

        def graph() -> Any:
            box = sg.Toolbox([order])
            made_of = agent_graph(sg.DivideThenAggregate(), box, llm=ToyModel(says), ask_approval=True)
            return made_of.compile(checkpointer=saver)

        first = graph()
        await first.ainvoke({"question": "What?"}, CONFIG)
        task = asyncio.create_task(first.ainvoke(Command(resume=True), CONFIG))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        state = await graph().ainvoke(None, CONFIG)
        assert made == [1]
        assert "not allowed" in state["answer"]["calls"][0]["error"]

    asyncio.run(main())
