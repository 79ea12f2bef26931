"""Allocation: the budget of a batch goes where it pays, to the token, without a barrier; solve_all."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, ClassVar

import pytest

import stratagem as sg
from stratagem.core.backend import Message, Request, ScoreRequest
from stratagem.core.errors import UnavailableError
from stratagem.strategies._spending import ByRestart, ByScore, ByVotes
from stratagem.testing.language import END, Distribution
from stratagem.testing.loops import run
from stratagem.testing.toy import ToyModel

RATES = {"easy": 0.95, "even": 0.5, "hopeless": 0.02}  # of right samples
QUESTIONS = [f"{kind} {i}?" for i in range(20) for kind in RATES]


def language(messages: tuple[Message, ...], tokens: tuple[str, ...]) -> Distribution:
    """Twenty tokens, then 7, which is right, or one of many wrong numbers."""
    if len(tokens) < 20:
        return {"hm ": 1.0}
    if len(tokens) > 20:
        return {END: 1.0}
    p = RATES[messages[0].content.split()[0]]
    return {"The answer is 7.": p} | {f"The answer is {n}.": (1 - p) / 40 for n in range(10, 50)}


class Truth(sg.Verifier):
    """Knows what is right, with a doubt."""

    kind: ClassVar[str] = "truth_in_tests"

    async def __call__(
        self, task: sg.Task, candidates: Sequence[sg.Candidate], run: sg.Run
    ) -> list[sg.Verdict]:
        return [sg.Verdict(0.99 if c.answer == "7" else 0.01) for c in candidates]


class Able(sg.Verifier):
    """Says as the self-evaluation does whether a fresh sample would do better."""

    kind: ClassVar[str] = "restart_of_tests"

    async def __call__(
        self, task: sg.Task, candidates: Sequence[sg.Candidate], run: sg.Run
    ) -> list[sg.Verdict]:
        rate = RATES[task.question.split()[0]]
        return [sg.Verdict(0.99 if c.answer == "7" else 1 - rate) for c in candidates]


def accuracy(answers: Sequence[sg.Answer]) -> float:
    return fmean(answer.value == "7" for answer in answers)


def tokens(answers: Sequence[sg.Answer]) -> int:
    return sum(answer.usage.tokens for answer in answers)


def drawn(answers: Sequence[sg.Answer]) -> Mapping[str, float]:
    """Samples of a task, on average, by kind."""
    counts: dict[str, list[int]] = {kind: [] for kind in RATES}
    for question, answer in zip(QUESTIONS, answers, strict=True):
        counts[question.split()[0]].append(len(answer.candidates))
    return {kind: fmean(found) for kind, found in counts.items()}


@pytest.mark.parametrize("verifier", [Truth(), None])
def test_it_beats_the_same_for_all_at_equal_samples(verifier: sg.Verifier | None) -> None:
    """Of three equal parts easy, even and hopeless, uniform spending of 4 samples wastes most of two thirds."""
    uniform: Any = sg.BestOfN(n=4, verifier=verifier) if verifier else sg.SelfConsistency(n=4)
    gains: list[float] = []
    answers: list[sg.Answer] = []
    for seed in range(8):
        same = run(sg.solve_all(QUESTIONS, uniform, llm=ToyModel(language), seed=seed))
        told = sg.Allocation(n=16, least=0.0, verifier=verifier, max_tokens=22)
        budget = sg.Budget(calls=4 * len(QUESTIONS))
        answers = run(sg.solve_all(QUESTIONS, told, llm=ToyModel(language), budget=budget, seed=seed))
        assert sum(len(answer.candidates) for answer in answers) <= 4 * len(QUESTIONS)
        gains.append(accuracy(answers) - accuracy(same))
    assert fmean(gains) > 0.02
    counts = drawn(answers)
    assert counts["easy"] < counts["even"]


def test_what_is_sure_or_hopeless_gets_no_more() -> None:
    """By hand: l stays near the mean for one sample; then a miss in ten of a hopeless task has a gain under 2 %."""
    told = sg.Allocation(n=64, least=0.02, verifier=Truth(), max_tokens=22)
    answers = run(sg.solve_all(QUESTIONS, told, llm=ToyModel(language)))
    assert all(answer.stopped == "complete" for answer in answers)
    counts = drawn(answers)
    assert counts["easy"] < 1.5
    assert 1.5 < counts["even"] < 4
    assert counts["hopeless"] < 64
    even = [a for q, a in zip(QUESTIONS, answers, strict=True) if q.startswith("even")]
    assert accuracy(even) == 1.0, "they were worth more until one was right"


def test_the_core_by_hand() -> None:
    scores = ByScore(2, most=4, least=0.05)
    assert [scores.ask(), scores.ask(), scores.ask()] == [0, 1, None]
    scores.score(0, 0.9)
    scores.came(0, 100)
    # (1 - 0.9) (2 * 0.9 + 0.9) / 3 = 0.09, per 100 tokens; while it is under way 0.09 * 0.1: not worth it
    assert (scores.ask(), scores.ask()) == (0, None)
    scores.score(1, 0.1)
    scores.came(1, 100)
    assert scores.gain(1, 0) == pytest.approx(0.9 * (2 * 0.5 + 0.1) / 3)
    assert scores.gain(1, 1) == pytest.approx(0.9 * (1.1 / 3) * (1 - 1.1 / 3))
    assert scores.ask() == 1
    scores.close(1)
    assert scores.ask() is None
    restart = ByRestart(1, most=4, least=0.0)
    restart.score(0, 0.75)
    assert (restart.gain(0, 0), restart.gain(0, 2)) == (0.25, 0.25 * 0.75**2)
    votes = ByVotes(1, most=9, least=0.0)
    for answer in ("a", "a", "b", None):
        votes.vote(0, answer)
    # P(Beta(3, 2) < 1/2) = 5/16; the rival has (1 + 1) of 4 + 2
    assert votes.gain(0, 0) == pytest.approx(5 / 16 * (2 / 6) ** 2)
    # one under way for the leader: P(Beta(4, 2) < 1/2) = 3/16, of 5 + 2
    assert votes.gain(0, 1) == pytest.approx(3 / 16 * (2 / 7) ** 2)


def test_of_equal_gains_the_cheaper_is_first() -> None:
    scores = ByScore(2, most=4, least=0.0)
    for task, cost in enumerate((200, 100)):
        scores.ask()
        scores.score(task, 0.5)
        scores.came(task, cost)
    assert scores.ask() == 1


def test_one_task_alone_draws_what_best_of_n_draws() -> None:
    told: dict[str, Any] = {"n": 6, "verifier": "judge", "max_tokens": 20}
    one = run(
        sg.solve("How many?", {"kind": "allocation", "least": 0, "parallel": 1, **told}, llm=ToyModel())
    )
    best = run(sg.solve("How many?", {"kind": "best_of_n", **told}, llm=ToyModel()))
    texts = [c.text for c in one.candidates]
    assert texts == [c.text for c in best.candidates][: len(texts)]
    [same] = run(sg.solve_all(["How many?"], {"kind": "best_of_n", **told}, llm=ToyModel()))
    assert (same.text, same.candidates, same.usage) == (best.text, best.candidates, best.usage)


@pytest.mark.parametrize("budget", [60, 900, 2000, 5000])
def test_no_token_more_than_the_budget(budget: int) -> None:
    model = ToyModel(language)
    told = sg.Allocation(n=16, least=0.0, verifier=Truth(), max_tokens=22)
    answers = run(sg.solve_all(QUESTIONS, told, llm=model, budget=f"tokens={budget}"))
    assert tokens(answers) == model.books.usage.tokens <= budget
    left = budget - tokens(answers)
    assert left < 30, "another sample would have fitted"
    empty = [answer for answer in answers if not answer.text]
    assert (len(empty) > 0) == (budget < 1800)
    assert {answer.stopped for answer in empty} <= {"budget"}
    assert all("tokens" in answer.reason for answer in empty)


def test_a_budget_that_holds_nothing_is_an_error() -> None:
    for kind in ("allocation", "best_of_n"):
        with pytest.raises(sg.BudgetExhausted, match="tokens=3"):
            run(sg.solve_all(QUESTIONS[:3], {"kind": kind}, llm=ToyModel(language), budget="tokens=3"))
    assert run(sg.solve_all([], llm=ToyModel(language))) == []


class Broken(ToyModel):
    """Fails on one of the questions."""

    async def generate(self, request: Request, meter: Any = None) -> Any:
        self.check(request)
        return await super().generate(request, meter)

    def stream(self, request: Request, meter: Any = None, *, deltas: bool = True) -> Any:
        self.check(request)
        return super().stream(request, meter, deltas=deltas)

    def check(self, request: Request) -> None:
        if "easy 1" in request.messages[0].content:
            raise UnavailableError("It fell over.")


@pytest.mark.parametrize("kind", ["allocation", "self_consistency"])
def test_one_that_fails_keeps_no_other_from_its_answer(kind: str) -> None:
    told: dict[str, Any] = {"kind": kind, "n": 4, "max_tokens": 22}
    told |= {"verifier": Truth()} if kind == "allocation" else {}
    answers = run(sg.solve_all(["easy 0?", "easy 1?", "easy 2?"], told, llm=Broken(language)))
    assert [answer.stopped for answer in answers] == ["complete", "failed", "complete"]
    assert (answers[1].text, answers[1].reason) == ("", "It fell over.")
    with pytest.raises(UnavailableError, match="fell over"):
        run(sg.solve_all(["easy 1?"], told, llm=Broken(language)))


def test_no_barrier_and_all_permits_at_work() -> None:
    """Every tenth question takes forty times as long; the others' samples do not wait for it."""

    async def pace(request: Request | ScoreRequest) -> None:
        slow = "0?" in request.messages[0].content
        await asyncio.sleep(0.4 if slow else 0.01)

    async def timed() -> tuple[float, list[sg.Answer]]:
        loop = asyncio.get_running_loop()
        started = loop.time()
        model = ToyModel(language, pace=pace)
        told = sg.Allocation(n=4, least=0.0, verifier=Truth(), parallel=8, max_tokens=22)
        answers = await sg.solve_all(QUESTIONS, told, llm=model)
        return loop.time() - started, answers

    seconds, answers = run(timed())
    work = sum(
        len(answer.candidates) * 22 * (0.4 if "0?" in question else 0.01)
        for question, answer in zip(QUESTIONS, answers, strict=True)
    )
    assert seconds <= work / 8 + 4 * 22 * 0.4, "the work over eight, and at the end one slow task alone"


def test_cancelled_it_leaves_what_it_has() -> None:
    traces = [sg.Trace() for _ in QUESTIONS]

    async def cancelled() -> ToyModel:
        model = ToyModel(language, pace=lambda _: asyncio.sleep(1 / 11))
        told = sg.Allocation(n=16, least=0.0, verifier=Truth(), parallel=8, max_tokens=22)
        running = asyncio.create_task(sg.solve_all(QUESTIONS, told, llm=model, trace=lambda i: traces[i]))
        await asyncio.sleep(7.5)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        return model

    model = run(cancelled())
    partial = [trace.partial for trace in traces]
    assert all(answer is not None and answer.stopped == "cancelled" for answer in partial)
    assert sum(bool(answer and answer.text) for answer in partial) == 24, "three waves of eight"
    assert sum(answer.usage.tokens for answer in partial if answer) == model.books.usage.tokens


def test_bad_input_is_told() -> None:
    with pytest.raises(sg.ConfigurationError, match="question is empty"):
        run(sg.solve_all(["easy 1?", " "], llm=ToyModel(language)))
    with pytest.raises(sg.ConfigurationError, match="compares candidates"):
        sg.Strategy.load({"kind": "allocation", "verifier": {"kind": "listwise_of_allocation"}})


class Listwise(Truth):
    kind: ClassVar[str] = "listwise_of_allocation"

    @property
    def pointwise(self) -> bool:
        return False


@pytest.mark.parametrize("at", [0, 1, 3])
def test_one_that_does_not_fit_takes_nothing_from_the_others(at: int) -> None:
    questions = ["even 0?", "even 1?", "even 2?"]
    questions.insert(at, "even " + "and so on " * 400 + "?")
    model = ToyModel(language)
    told = sg.Allocation(n=4, least=0.0, parallel=1, verifier=Truth(), max_tokens=22)
    answers = run(sg.solve_all(questions, told, llm=model, budget="tokens=420"))
    assert [bool(answer.text) for answer in answers] == [i != at for i in range(4)]
    assert answers[at].stopped == "budget"
    assert tokens(answers) > 3 * 30, "what is left goes to those that fit"


def test_an_abstention_is_no_word_on_other_tasks() -> None:
    alone, beside = ByScore(2, 8, 0.0), ByScore(2, 8, 0.0)
    for spending in (alone, beside):
        spending.score(0, 0.5)
    beside.score(1, None)
    assert beside.gain(0, 0) == alone.gain(0, 0)
    beside.score(1, 0.0)  # which is a word on how likely any sample is right
    assert beside.gain(0, 0) < alone.gain(0, 0)
