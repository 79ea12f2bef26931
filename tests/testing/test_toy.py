"""The toy model against its own enumeration and against numbers worked out by hand."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest

from stratagem.core.asking import POLICY
from stratagem.core.backend import Constraint, Message, Request, ScoreRequest
from stratagem.core.errors import BackendError, ContextLengthError, UnsupportedError
from stratagem.core.run import Run
from stratagem.core.task import Task
from stratagem.core.usage import Meter, Prices, Usage
from stratagem.testing.faults import Failing
from stratagem.testing.language import right_answer, table
from stratagem.testing.loops import StepLoop, run
from stratagem.testing.toy import CAPABLE, ToyModel

ASK = (Message("user", "How many?"),)
COIN = {"": {"yes": 0.75, "no": 0.25}}
WORDS = {"": {"a": 0.5, "b": 0.5}, "a": {"b": 0.9, "": 0.1}, "ab": {"a": 1.0}, "b": {"": 1.0}}


def test_temperature_and_nucleus_are_exact() -> None:
    toy = ToyModel(COIN)
    assert toy.enumerate("Is it?") == {"yes": 0.75, "no": 0.25}
    assert toy.enumerate("Is it?", 0.5) == pytest.approx({"yes": 0.9, "no": 0.1})
    assert toy.enumerate("Is it?", 2.0)["no"] == pytest.approx(1 / (1 + math.sqrt(3)))
    assert toy.enumerate("Is it?", 0.0) == {"yes": 1.0}
    three = ToyModel({"": {"x": 0.5, "y": 0.3, "z": 0.2}})
    assert three.enumerate("?", top_p=0.8) == pytest.approx({"x": 0.625, "y": 0.375})
    assert three.enumerate("?", top_p=0.5) == {"x": 1.0}
    assert three.enumerate("?", top_p=0.81) == pytest.approx({"x": 0.5, "y": 0.3, "z": 0.2})


def test_cuts_by_length_and_stop_string() -> None:
    toy = ToyModel(WORDS)
    assert toy.enumerate("?") == pytest.approx({"b": 0.5, "aba": 0.45, "a": 0.05})
    assert toy.enumerate("?", max_tokens=1) == pytest.approx({"a": 0.5, "b": 0.5})
    assert toy.enumerate("?", stop=("b",)) == pytest.approx({"": 0.5, "a": 0.5})
    assert toy.enumerate("?", stop=("ba",)) == pytest.approx({"b": 0.5, "a": 0.5})


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [0.6, 1.0])
def test_samples_follow_the_enumeration(temperature: float, top_p: float) -> None:
    toy = ToyModel()
    exact = toy.enumerate(ASK, temperature, top_p=top_p)
    assert math.fsum(exact.values()) == pytest.approx(1)
    request = Request(ASK, n=4000, temperature=temperature, top_p=top_p, seed=1)
    drawn = Counter(c.text for c in run(toy.generate(request)).completions)
    distance = 0.5 * sum(abs(exact.get(t, 0) - drawn[t] / 4000) for t in exact.keys() | drawn)
    assert distance < 0.03


def test_logprobs_of_a_completion_sum_to_that_of_its_text() -> None:
    toy = ToyModel(COIN)
    exact = toy.enumerate(ASK)
    for temperature in (0.5, 1.0):  # of the model's distribution at temperature 1, however it was drawn
        request = Request(ASK, n=20, temperature=temperature, logprobs=1, seed=3)
        for completion in run(toy.generate(request)).completions:
            assert math.exp(sum(t.logprob for t in completion.tokens)) == pytest.approx(
                exact[completion.text]
            )
            assert completion.tokens[0].top == (("yes", math.log(0.75)),)


def test_a_constraint_renormalises_what_is_left() -> None:
    toy = ToyModel({"": {"app": 0.2, "pear": 0.3, "fig": 0.5}, "app": {"le": 0.5, "": 0.5}})
    choice = Constraint.choice(["apple", "pear"])
    assert toy.enumerate("?", constraint=choice) == pytest.approx({"apple": 0.4, "pear": 0.6})
    never = Constraint.choice(["kiwi"])
    assert toy.enumerate("?", constraint=never) == {"kiwi": 1.0}
    with pytest.raises(UnsupportedError, match="regex"):
        run(toy.generate(Request(ASK, constraint=Constraint("regex", "a"))))


def test_a_trailing_assistant_message_is_continued() -> None:
    toy = ToyModel()
    whole = toy.enumerate(ASK)
    said = "I count.\nI check.\n"
    rest = toy.enumerate((*ASK, Message("assistant", said)))
    for text, p in rest.items():
        assert p == pytest.approx(whole[said + text] / 0.2)  # P(count) * P(check)


def test_scores_are_its_probabilities() -> None:
    toy = ToyModel(WORDS)
    scoring = run(toy.score(ScoreRequest(ASK, ("aba", "b", "ac"))))
    totals = [math.exp(math.fsum(t.logprob for t in s)) for s in scoring.scores]
    assert totals == pytest.approx([0.45, 0.5, 0.0])
    assert [t.token for t in scoring.scores[0]] == ["a", "b", "a"]
    assert scoring.usage == Usage(prompt_tokens=3 * toy.prompt_tokens(ASK) + 3 + 1 + 2, calls=1)


def test_the_arithmetic_language_judges_what_it_says() -> None:
    toy = ToyModel()
    right = right_answer("How many?")
    correct = sum(p for text, p in toy.enumerate("How many?").items() if text.endswith(f" {right}."))
    assert correct == pytest.approx(0.5 * (0.6 * 0.7 + 0.4 * 0.8) + 0.5 * (0.6 * 0.3 + 0.4 * 0.5))
    direct = Task.of("How many?").ask("Give only the answer.")
    assert toy.enumerate(direct)[f"The answer is {right}."] == pytest.approx(0.4)

    def judged(answer: str, question: str) -> dict[str, float]:
        return toy.enumerate((*ASK, Message("assistant", answer), Message("user", question)))

    assert judged(f"The answer is {right}.", "Right? Answer yes or no.")["yes"] == pytest.approx(0.9)
    assert judged("The answer is 9.", "Right? Answer yes or no.")["yes"] == pytest.approx(0.2)
    restart = "Would you do better if you started over? Answer yes or no."
    assert judged("The answer is 9.", restart)["yes"] == pytest.approx(0.8)


def test_a_table_must_hold_distributions() -> None:
    with pytest.raises(ValueError, match="after 'a'"):
        table({"": {"a": 1.0}, "a": {"b": 0.5}})


def test_what_it_does_not_admit_to_is_refused() -> None:
    toy = ToyModel(capabilities=replace(CAPABLE, logprobs=-1, prompt_logprobs=False, context=8))
    with pytest.raises(UnsupportedError, match="log-prob"):
        run(toy.generate(Request(ASK, logprobs=0)))
    with pytest.raises(UnsupportedError, match="score"):
        run(toy.score(ScoreRequest(ASK, ("a",))))
    [cut] = run(toy.generate(Request(ASK, seed=2))).completions
    assert (cut.token_count, cut.finish) == (4, "length")
    with pytest.raises(ContextLengthError, match="context of 8"):
        run(toy.generate(Request((Message("user", "How many apples are left now?"),))))


def test_an_abort_is_billed_to_the_token() -> None:
    toy = ToyModel(capabilities=replace(CAPABLE, prices=Prices(prompt=1e6, completion=3e6)))
    meter = Meter()

    async def main() -> None:
        async with toy.stream(Request(ASK, n=5, seed=0), meter) as stream:
            for _ in range(11):  # two whole steps of five siblings, and a third
                await anext(aiter(stream))
            assert toy.books.in_flight == 1

    run(main())
    prompt = toy.prompt_tokens(ASK)
    assert meter.usage == Usage(prompt, 15, calls=1, money=prompt + 45.0)
    assert toy.books.usage == meter.usage
    assert (toy.books.aborted, toy.books.in_flight, toy.books.permits) == (5, 0, 0)


def test_permits_are_handed_on_in_order_past_the_cancelled() -> None:
    order: list[int | None] = []

    async def pace(request: Request | ScoreRequest) -> None:
        if isinstance(request, Request) and request.seed not in order:
            order.append(request.seed)
        await asyncio.sleep(1)

    toy = ToyModel(COIN, permits=2, pace=pace)

    async def main() -> None:
        calls = [asyncio.create_task(toy.generate(Request(ASK, seed=i))) for i in range(6)]
        await asyncio.sleep(0.5)
        assert (toy.books.in_flight, toy.books.permits) == (6, 2)
        calls[0].cancel()
        calls[2].cancel()
        await asyncio.wait(calls)

    run(main())
    assert order == [0, 1, 3, 4, 5]
    assert (toy.books.in_flight, toy.books.permits, toy.books.peak) == (0, 0, 2)


@pytest.mark.parametrize("after", [0, 3])
def test_a_failing_backend_bills_what_was_decoded(after: int) -> None:
    toy = ToyModel()
    meter = Meter()
    failing = Failing(toy, {2}, after=after)

    async def main() -> None:
        await failing.generate(Request(ASK, seed=0))
        before = toy.books.usage
        with pytest.raises(BackendError, match="broke down"):
            await failing.generate(Request(ASK, seed=0), meter)
        assert meter.usage.completion_tokens == after
        assert toy.books.usage == before + meter.usage
        await failing.generate(Request(ASK, seed=0))

    run(main())


def test_virtual_time_orders_by_time_and_waits_for_threads() -> None:
    started = threading.Event()

    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        said: list[str] = []

        async def after(seconds: float, word: str) -> None:
            await asyncio.sleep(seconds)
            said.append(f"{word} at {loop.time():g}")

        def work() -> None:
            started.set()
            time.sleep(0.05)

        async with asyncio.TaskGroup() as group:
            group.create_task(after(3600, "late"))
            group.create_task(after(60, "soon"))
            await asyncio.to_thread(work)
            said.append(f"thread at {loop.time():g}")
        return said

    assert run(main()) == ["thread at 0", "soon at 60", "late at 3600"]
    assert started.is_set()


def test_a_planned_step_is_the_same_every_time() -> None:
    async def main(step: int) -> list[int]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, StepLoop)
        seen: list[int] = []

        async def count() -> None:
            for i in range(10):
                seen.append(i)
                await asyncio.sleep(0)

        task = asyncio.create_task(count())
        loop.plan(step, task.cancel)
        await asyncio.wait({task})
        return seen

    lengths = [len(run(main(step))) for step in range(1, 8)]
    assert lengths == [len(run(main(step))) for step in range(1, 8)]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1] < 10


def test_it_plays_every_role_of_a_run() -> None:
    toy = ToyModel()

    async def main() -> dict[str, float]:
        return await Run({POLICY: toy}).choose("Is it 3? Answer yes or no.", ("yes", "no"))

    assert run(main()) == pytest.approx({"yes": 0.6, "no": 0.4})
