"""Another call in place of one: the model writes it after a failure, or whoever allows a call changes it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from typing import Any

import pytest

import stratagem as sg
from stratagem.core.backend import Message
from stratagem.core.trace import ToolFinished
from stratagem.strategies.dta import DivideThenAggregate
from stratagem.testing.language import END, Distribution
from stratagem.testing.loops import run
from stratagem.testing.toy import ToyModel

PLAN = 'a = price("pen")\nb = price("lamp")\nc = add(a, b)'


class Shop:
    """`price` fails for a pen, and asks; `spend` changes the world."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def tools(self) -> list[sg.Tool]:
        @sg.tool(effect="read_only", on_failure="ask")
        async def price(item: str) -> int:
            """Price of an item."""
            self.log.append(item)
            await asyncio.sleep(1.0)
            if item == "pen":
                raise LookupError("only in packs")
            return len(item)

        @sg.tool(effect="read_only")
        async def pack(of: str) -> int:
            """Price of a pack."""
            self.log.append(f"pack of {of}")
            return 30

        @sg.tool(effect="read_only")
        async def add(a: int, b: int) -> int:
            """a and b together."""
            return a + b

        @sg.tool
        async def spend(amount: int, to: str) -> str:
            """Pay somebody."""
            self.log.append(f"{amount} to {to}")
            return f"paid {amount}"

        return [price, pack, add, spend]


def talk(messages: tuple[Message, ...], instead: str, plan: str = PLAN) -> str:
    """What a model says that writes a plan, ``instead`` after a failure, and then the last result."""
    last = messages[-1].content
    if sum(m.role == "assistant" for m in messages) == 0:
        return plan
    if messages[-2] == Message("assistant", 'a = price("pen")'):
        assert last == "a failed: price: LookupError: only in packs"
        return instead
    return f"The answer is {last.rpartition(' ')[2]}."


def answered(instead: str, plan: str = PLAN, **options: Any) -> tuple[sg.Answer, Shop, sg.Trace]:
    def language(messages: tuple[Message, ...], tokens: tuple[str, ...]) -> Distribution:
        rest = talk(messages, instead, plan)[len("".join(tokens)) :]
        return {rest[: rest.find("\n") + 1] or rest or END: 1.0}

    shop, trace = Shop(), sg.Trace()
    # A small turn: the worst case of each is reserved.
    strategy = DivideThenAggregate(max_tokens=8)
    answer = run(
        sg.solve("What?", strategy, llm=ToyModel(language), tools=shop.tools(), trace=trace, **options)
    )
    return answer, shop, trace


@pytest.mark.parametrize(
    ("instead", "made", "value"),
    [
        ('a = price("pens")', 'price("pens")', "8"),
        ('another = pack("pen")', 'pack("pen")', "34"),
        ('a = price("pens")\nb = price("x")', 'price("pens")', "8"),
    ],
)
def test_the_model_is_asked_and_the_plan_goes_on(instead: str, made: str, value: str) -> None:
    answer, shop, trace = answered(instead)
    assert answer.value == value
    assert [(c.name, c.call, c.ok) for c in answer.calls] == [
        ("a", made, True),
        ("b", 'price("lamp")', True),
        ("c", "add(a, b)", True),
    ]
    assert answer.usage.calls == 3, "the plan, the other call, the answer"
    assert shop.log[:2] == ["pen", "lamp"]
    assert [e.error for e in trace.of(ToolFinished)][:2] in (
        ["error: price: LookupError: only in packs", ""],
    )


@pytest.mark.parametrize(
    "instead", ["The answer is 3.", 'a = price("pen")', 'a = steal("pen")', "a = price("]
)
def test_where_it_knows_none_the_call_has_failed(instead: str) -> None:
    answer, shop, _ = answered(instead)
    assert shop.log == ["pen", "lamp"]
    assert [(c.name, bool(c.error), c.skipped) for c in answer.calls] == [
        ("a", True, False),
        ("b", False, False),
        ("c", False, True),
    ]


def test_it_is_asked_once() -> None:
    """The other call fails too: what takes its result is left out, and the next turn goes on."""
    answer, _, _ = answered('a = price("pen", )')
    assert answer.calls[0].error == "price: LookupError: only in packs"
    assert answer.usage.calls == 3


def test_a_budget_without_room_for_the_question_lets_it_fail() -> None:
    whole, *_ = answered("The answer is 3.", budget="calls=9")
    assert whole.usage.calls == 3
    answer, shop, _ = answered('a = price("pens")', budget="calls=1")
    assert shop.log == ["pen", "lamp"]
    assert answer.stopped == "budget"
    assert "calls=1" in answer.reason
    assert answer.calls[0].error


@pytest.mark.parametrize(
    ("changed", "log", "call"),
    [
        (True, ["90 to Ann"], 'spend(90, "Ann")'),
        ({"amount": 9}, ["9 to Ann"], 'spend(9, "Ann")'),
        ({"amount": 9, "to": "Ben"}, ["9 to Ben"], 'spend(9, "Ben")'),
        ({"amount": "much"}, [], 'spend("much", "Ann")'),
        ({"sum": 9}, [], None),
    ],
)
def test_whoever_allows_a_call_may_change_it(
    changed: bool | Mapping[str, Any], log: list[str], call: str | None
) -> None:
    async def approve(name: str, call: str) -> bool | Mapping[str, Any] | None:
        assert (name, call) == ("a", 'spend(90, "Ann")')
        return changed

    answer, shop, _ = answered("", 'a = spend(90, "Ann")', approve=approve)
    assert shop.log == log
    [made] = answer.calls
    assert call is None or made.call == call
    assert made.ok is bool(log)
    if not log:
        assert "the changed arguments do not fit" in made.error


def test_a_changed_call_is_kept_as_it_was_made(tmp_path: Any) -> None:
    asked = 0

    async def approve(name: str, call: str) -> bool | Mapping[str, Any] | None:
        nonlocal asked
        asked += 1
        return {"amount": 9}

    def language(messages: tuple[Message, ...], tokens: tuple[str, ...]) -> Distribution:
        rest = talk(messages, "", 'a = spend(90, "Ann")')[len("".join(tokens)) :]
        return {rest[: rest.find("\n") + 1] or rest or END: 1.0}

    shop = Shop()

    def sit(budget: str) -> sg.Answer:
        return asyncio.run(
            sg.solve(
                "What?",
                DivideThenAggregate(max_tokens=8),
                llm=ToyModel(language),
                tools=shop.tools(),
                approve=approve,
                store=tmp_path / "s.sqlite",
                run_id="r",
                budget=budget,
            )
        )

    assert sit("calls=1").stopped == "budget"
    answer = sit("calls=9")
    assert answer.stopped == "complete"
    assert (asked, shop.log) == (1, ["9 to Ann"])
    assert [c.call for c in answer.calls] == ['spend(9, "Ann")']


@pytest.mark.parametrize("reply", ["a = price(nowhere)", "a = price(c)", "a = price(a)", "a = price(b)"])
def test_another_call_that_takes_what_is_not_there_is_none(reply: str) -> None:
    answer, _, _ = answered(reply)
    failed = {call.name: call.error for call in answer.calls}
    assert "only in packs" in failed["a"]
    assert not failed["b"]


def test_a_name_that_comes_again_is_asked_about_again() -> None:
    """With a store, where what the model said in place of a call is kept."""
    said = iter(['a = price("pen")', 'a = price("pens")', 'a = price("pen")', 'a = price("penny")'])
    asked: list[str] = []

    @sg.tool(effect="read_only", on_failure="ask")
    async def price(item: str) -> int:
        """Price of an item."""
        if item == "pen":
            raise LookupError("only in packs")
        return len(item)

    def language(messages: tuple[Message, ...], tokens: tuple[str, ...]) -> Distribution:
        if tokens:
            return {END: 1.0}
        asked.append(messages[-1].content)
        return {next(said, "The answer is 5."): 1.0}

    with tempfile.TemporaryDirectory() as folder:
        told = {"tools": [price], "store": f"{folder}/s.sqlite", "run_id": "r"}
        answer = asyncio.run(sg.solve("What?", sg.DivideThenAggregate(), llm=ToyModel(language), **told))
    assert [call.call for call in answer.calls] == ['price("pens")', 'price("penny")']
    assert sum("only in packs" in each for each in asked) == 2
