import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import BaseModel

from stratagem.core.backend import Backend, Message
from stratagem.core.budget import Budget, Ledger
from stratagem.core.errors import BudgetExhausted, ConfigurationError
from stratagem.core.execute import execute
from stratagem.core.protocols import Strategy
from stratagem.core.run import Run
from stratagem.core.task import Answer, Task
from stratagem.graphs import node
from stratagem.strategies.best_of_n import BestOfN
from stratagem.strategies.direct import Direct
from stratagem.strategies.self_consistency import SelfConsistency
from stratagem.testing.toy import ToyModel

QUESTION = "How many?"
VOTES = {"": {"The answer is 4.": 0.6, "The answer is 5.": 0.4}}


class State(TypedDict, total=False):
    question: Any
    answer: dict[str, Any]


def graph_of(action: Any, state: Any = State, context: Any = None, **options: Any) -> Any:
    builder = StateGraph(state, context_schema=context)
    builder.add_node("solve", action)
    builder.add_edge(START, "solve")
    builder.add_edge("solve", END)
    return builder.compile(**options)


def alone(strategy: Strategy, llm: Backend, seed: int = 0, budget: Budget | None = None) -> Answer:
    run = Run({"policy": llm}, ledger=Ledger(budget), seed=seed)
    return asyncio.run(execute(strategy, Task.of(QUESTION), run))


def test_a_node_answers_as_the_strategy_does_alone_and_writes_plain_data() -> None:
    toy = ToyModel(VOTES)
    graph = graph_of(node(SelfConsistency(n=9), llm=toy, seed=3))
    result = asyncio.run(graph.ainvoke({"question": QUESTION}))
    assert json.loads(json.dumps(result["answer"])) == result["answer"]
    answer = Answer.model_validate(result["answer"])
    expected = alone(SelfConsistency(n=9), ToyModel(VOTES), seed=3)
    assert answer.model_copy(update={"seconds": 0.0}) == expected.model_copy(update={"seconds": 0.0})
    assert answer.usage == toy.books.usage


def test_a_node_says_that_it_is_asynchronous() -> None:
    graph = graph_of(node(Direct(), llm=ToyModel()))
    with pytest.raises(TypeError, match="No synchronous function"):
        graph.invoke({"question": QUESTION})
    assert "``ainvoke``" in (node.__doc__ or "")


def test_a_node_is_named_after_its_strategy_and_is_one_node() -> None:
    builder = StateGraph(State)
    builder.add_node(node(BestOfN(n=2)))
    assert list(builder.nodes) == ["best_of_n"]


@pytest.mark.parametrize(
    "question",
    [
        QUESTION,
        Task.of(QUESTION),
        Task.of(QUESTION).model_dump(mode="json"),
        {"messages": [Message("user", QUESTION)]},
    ],
)
def test_the_question_is_a_text_a_task_or_plain_data(question: object) -> None:
    graph = graph_of(node(Direct(), llm=ToyModel({"": {"4": 1.0}})))
    assert asyncio.run(graph.ainvoke({"question": question}))["answer"]["text"] == "4"


def test_the_keys_of_the_state_can_be_chosen() -> None:
    class Other(TypedDict, total=False):
        asked: str
        said: dict[str, Any]

    graph = graph_of(
        node(Direct(), llm=ToyModel({"": {"4": 1.0}}), question_key="asked", answer_key="said"), Other
    )
    assert asyncio.run(graph.ainvoke({"asked": QUESTION}))["said"]["text"] == "4"


def test_in_a_conversation_the_last_human_message_is_the_question_and_the_reply_is_added() -> None:
    heard: list[str] = []

    def language(messages: tuple[Message, ...], tokens: tuple[str, ...]) -> Mapping[str, float]:
        heard.append(messages[0].content)
        return {"": 1.0} if tokens else {"4": 1.0}

    class Chat(MessagesState):
        answer: dict[str, Any]

    graph = graph_of(node(Direct(instruction=""), llm=ToyModel(language)), Chat)
    said = [("user", "Hello"), ("ai", "Hi"), ("user", [{"type": "text", "text": QUESTION}])]
    result = asyncio.run(graph.ainvoke({"messages": said}))
    assert set(heard) == {QUESTION}
    assert (result["messages"][-1].type, result["messages"][-1].content) == ("ai", "4")
    assert len(result["messages"]) == 4
    assert result["answer"]["text"] == "4"


def test_messages_may_be_plain_mappings() -> None:
    def add(a: list[Any], b: list[Any]) -> list[Any]:
        return a + b

    class Plain(TypedDict, total=False):
        messages: Annotated[list[Any], add]
        answer: dict[str, Any]

    graph = graph_of(node(Direct(), llm=ToyModel({"": {"4": 1.0}})), Plain)
    result = asyncio.run(graph.ainvoke({"messages": [{"role": "user", "content": QUESTION}]}))
    assert result["messages"][-1] == {"role": "assistant", "content": "4"}


class Model(BaseModel):
    question: str = QUESTION
    answer: dict[str, Any] = {}


@dataclass
class Data:
    question: str = QUESTION
    answer: dict[str, Any] | None = None


@pytest.mark.parametrize("state", [Model, Data])
def test_the_state_may_be_a_model_or_a_dataclass(state: type) -> None:
    graph = graph_of(node(Direct(), llm=ToyModel({"": {"4": 1.0}})), state)
    assert asyncio.run(graph.ainvoke(state()))["answer"]["text"] == "4"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "question_key"),
        ({"question": 7}, "'question'"),
        ({"question": ""}, "the question is empty"),
        ({"question": {"messages": [], "color": 1}}, "messages"),
    ],
)
def test_a_state_without_a_question_is_one_clear_error(state: dict[str, Any], words: str) -> None:
    graph = graph_of(node(Direct(), llm=ToyModel(VOTES)))
    with pytest.raises(ConfigurationError, match=words):
        asyncio.run(graph.ainvoke(state))


@dataclass
class Context:
    llm: Any = None
    models: Any = None


@pytest.mark.parametrize("of", [dict, Context])
@pytest.mark.parametrize("by", ["llm", "models"])
def test_models_come_from_the_runtime_context(of: Any, by: str) -> None:
    toy = ToyModel({"": {"4": 1.0}})
    context = of(**{by: toy if by == "llm" else {"policy": toy}})
    graph = graph_of(node(Direct()), context=of if of is Context else dict)
    assert asyncio.run(graph.ainvoke({"question": QUESTION}, context=context))["answer"]["text"] == "4"
    assert toy.books.usage.calls == 1


def test_models_given_to_the_node_come_first_and_need_a_policy() -> None:
    near, far = ToyModel({"": {"near": 1.0}}), ToyModel({"": {"far": 1.0}})
    graph = graph_of(node(Direct(), models={"policy": near}), context=dict)
    assert (
        asyncio.run(graph.ainvoke({"question": QUESTION}, context={"llm": far}))["answer"]["text"] == "near"
    )
    with pytest.raises(ConfigurationError, match="policy"):
        node(Direct(), models={"judge": near})


def test_records_come_through_the_custom_stream() -> None:
    graph = graph_of(node(SelfConsistency(n=3), llm=ToyModel(VOTES)), checkpointer=InMemorySaver())

    async def main() -> list[dict[str, Any]]:
        stream = graph.astream(
            {"question": QUESTION}, {"configurable": {"thread_id": "t"}}, stream_mode="custom"
        )
        return [record async for record in stream]

    records = asyncio.run(main())
    types = [record["type"] for record in records]
    assert [types[0], types[-1]] == ["run_started", "run_finished"]
    assert types.count("completion") == 3
    assert [record["number"] for record in records] == list(range(len(records)))
    assert {record["run_id"] for record in records} == {"t"}
    assert json.loads(json.dumps(records)) == records


def test_a_budget_holds_in_each_execution() -> None:
    toy = ToyModel(VOTES)
    cost = toy.prompt_tokens(Task.of(QUESTION).ask("Think step by step.")) + 3
    graph = graph_of(node(SelfConsistency(n=9, max_tokens=3), llm=toy, budget=f"tokens={2 * cost}"))

    async def main() -> list[dict[str, Any]]:
        return [(await graph.ainvoke({"question": QUESTION}))["answer"] for _ in range(2)]

    for answer in asyncio.run(main()):
        assert answer["stopped"] == "budget"
        usage = Answer.model_validate(answer).usage
        assert 0 < usage.tokens <= 2 * cost
    graph = graph_of(node(Direct(), llm=toy, budget=Budget(tokens=0)))
    with pytest.raises(BudgetExhausted):
        asyncio.run(graph.ainvoke({"question": QUESTION}))


def test_cancelling_the_graph_stops_the_engine() -> None:
    async def main() -> ToyModel:
        decoding = asyncio.Event()

        async def pace(_: object) -> None:
            decoding.set()
            await asyncio.Event().wait()

        toy = ToyModel(VOTES, pace=pace)
        graph = graph_of(node(SelfConsistency(n=4), llm=toy), checkpointer=InMemorySaver())
        before = asyncio.all_tasks()
        task = asyncio.create_task(
            graph.ainvoke({"question": QUESTION}, {"configurable": {"thread_id": "t"}})
        )
        await decoding.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == before
        return toy

    toy = asyncio.run(main())
    assert (toy.books.in_flight, toy.books.permits) == (0, 0)
    assert toy.books.aborted == 4


def test_strategies_side_by_side_run_at_the_same_time() -> None:
    class Two(TypedDict, total=False):
        question: str
        one: dict[str, Any]
        two: dict[str, Any]

    async def main() -> dict[str, Any]:
        both = asyncio.Barrier(2)
        llm = [ToyModel({"": {name: 1.0}}, pace=lambda _: both.wait()) for name in ("one", "two")]
        builder = StateGraph(Two)
        for name, model in zip(("one", "two"), llm, strict=True):
            builder.add_node(f"ask {name}", node(Direct(max_tokens=1), llm=model, answer_key=name))
            builder.add_edge(START, f"ask {name}")
            builder.add_edge(f"ask {name}", END)
        result: dict[str, Any] = await builder.compile().ainvoke({"question": QUESTION})
        return result

    result = asyncio.run(main())
    assert (result["one"]["text"], result["two"]["text"]) == ("one", "two")


@pytest.mark.skipif(
    not files("stratagem.backends.embedded").joinpath("mini/model.safetensors").is_file(),
    reason="the shipped model is not trained yet",
)
def test_without_any_model_the_shipped_one_answers() -> None:
    graph = graph_of(node(Direct(max_tokens=16)))
    for _ in range(2):  # a second event loop
        result = asyncio.run(
            graph.ainvoke({"question": "Ben has 3 apples and gets 4 more. How many has he?"})
        )
        assert result["answer"]["usage"]["completion_tokens"] > 0
