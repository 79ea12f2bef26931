"""Agents with tools, against a model that plays a script: what starts when, what is read, what is answered."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence

import pytest

import stratagem as sg
from stratagem.core.backend import Message, Request, ScoreRequest
from stratagem.core.trace import CompletionArrived
from stratagem.strategies._agent import ANSWER_NOW, Agent
from stratagem.strategies.dfsdt import DFSDT
from stratagem.strategies.dta import DivideThenAggregate
from stratagem.strategies.react import ReAct
from stratagem.strategies.sequential import SequentialCalling
from stratagem.testing.language import END, Distribution, Language
from stratagem.testing.toy import ToyModel

Messages = tuple[Message, ...]


def says(reply: Callable[[Messages], str]) -> Language:
    """A language that replies so, a line (or the rest of one) a token."""

    def language(messages: Messages, tokens: tuple[str, ...]) -> Distribution:
        rest = reply(messages)[len("".join(tokens)) :]
        return {rest[: rest.find("\n") + 1] or rest or END: 1.0}

    return language


def script(*replies: str) -> Language:
    """The k-th turn of a talk; the last one again for all turns after it."""
    return says(lambda talk: replies[min(sum(m.role == "assistant" for m in talk), len(replies) - 1)])


class World:
    """Tools that note when they begin and end."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.broken = 0  # how often `price` fails at first

    def tools(self) -> list[sg.Tool]:
        @sg.tool(effect="read_only")
        async def price(item: str, wait: int = 0) -> int:
            """Price of an item."""
            self.log.append(f"+{item}")
            for _ in range(wait):
                await asyncio.sleep(0)
            if self.broken:
                self.broken -= 1
                raise ConnectionError("no reply")
            self.log.append(f"-{item}")
            return len(item)

        @sg.tool(effect="read_only", cost=2.0)
        async def add(a: int, b: int) -> int:
            """a and b together."""
            self.log.append("+add")
            return a + b

        return [price, add]


def solve(
    strategy: Agent, language: Language, world: World | None = None, **options: object
) -> tuple[sg.Answer, sg.Trace]:
    trace = sg.Trace()
    toy = ToyModel(language)
    tools = (world or World()).tools()
    answer = sg.solve_sync("What?", strategy, llm=toy, tools=tools, trace=trace, **options)  # type: ignore[arg-type]
    assert toy.books.in_flight == toy.books.permits == 0
    return answer, trace


PLAN = 'a = price("pen")\nb = price("lamp")\nc = add(a, b)'


def test_a_plan_is_a_graph_and_two_completions_answer() -> None:
    world = World()
    answer, trace = solve(DivideThenAggregate(), script(PLAN, "The answer is 7."), world)
    assert (answer.value, answer.text, answer.stopped) == ("7", "The answer is 7.", "complete")
    assert [(c.name, c.call, c.result) for c in answer.calls] == [
        ("a", 'price("pen")', 3), ("b", 'price("lamp")', 4), ("c", "add(a, b)", 7),
    ]  # fmt: skip
    assert answer.basis == ("a", "b", "c")
    assert len(trace.of(CompletionArrived)) == answer.usage.calls == 2


def test_results_are_read_in_the_order_of_calls_with_their_own_names() -> None:
    read: list[str] = []

    def reply(talk: Messages) -> str:
        read.append(talk[-1].content)
        return 'x = price("pen", wait=9)\ny = price("lamps")' if len(talk) == 2 else "The answer is 3."

    world = World()
    solve(DivideThenAggregate(), says(reply), world)
    assert world.log == ["+pen", "+lamps", "-lamps", "-pen"]
    assert read[-1] == "x = 3\ny = 5"


def test_the_first_call_starts_before_the_second_is_decoded() -> None:
    started = asyncio.Event()

    async def main() -> sg.Answer:
        @sg.tool(effect="read_only")
        async def price(item: str) -> int:
            """Price of an item."""
            started.set()
            return len(item)

        decoded = 0

        async def pace(request: Request | ScoreRequest) -> None:
            nonlocal decoded
            decoded += 1
            if decoded == 2:  # the second line of the plan
                await asyncio.wait_for(started.wait(), 10)

        toy = ToyModel(script('a = price("pen")\nb = price("lamp")', "The answer is 3."), pace=pace)
        return await sg.solve("What?", DivideThenAggregate(), llm=toy, tools=[price])

    assert asyncio.run(main()).value == "3"


def test_a_failed_call_is_read_and_written_again() -> None:
    world = World()
    world.broken = 1
    read: list[str] = []

    def reply(talk: Messages) -> str:
        read.append(talk[-1].content)
        turn = sum(m.role == "assistant" for m in talk)
        return [PLAN, 'a = price("pen")\nc = add(a, b)', "The answer is 7."][turn]

    answer, _ = solve(DivideThenAggregate(), says(reply), world)
    assert "a failed: price: ConnectionError: no reply\nb = 4\nc skipped" in read
    assert read[-1] == "a = 3\nc = 7"
    assert answer.value == "7"
    assert [c.ok for c in answer.calls] == [False, True, False, True, True]
    assert "no reply" in answer.calls[0].error
    assert set(answer.basis) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('a = prise("pen")', "There is no tool 'prise'. Known are: add, price."),
        ("a = price()", "price needs 'item'."),
        ("a = price(b)", "takes the result of 'b', which is no call"),
        ('a = price("pen"', "')' wanted"),
        ('a = price("pen", 3, 4)', "price takes 2 arguments, not 3."),
        ("a = add(a, 1)", "cycle"),
    ],
)
def test_what_is_wrong_with_a_plan_goes_back_to_the_model(line: str, words: str) -> None:
    read: list[str] = []

    def reply(talk: Messages) -> str:
        read.append(talk[-1].content)
        return f'{line}\nok = price("lamp")' if len(talk) == 2 else "The answer is 4."

    answer, _ = solve(DivideThenAggregate(constrained=False), says(reply))
    assert words in read[-1]
    assert "ok = 4" in read[-1]
    assert [c.ok for c in answer.calls] == [False, True]


def test_names_of_earlier_rounds_can_be_taken_and_words_around_calls_do_not_matter() -> None:
    language = script(
        'I look.\n```\na = price("pen")\n```\n', "Now I add.\nThe sum:\nb = add(a, 1)", "The answer is 4."
    )
    answer, _ = solve(DivideThenAggregate(constrained=False), language)
    assert [(c.name, c.result) for c in answer.calls] == [("a", 3), ("b", 4)]
    assert (answer.value, answer.basis) == ("4", ("a", "b"))


def test_a_model_that_never_answers_has_to_after_its_rounds() -> None:
    def reply(talk: Messages) -> str:
        turn = sum(m.role == "assistant" for m in talk)
        return "The answer is 3." if ANSWER_NOW in talk[-1].content else f'a = price("pen", {turn})'

    answer, trace = solve(DivideThenAggregate(rounds=3), says(reply))
    assert answer.value == "3"
    assert len(trace.of(CompletionArrived)) == 4
    assert len(answer.calls) == 3


def test_a_model_that_goes_round_in_a_circle_has_to_answer() -> None:
    """A failed call may be tried again; a turn that told nothing new is the last."""

    def reply(talk: Messages) -> str:
        turn = sum(m.role == "assistant" for m in talk)
        said = 'a = price("lamp")' if turn == 0 else 'a = price("pen")'
        return "The answer is 3." if ANSWER_NOW in talk[-1].content else said

    world = World()
    world.broken = 1  # the lamp
    answer, trace = solve(DivideThenAggregate(), says(reply), world)
    assert answer.value == "3"
    assert [c.ok for c in answer.calls] == [False, True, True]
    assert len(trace.of(CompletionArrived)) == 4


def test_one_call_a_round_is_sequential_calling() -> None:
    turns = ('a = price("pen")', 'b = price("lamp")', "c = add(a, b)", "The answer is 7.")
    one, _ = solve(SequentialCalling(), script(*turns))
    other, _ = solve(DivideThenAggregate(calls=1), script(*turns))
    assert [(c.name, c.result) for c in one.calls] == [(c.name, c.result) for c in other.calls]
    assert one.value == other.value == "7"
    react, _ = solve(
        ReAct(),
        script(
            'Thought: A.\nAction: price("pen")', 'Thought: B.\nAction: price("lamp")',
            "Thought: C.\nAction: add(3, 4)", "The answer is 7.",
        ),
    )  # fmt: skip
    assert [c.result for c in react.calls] == [c.result for c in one.calls]
    assert react.value == "7"


def test_react_stops_the_engine_at_the_end_of_the_action() -> None:
    imagined = 'Thought: A.\nAction: price("pen")\nObservation: 99\nThe answer is 99.'
    seen: list[Messages] = []

    def reply(talk: Messages) -> str:
        seen.append(talk)
        return imagined if len(talk) == 2 else "The answer is 3."

    answer, _trace = solve(ReAct(constrained=False), says(reply))
    assert answer.value == "3"
    assert seen[-1][-2:] == (
        Message("assistant", 'Thought: A.\nAction: price("pen")'), Message("user", "Observation: 3"),
    )  # fmt: skip
    assert "99" not in str(seen[-1])


def test_old_results_are_shortened_first() -> None:
    seen: list[Messages] = []

    async def text(n: int) -> str:
        """A long text."""
        return "x" * n

    def reply(talk: Messages) -> str:
        seen.append(talk)
        turn = sum(m.role == "assistant" for m in talk)
        return "The answer is 1." if turn == 3 else f"t{turn} = text({500 + turn})"

    toy = ToyModel(says(reply))
    strategy = DivideThenAggregate(result_limit=400, context_limit=700)
    sg.solve_sync("What?", strategy, llm=toy, tools=[text])
    shown = [len(m.content) for m in seen[-1] if m.role == "user"][1:]
    assert shown[-1] <= 410
    assert shown[0] < shown[1] < shown[2]
    assert sum(shown) < 800


def test_tools_that_cost_are_paid_for_before_they_are_called() -> None:
    answer, _ = solve(DivideThenAggregate(), script(PLAN, "The answer is 7."), budget="money=2")
    assert (answer.value, answer.usage.money, answer.calls[2].cost) == ("7", 2.0, 2.0)
    answer, _ = solve(DivideThenAggregate(), script(PLAN, "The answer is 0."), budget="money=1")
    assert answer.usage.money == 0.0
    assert "no money" in answer.calls[2].error
    assert answer.stopped == "budget"


def test_a_budget_that_ends_in_mid_run_gives_what_is_known() -> None:
    answer, _ = solve(DivideThenAggregate(), script(PLAN, "The answer is 7."), budget="calls=1")
    assert (answer.stopped, answer.value) == ("budget", "7")
    assert [c.ok for c in answer.calls] == [True, True, True]


def test_without_tools_it_says_what_to_do() -> None:
    with pytest.raises(sg.ConfigurationError, match="tools="):
        sg.solve_sync("What?", DivideThenAggregate(), llm=ToyModel(script(PLAN)))


def branches(talk: Messages) -> str:
    """Gives up twice after a pen; a second child of the root looks at a lamp, and answers."""
    actions = [m.content for m in talk if m.role == "assistant"]
    if not actions:
        item = "lamp" if "different" in talk[-1].content else "pen"
        return f'Thought: I look.\nAction: price("{item}")'
    return "The answer is 4." if "lamp" in actions[0] else "I give up."


def test_dfsdt_leaves_a_branch_that_was_given_up_and_asks_for_another() -> None:
    seen: list[Messages] = []

    def reply(talk: Messages) -> str:
        seen.append(talk)
        return branches(talk)

    answer, trace = solve(DFSDT(), says(reply))
    assert answer.value == "4"
    assert [e.text.splitlines()[-1] for e in trace.of(CompletionArrived)] == [
        'Action: price("pen")', "I give up.", 'Action: price("lamp")', "The answer is 4.",
    ]  # fmt: skip
    notes = [talk for talk in seen if "different" in talk[-1].content]
    assert 'price("pen"): 3' in notes[0][-1].content
    assert all("different" not in m.content for m in seen[-1][1:])  # not kept in the talk


def test_dfsdt_ends_at_its_most_turns_and_answers_from_the_deepest_branch() -> None:
    def reply(talk: Messages) -> str:
        return "The answer is 3." if ANSWER_NOW in talk[-1].content else 'Thought: A.\nAction: price("pen")'

    answer, trace = solve(DFSDT(queries=5, rounds=3), says(reply))
    assert answer.value == "3"
    assert len(trace.of(CompletionArrived)) == 6
    assert len(answer.calls) == 3


def test_dfsdt_tries_every_child_once_on_a_tree_without_an_answer() -> None:
    """Branches end at depth 2 and climb one level: 2 + 4 turns."""

    def reply(talk: Messages) -> str:
        return "The answer is 0." if ANSWER_NOW in talk[-1].content else 'Thought: A.\nAction: price("pen")'

    _, trace = solve(DFSDT(rounds=2), says(reply))
    assert len(trace.of(CompletionArrived)) == 6 + 1


def test_a_cancelled_agent_stops_its_tools() -> None:
    ended: list[str] = []

    async def main() -> None:
        begun = asyncio.Event()

        @sg.tool
        async def hang() -> int:
            """Never ends."""
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("stopped")
            return 0

        toy = ToyModel(script("a = hang()", "The answer is 1."))
        task = asyncio.ensure_future(sg.solve("What?", DivideThenAggregate(), llm=toy, tools=[hang]))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert toy.books.in_flight == 0

    asyncio.run(main())
    assert ended == ["stopped"]


def test_the_conversation_only_grows() -> None:
    seen: list[Messages] = []
    turns: Sequence[str] = ('a = price("pen")', 'b = price("lamp")', "The answer is 1.")

    def reply(talk: Messages) -> str:
        seen.append(talk)
        return turns[sum(m.role == "assistant" for m in talk)]

    solve(DivideThenAggregate(), says(reply))
    assert all(later[: len(talk)] == talk for talk, later in itertools.pairwise(seen))


def test_a_line_that_was_cut_short_is_told() -> None:
    """Half a call is not made, though it may look whole; the model reads why."""
    plan = 'a = price("pen")\nb = price("lamps", 2) else 12'
    read: list[str] = []

    def letters(messages: Messages, tokens: tuple[str, ...]) -> Distribution:
        text = plan
        if any(m.role == "assistant" for m in messages):
            read.append(messages[-1].content)
            text = "The answer is 3."
        return {text[len(tokens) : len(tokens) + 1] or END: 1.0}

    for left_out in (1, 2, 8, 10, 20):  # within the value, the word, right behind the call, within it
        read.clear()
        world = World()
        strategy = DivideThenAggregate(max_tokens=len(plan) - left_out)
        answer, _ = solve(strategy, letters, world)
        assert (answer.value, world.log) == ("3", ["+pen", "-pen"])
        assert [call.ok for call in answer.calls] == [True, False]
        assert "the turn ended within it, for it was too long" in read[-1]


def test_where_the_model_fails_in_mid_plan_the_calls_until_then_are_kept() -> None:
    world, trace = World(), sg.Trace()
    pieces = 0

    async def pace(_: Request | ScoreRequest) -> None:
        nonlocal pieces
        pieces += 1
        await asyncio.sleep(0)
        if pieces > 2:
            raise sg.BackendError("the server has died")

    toy = ToyModel(script(PLAN), pace=pace)
    with pytest.raises(sg.BackendError, match="has died"):
        sg.solve_sync("What?", DivideThenAggregate(), llm=toy, tools=world.tools(), trace=trace)
    assert trace.partial is not None
    assert (trace.partial.stopped, trace.partial.reason) == ("failed", "the server has died")
    assert [(call.name, call.result) for call in trace.partial.calls] == [("a", 3), ("b", 4)]
    assert toy.books.in_flight == 0


def test_a_name_that_was_taken_again_by_a_call_that_failed_is_no_result() -> None:
    world = World()
    plans = ('a = price("pen")', "a = add(1)", "b = add(a, 1)", "The answer is 1.")
    answer, _ = solve(DivideThenAggregate(), script(*plans), world)
    assert [(call.name, call.ok) for call in answer.calls] == [("a", True), ("a", False), ("b", False)]
    assert "which is no call" in answer.calls[2].error
