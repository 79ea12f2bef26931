"""The run: exact numbers against the toy model, seeds under any interleaving, errors at their boundary."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from stratagem.core.asking import JUDGE, POLICY, Sampling
from stratagem.core.backend import Backend, Constraint, Generation, Message, Request, ScoreRequest
from stratagem.core.budget import Budget, Ledger
from stratagem.core.errors import (
    BackendError,
    BudgetExhausted,
    ConfigurationError,
    ProtocolError,
    StrategyError,
    UnsupportedError,
    VerifierError,
)
from stratagem.core.execute import execute
from stratagem.core.protocols import Strategy, Verdict, Verifier
from stratagem.core.run import Run
from stratagem.core.task import Answer, Candidate, Task
from stratagem.core.trace import CallFinished, CallStarted, CompletionArrived, RunFinished, Trace, Verified
from stratagem.core.usage import Meter, Prices, Usage
from stratagem.testing.faults import Failing
from stratagem.testing.loops import run
from stratagem.testing.toy import CAPABLE, ToyModel, ToyStream, jittered

TASK = Task.of("How many apples are left?")
SHORT = Sampling(max_tokens=20)


def of(toy: ToyModel, budget: Budget | None = None, **options: Any) -> Run:
    return Run({POLICY: toy}, ledger=Ledger(budget), **options)


async def strategy_run(algorithm: Any, toy: ToyModel | None = None, budget: Budget | None = None) -> Answer:
    class Inline(Strategy):
        kind: ClassVar[str] = "inline"

        async def __call__(self, task: Task, run: Run) -> Answer:
            answer: Answer = await algorithm(task, run)
            return answer

    clock = asyncio.get_running_loop().time
    return await execute(Inline(), TASK, Run({POLICY: toy or ToyModel()}, ledger=Ledger(budget, clock=clock)))


def test_sampling_is_the_models_distribution_and_costs_what_it_costs() -> None:
    toy = ToyModel({"": {"yes": 0.75, "no": 0.25}})
    outer = of(toy)
    drawn = run(outer.sample(TASK, 2000, sampling=SHORT))
    share = Counter(c.text for c in drawn)["yes"] / 2000
    assert abs(share - 0.75) < 3 * math.sqrt(0.75 * 0.25 / 2000)
    # One prompt, and for each completion its word and its end.
    assert outer.ledger.spent == Usage(toy.prompt_tokens(TASK), 4000, calls=1) == toy.books.usage


def test_siblings_that_are_one_call_need_no_budget_for_more() -> None:
    apart = ToyModel(
        capabilities=replace(CAPABLE, one_call=False)
    )  # it might have sent the first two on their own
    for toy, drawn, calls in ((ToyModel(), 16, 1), (apart, 3, 2)):
        outer = of(toy, Budget(calls=2))
        assert len(run(outer.sample(TASK, 16, sampling=SHORT))) == drawn
        assert outer.ledger.spent.calls == toy.books.usage.calls == calls
        assert outer.ledger.idle


def test_one_call_for_siblings_is_never_overspent() -> None:
    toy = ToyModel()
    outer = of(toy, Budget(calls=3, tokens=10_000))

    async def main() -> list[object]:
        asked = (outer.sample(f"Question {i}", 8, sampling=SHORT) for i in range(9))
        return await asyncio.gather(*asked, return_exceptions=True)

    ended = run(main())
    assert sum(isinstance(each, BudgetExhausted) for each in ended) == 6
    assert outer.ledger.spent.calls == toy.books.usage.calls == 3


PRICED = replace(CAPABLE, prices=Prices(prompt=1e6, completion=1e6))  # 1 a token


def test_a_budget_of_money_needs_a_price() -> None:
    with pytest.raises(ConfigurationError, match=r"toy has no prices.*money.*--price-in"):
        run(of(ToyModel(), Budget(money=5)).sample(TASK))
    with pytest.raises(ConfigurationError, match="toy has no prices"):
        run(of(ToyModel(), Budget(money=5)).score(TASK, ["yes"]))
    paid, free = ToyModel(capabilities=PRICED), ToyModel()
    both = Run({POLICY: paid, JUDGE: free}, ledger=Ledger(Budget(money=100)))

    async def main() -> None:
        await both.sample(TASK, sampling=SHORT)
        await both.choose(TASK, ["yes", "no"])  # costs nothing, which is fine beside one that does

    run(main())
    assert 0 < both.ledger.spent.money == paid.books.usage.tokens <= 100
    assert free.books.usage.calls > 0


@pytest.mark.parametrize("proposes", [True, False])
def test_a_cancelled_run_leaves_its_best_so_far_in_the_trace(proposes: bool) -> None:
    class Slow(Strategy):
        kind: ClassVar[str] = "test_slow"

        async def __call__(self, task: Task, run: Run) -> Answer:
            first, second = await run.sample(task, 2, sampling=SHORT)
            if proposes:
                run.propose(Answer.of(first.scored(judge=0.9), (first.scored(judge=0.9), second), 0.9))
            await asyncio.Event().wait()
            raise AssertionError

    async def main() -> tuple[Answer, Run]:
        outer = of(ToyModel(), run_id="r1")
        asked = asyncio.create_task(execute(Slow(), TASK, outer))
        for _ in range(100):
            await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert outer.trace.partial is not None
        return outer.trace.partial, outer

    partial, outer = run(main())
    assert (partial.stopped, partial.run_id, partial.usage) == ("cancelled", "r1", outer.ledger.spent)
    assert partial.usage.tokens > 0
    assert len(partial.candidates) == (2 if proposes else 0)
    assert partial.text == (partial.candidates[0].text if proposes else "")
    assert [c.scores for c in partial.candidates] == ([{"judge": 0.9}, {}] if proposes else [])


def test_candidates_carry_answer_logprob_and_prompt() -> None:
    toy = ToyModel()
    [candidate] = run(of(toy).sample(TASK, sampling=Sampling(max_tokens=20, logprobs=0)))
    assert candidate.answer == candidate.text[-2]
    assert candidate.logprob is not None
    assert math.exp(candidate.logprob) == pytest.approx(toy.enumerate(TASK)[candidate.text])
    assert candidate.prompt == TASK.messages
    assert candidate.token_count == len(candidate.tokens)


def test_seeds_do_not_depend_on_interleaving() -> None:
    async def main(shuffle: int) -> list[list[str]]:
        toy = ToyModel(pace=jittered(shuffle, most=9), permits=1 + shuffle % 3)
        outer = of(toy, seed=5)

        async def work(number: int) -> list[str]:
            first = await outer.sample(f"Question {number}?", 2, sampling=SHORT)
            then = await outer.sample(first[0].text, sampling=SHORT)
            return [c.text for c in first + then]

        return await outer.map(work, range(8))

    expected = run(main(0))
    assert all(run(main(shuffle)) == expected for shuffle in range(1, 8))
    assert len({text for texts in expected for text in texts}) > 8


def test_asking_again_draws_again_and_another_seed_draws_another() -> None:
    async def texts(outer: Run) -> list[str]:
        return [(await outer.sample(TASK, sampling=SHORT))[0].text for _ in range(12)]

    first = run(texts(of(ToyModel(), seed=1)))
    assert len(set(first)) > 3
    assert run(texts(of(ToyModel(), seed=1))) == first
    assert run(texts(of(ToyModel(), seed=2))) != first


def test_then_runs_while_siblings_are_decoded() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def pace(_: object) -> None:
            await asyncio.sleep(1)

        toy = ToyModel({"": {"a": 0.5, "b": 0.5}, "b": {"b": 1.0}, "bb": {"b": 1.0}}, pace=pace)
        started: list[tuple[str, float]] = []

        async def then(candidate: Candidate) -> Candidate:
            started.append((candidate.text, loop.time()))
            await asyncio.sleep(2)
            return candidate.scored(seen=1.0)

        drawn = await of(toy).sample(TASK, 6, sampling=SHORT, then=then)
        assert {t for _, t in started} == {2.0, 4.0}  # "a" ends at 2, "bbb" at 4
        assert loop.time() == 6.0
        assert all(c.scores == {"seen": 1.0} for c in drawn)
        assert [c.text for c in drawn] == [c.text for c in await of(toy).sample(TASK, 6, sampling=SHORT)]

    run(main())


def test_then_out_of_budget_keeps_the_candidate() -> None:
    async def main() -> None:
        toy = ToyModel()
        outer = of(toy, Budget(calls=3))

        async def then(candidate: Candidate) -> Candidate:
            await outer.sample(candidate.text, sampling=SHORT)
            return candidate.scored(judged=1.0)

        drawn = await outer.sample(TASK, 3, sampling=SHORT, then=then)
        assert len(drawn) == 3
        assert sum("judged" in c.scores for c in drawn) == 2
        assert outer.ledger.spent.calls == 3

    run(main())


def test_a_small_budget_gives_fewer_and_then_shorter_completions() -> None:
    toy = ToyModel()
    prompt = toy.prompt_tokens(TASK)
    texts = [c.text for c in run(of(toy).sample(TASK, 8, sampling=SHORT))]
    outer = of(toy, Budget(tokens=2 * (prompt + 20) + 10))
    some = run(outer.sample(TASK, 8, sampling=SHORT))
    assert 1 < len(some) < 8
    assert [c.text for c in some] == texts[: len(some)]
    assert outer.ledger.refused
    [cut] = run(of(toy, Budget(tokens=prompt + 2)).sample(TASK, 8, sampling=SHORT))
    assert (cut.token_count, cut.finish) == (2, "length")
    room = of(toy, Budget(tokens=prompt + 19))  # less than it might take, but not less than it takes
    [whole] = run(room.sample(TASK, 8, sampling=SHORT))
    assert (whole.text, whole.finish) == (texts[0], "stop")
    assert room.ledger.refused  # the other seven
    alone = of(toy, Budget(tokens=prompt + 19))
    assert run(alone.sample(TASK, 1, sampling=SHORT)) == [whole]
    assert not alone.ledger.refused
    with pytest.raises(BudgetExhausted):
        run(of(toy, Budget(tokens=prompt)).sample(TASK, sampling=SHORT))
    with pytest.raises(BudgetExhausted):
        run(of(toy, Budget(calls=0)).sample(TASK, sampling=SHORT))


def test_choose_reads_one_token_or_scores_whole_choices() -> None:
    toy = ToyModel({"": {"yes": 0.6, " Yes": 0.1, "no": 0.1, "y": 0.1, "maybe": 0.1}})
    outer = of(toy)
    # "y" begins yes as well; "maybe" neither.
    assert run(outer.choose("?", ("yes", "no"))) == pytest.approx({"yes": 0.8 / 0.9, "no": 0.1 / 0.9})
    assert outer.ledger.spent.completion_tokens == 1
    apples = ToyModel({"": {"apple": 0.6, "plum": 0.4}, "apple": {" pie": 0.5, " tart": 0.5}})
    choices = ("apple pie", "apple tart", "pear")
    assert run(of(apples).choose("?", choices)) == pytest.approx(
        dict.fromkeys(choices[:2], 0.5) | {"pear": 0.0}
    )
    mute = ToyModel(capabilities=replace(CAPABLE, logprobs=-1, prompt_logprobs=False))
    with pytest.raises(UnsupportedError, match="log-probabilities"):
        run(of(mute).choose("?", ("yes", "no")))


def test_scores_and_roles() -> None:
    policy, judge = ToyModel(), ToyModel({"": {"a": 0.5, "b": 0.5}, "a": {"b": 0.2, "": 0.8}})
    outer = Run({POLICY: policy, JUDGE: judge})
    scoring = run(outer.score("?", ("ab", "b"), role=JUDGE))
    assert [math.exp(sum(t.logprob for t in s)) for s in scoring.scores] == pytest.approx([0.1, 0.5])
    assert policy.books.usage == Usage()
    assert outer.ledger.spent == judge.books.usage == scoring.usage
    assert outer.model("reward") is policy


class Fixed(Verifier):
    kind: ClassVar[str] = "test_fixed"
    scores: tuple[float | None, ...] = ()
    broken: str = ""

    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        async def fail(error: Exception) -> None:
            raise error

        if self.broken:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail(BudgetExhausted("out")))
                if self.broken == "value":
                    group.create_task(fail(ValueError("no such unit")))
        return [Verdict(score) for score in self.scores]


def test_verdicts_are_checked_and_traced() -> None:
    outer = of(ToyModel())
    two = [Candidate("a"), Candidate("b")]
    verdicts = run(outer.verify(Fixed(scores=(0.5, None)), TASK, two))
    assert [v.score for v in verdicts] == [0.5, None]
    assert outer.trace.of(Verified) == [Verified("test_fixed", (0.5, None))]
    for scores, said in [
        ((0.5,), "1 verdicts on 2"),
        ((0.1, 1.5), "score 1.5"),
        ((0.1, math.nan), "score nan"),
    ]:
        with pytest.raises(VerifierError, match=said):
            run(outer.verify(Fixed(scores=scores), TASK, two))
    with pytest.raises(VerifierError, match="'test_fixed' failed: ValueError: no such unit"):
        run(outer.verify(Fixed(broken="value"), TASK, two))
    with pytest.raises(BudgetExhausted):
        run(outer.verify(Fixed(broken="budget"), TASK, two))


def test_map_keeps_order_and_the_first_failure_cancels_the_rest() -> None:
    async def main() -> None:
        outer = of(ToyModel())
        ended: list[int] = []

        async def work(n: int) -> int:
            await asyncio.sleep(10 - n)
            if n == 7:
                raise BackendError("gone")
            ended.append(n)
            return n * n

        assert await outer.map(work, [1, 3, 2]) == [1, 9, 4]
        ended.clear()
        with pytest.raises(BackendError, match="gone"):
            await outer.map(work, range(10))
        assert ended == [9, 8]

    run(main())


def test_within_has_its_own_limit_and_seed() -> None:
    async def main() -> None:
        outer = of(ToyModel(), Budget(calls=10))
        async with outer.within(Budget(calls=1)) as inner:
            [first] = await inner.sample(TASK, sampling=SHORT)
            with pytest.raises(BudgetExhausted):
                await inner.sample(TASK, sampling=SHORT)
        assert outer.ledger.spent.calls == 1
        assert not outer.ledger.refused
        assert inner.seed != outer.seed
        again = of(ToyModel())
        async with again.within(Budget()) as same:
            assert [first] == await same.sample(TASK, sampling=SHORT)

    run(main())


class Silent(ToyModel):
    """Gives one completion fewer than it was asked for."""

    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        generation = await super().generate(request, meter)
        return replace(generation, completions=generation.completions[:-1])


class SilentStream(ToyModel):
    """Keeps the first completion of a stream to itself."""

    @asynccontextmanager
    async def stream(
        self, request: Request, meter: Meter | None = None, *, deltas: bool = True
    ) -> AsyncIterator[ToyStream]:
        async with super().stream(request, meter, deltas=deltas) as stream:
            await anext(stream)
            yield stream


def test_a_backend_that_gives_too_few_is_not_asked_for_ever() -> None:
    async def keep(candidate: Candidate) -> Candidate:
        return candidate

    for silent, then in ((Silent(), None), (SilentStream(), keep)):
        with pytest.raises(ProtocolError, match="asked for 3 completions and gave"):
            run(of(silent).sample(TASK, 3, sampling=SHORT, then=then))
        assert silent.books.usage.calls == 1


def test_every_call_is_traced_with_its_cost() -> None:
    outer = of(ToyModel())
    drawn = run(outer.sample(TASK, 3, sampling=SHORT))
    assert outer.trace.of(CallStarted) == [CallStarted(1, "generate", POLICY, 3)]
    assert [e.text for e in outer.trace.of(CompletionArrived)] == [c.text for c in drawn]
    [finished] = outer.trace.of(CallFinished)
    assert (finished.call, finished.usage, finished.error) == (1, outer.ledger.spent, "")


def test_out_of_budget_gives_the_best_so_far() -> None:
    async def patient(task: Task, run: Run) -> Answer:
        for _ in range(50):
            [candidate] = await run.sample(task, sampling=SHORT, task=task)
            run.propose(Answer.of(candidate, confidence=0.5))
            await asyncio.sleep(1)
        return Answer(text="done")

    async def main() -> None:
        assert (await strategy_run(patient)).stopped == "complete"
        for budget, stopped in [(Budget(calls=5), "budget"), (Budget(seconds=4.5), "deadline")]:
            answer = await strategy_run(patient, budget=budget)
            assert (answer.stopped, answer.usage.calls) == (stopped, 5)
            assert answer.confidence == 0.5
        for budget in (Budget(calls=0), Budget(seconds=0)):
            with pytest.raises(BudgetExhausted):
                await strategy_run(patient, budget=budget)

    run(main())


def test_what_a_strategy_raises_is_typed_by_its_boundary() -> None:
    async def fail(error: Exception) -> None:
        raise error

    async def main() -> None:
        async def bug(task: Task, run: Run) -> Answer:
            raise KeyError("missing")

        async def nothing(task: Task, run: Run) -> None:
            return None

        async def plain_group(task: Task, run: Run) -> Answer:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail(BudgetExhausted("out")))
                group.create_task(fail(BackendError("gone")))
            return Answer(text="")

        async def own_inner_limit(task: Task, run: Run) -> Answer:
            run.propose(Answer(text="so far"))
            async with run.within(Budget(calls=0)) as inner:
                await inner.sample(task)
            return Answer(text="")

        with pytest.raises(StrategyError, match=r"'inline' failed: KeyError: 'missing'"):
            await strategy_run(bug)
        with pytest.raises(StrategyError, match="None, not an Answer"):
            await strategy_run(nothing)
        with pytest.raises(BackendError, match="gone"):
            await strategy_run(plain_group)
        answer = await strategy_run(own_inner_limit)
        assert (answer.text, answer.stopped) == ("so far", "budget")

    run(main())


def test_keys_are_stable_and_take_any_text() -> None:
    request = Request((Message("user", "half a pair \ud83d"),), seed=1)
    assert request.key() == replace(request, n=5, priority=3).key()
    assert request.key() != request.sibling(1).key()
    assert request.key() != replace(request, constraint=Constraint.choice(["a"])).key()
    assert len(ScoreRequest(request.messages, ("\ud83d",)).key()) == 64


def test_the_trace_says_how_a_run_ended() -> None:
    async def ended(model: Backend) -> RunFinished:
        trace = Trace()
        with suppress(BackendError, asyncio.CancelledError):
            await execute(Strategy.load("chain_of_thought"), TASK, Run({POLICY: model}, trace=trace))
        [event] = trace.of(RunFinished)
        return event

    async def main() -> None:
        assert (await ended(ToyModel())).stopped == "complete"
        failed = await ended(Failing(ToyModel(), at={1}))
        assert (failed.stopped, failed.value) == ("failed", None)
        assert failed.error.startswith("BackendError: ")

        async def for_ever(_: object) -> None:
            await asyncio.Event().wait()

        task = asyncio.create_task(ended(ToyModel(pace=for_ever)))
        await asyncio.sleep(0)
        task.cancel()
        assert (await task).stopped == "cancelled"

    run(main())


def test_scores_of_long_choices_do_not_underflow() -> None:
    sure, unsure = "a" + "x" * 40, "a" + "y" * 45
    rows = {"": {"a": 1.0}} | {
        "a" + letter * k: {letter: 1e-9, "z": 1 - 1e-9} if k else {"x": 1e-9, "y": 1e-9, "z": 1 - 2e-9}
        for letter in "xy"
        for k in range(46)
    }

    async def main() -> None:
        chosen = await of(ToyModel(rows)).choose("Which?", (sure, unsure))
        assert chosen[sure] == pytest.approx(1.0)

    run(main())


def test_a_listener_that_raises_leaves_no_reservation() -> None:
    def full(_: object) -> None:
        raise OSError("the disk is full")

    async def main() -> None:
        mine = of(ToyModel(), Budget(tokens=1000), trace=Trace(listeners=[full]))
        with pytest.raises(OSError, match="full"):
            await mine.sample(TASK, sampling=SHORT)
        assert mine.ledger.idle

    run(main())
