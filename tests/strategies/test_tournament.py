"""Tournaments against enumeration, judges with a bias, and the times at which matches begin."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Literal

import pytest

import stratagem as sg
from stratagem.core.backend import Message, Request, ScoreRequest
from stratagem.core.errors import UnsupportedError
from stratagem.core.trace import CallStarted
from stratagem.strategies.tournament import Tournament
from stratagem.testing.language import Distribution
from stratagem.testing.loops import run
from stratagem.testing.toy import CAPABLE, ToyModel

Messages = tuple[Message, ...]
SHARES = {"1": 0.4, "2": 0.3, "3": 0.2, "4": 0.1}
RUNS = 1000


def players(messages: Messages) -> tuple[str, str]:
    """The digits of the two answers that a judge is shown, A's first."""
    found = [line for line in messages[-1].content.splitlines() if line.startswith("The answer is ")]
    return found[0][-2], found[1][-2]


def language(prefers: Callable[[str, str], float]) -> Callable[[Messages, tuple[str, ...]], Distribution]:
    """Answers by SHARES; as a judge it says A with the given probability."""

    def says(messages: Messages, tokens: tuple[str, ...]) -> Distribution:
        if tokens:
            return {"": 1.0}
        if "Answer A:" not in messages[-1].content:
            return {f"The answer is {digit}.": p for digit, p in SHARES.items()}
        p = prefers(*players(messages))
        return {"A": p, "B": 1 - p}

    return says


def greater(a: str, b: str) -> float:
    """Prefers the greater digit, and besides whatever stands first."""
    return 0.95 if a > b else 0.3


def solved(strategy: Tournament, prefers: Callable[[str, str], float], runs: int = RUNS) -> list[sg.Answer]:
    async def main() -> list[sg.Answer]:
        toy = ToyModel(language(prefers))
        return [await sg.solve("Which?", strategy, llm=toy, seed=seed) for seed in range(runs)]

    return asyncio.run(main())


def bracket(drawn: Sequence[str], beats: Callable[[str, str], bool]) -> str:
    if len(drawn) == 1:
        return drawn[0]
    half = len(drawn) // 2
    a, b = bracket(drawn[:half], beats), bracket(drawn[half:], beats)
    return a if a == b or beats(a, b) else b


def circular(a: str, b: str) -> float:
    """A judge whose preferences go round in a circle, so that the draw matters."""
    return 0.8 if (int(a) - int(b)) % 4 in (1, 2) else 0.3


def agrees(strategy: Tournament, wins: Callable[[Sequence[str]], str]) -> None:
    exact: Counter[str] = Counter()
    for drawn in product(SHARES, repeat=strategy.n):
        exact[wins(drawn)] += math.prod(SHARES[d] for d in drawn)  # type: ignore[assignment]
    found = Counter(answer.value for answer in solved(strategy, circular))
    for digit, p in exact.items():
        error = math.sqrt(p * (1 - p) / RUNS)
        assert abs(found[digit] / RUNS - p) <= 4 * error, (digit, found[digit] / RUNS, p)


@pytest.mark.parametrize("n", [3, 4])
def test_the_winner_of_a_knock_out_agrees_with_enumeration(n: int) -> None:
    def beats(a: str, b: str) -> bool:
        return circular(a, b) + 1 - circular(b, a) >= 1

    agrees(Tournament(n=n), lambda drawn: bracket(drawn, beats))


def test_the_winner_where_all_meet_agrees_with_enumeration() -> None:
    def points(drawn: Sequence[str], i: int) -> float:
        rivals = [b for j, b in enumerate(drawn) if j != i]
        a = drawn[i]
        return math.fsum(0.5 if a == b else (circular(a, b) + 1 - circular(b, a)) / 2 for b in rivals)

    def wins(drawn: Sequence[str]) -> str:
        return drawn[max(range(len(drawn)), key=lambda i: (round(points(drawn, i), 9), -i))]

    agrees(Tournament(n=4, matches="all"), wins)


def test_a_transitive_judge_finds_the_best_of_n_in_spite_of_its_bias_for_a_position() -> None:
    for answer in solved(Tournament(n=5), greater, 60):
        digits = {c.answer for c in answer.candidates}
        assert answer.value == max(d for d in digits if d is not None)
        expected = None if len(digits) == 1 else (0.95 + 1 - 0.3) / 2
        assert answer.confidence == (expected and pytest.approx(expected))


@pytest.mark.parametrize("matches", ["knock_out", "all"])
def test_a_judge_that_sees_positions_alone_decides_nothing(matches: Literal["knock_out", "all"]) -> None:
    for answer in solved(Tournament(n=4, matches=matches), lambda a, b: 0.9, 40):
        assert answer.text == answer.candidates[0].text


def test_where_all_meet_confidence_is_the_mean_over_the_winner_s_matches() -> None:
    for answer in solved(Tournament(n=3, matches="all"), greater, 30):
        drawn = [c.answer for c in answer.candidates]
        draws = drawn.count(answer.value) - 1
        assert answer.confidence == pytest.approx((0.5 * draws + 0.825 * (2 - draws)) / 2)


def test_equal_answers_need_no_judge() -> None:
    toy, trace = ToyModel({"": {"The answer is 7.": 0.5, "So the answer is 7.": 0.5}}), sg.Trace()
    answer = sg.solve_sync("Which?", Tournament(n=8), llm=toy, trace=trace)
    assert [call.n for call in trace.of(CallStarted)] == [8]
    assert (answer.value, answer.confidence) == ("7", None)


def test_a_match_begins_the_moment_its_two_players_are_known() -> None:
    """Every token takes a second; sample i has i + 1 tokens. The whole ends when its longest chain of
    dependencies does: the last sample, its match, the final."""

    def says(messages: Messages, tokens: tuple[str, ...]) -> Distribution:
        if "Answer A:" in messages[-1].content:
            return {"A": 1.0} if not tokens else {"": 1.0}
        if not tokens:
            return {f"{chr(97 + i)} " * (i + 1): 1 / 4 for i in range(4)}
        length = tokens[0].count(" ")
        if len(tokens) <= 6 * length:
            return {"so ": 1.0}
        return {"": 1.0} if tokens[-1].endswith(".") else {f"The answer is {length}.": 1.0}

    began: list[float] = []

    async def pace(request: Request | ScoreRequest) -> None:
        if "Answer A:" in request.messages[-1].content:
            began.append(asyncio.get_running_loop().time())
        await asyncio.sleep(1)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for seed in range(12):
            began.clear()
            start = loop.time()
            answer = await sg.solve("Which?", Tournament(n=4), llm=ToyModel(says, pace=pace), seed=seed)
            ends = [c.token_count for c in answer.candidates]
            values = [c.answer for c in answer.candidates]
            halves = [(0, 1), (2, 3)]
            known = [max(ends[a], ends[b]) for a, b in halves]
            judged = [values[a] != values[b] for a, b in halves]
            final = max(k + j for k, j in zip(known, judged, strict=True))
            winners = [values[a] for a, _ in halves]  # the judge prefers position A alone: a tie
            expected = [k for k, j in zip(known, judged, strict=True) for _ in range(2 * j)]
            expected += [final] * (2 * (winners[0] != winners[1]))
            assert sorted(t - start for t in began) == sorted(expected)
            assert loop.time() - start == final + (winners[0] != winners[1])

    run(main())


def test_stopped_by_its_budget_the_best_so_far_is_the_answer() -> None:
    toy = ToyModel(language(greater))
    answer = sg.solve_sync("Which?", Tournament(n=8), llm=toy, budget="calls=10", seed=5)
    assert answer.stopped == "budget"
    assert len(answer.candidates) == 8
    assert toy.books.usage.calls <= 10


def test_a_judge_without_log_probabilities_is_refused_before_anything_is_drawn() -> None:
    toy = ToyModel(language(greater))
    judge = ToyModel(capabilities=replace(CAPABLE, logprobs=-1, prompt_logprobs=False))
    with pytest.raises(UnsupportedError, match=r"by which tournament compares answers\. Use a backend"):
        sg.solve_sync("Which?", Tournament(), llm=toy, judge=judge)
    assert toy.books.usage.calls == judge.books.usage.calls == 0
