"""Votes and best-of-N against numbers that enumeration gives."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from typing import ClassVar

import pytest

import stratagem as sg
from stratagem.core.agreement import classes
from stratagem.core.protocols import Strategy
from stratagem.testing.toy import ToyModel, jittered

ANSWERS = {"The answer is 1.": 0.5, "The answer is 2.": 0.3, "The answer is 3.": 0.2}
RUNS = 3000


def answers(strategy: Strategy, model: ToyModel, runs: int = RUNS) -> Counter[str | None]:
    """How often each value is the answer over seeds 0 .. runs - 1."""

    async def main() -> Counter[str | None]:
        return Counter(
            [(await sg.solve("Which?", strategy, llm=model, seed=seed)).value for seed in range(runs)]
        )

    return asyncio.run(main())


def within_4_standard_errors(count: int, p: float, runs: int = RUNS) -> bool:
    return abs(count / runs - p) <= 4 * math.sqrt(p * (1 - p) / runs)


def enumerated(n: int, wins: Callable[[Sequence[str]], str | None]) -> dict[str | None, float]:
    """Exact distribution of the answer over all n-tuples of samples."""
    exact: dict[str | None, float] = {}
    for texts in product(ANSWERS, repeat=n):
        winner = wins([text[-2] for text in texts])
        exact[winner] = exact.get(winner, 0.0) + math.prod(ANSWERS[text] for text in texts)
    return exact


def test_majority_agrees_with_enumeration() -> None:
    exact = enumerated(3, lambda drawn: max(drawn, key=lambda a: (drawn.count(a), -drawn.index(a))))
    found = answers(sg.SelfConsistency(n=3), ToyModel({"": ANSWERS}))
    assert exact["1"] == pytest.approx(0.5 + 0.06)  # two or three of three; a third of the three-way ties
    for value, p in exact.items():
        assert within_4_standard_errors(found[value], p), (value, found[value] / RUNS, p)


def test_best_of_n_with_an_oracle_is_one_minus_all_wrong() -> None:
    strategy = sg.BestOfN(n=4, verifier=sg.Exact(reference="3"))
    found = answers(strategy, ToyModel({"": ANSWERS}))
    assert within_4_standard_errors(found["3"], 1 - (1 - 0.2) ** 4)


class Blind(sg.Verifier):
    """Scores by the order of arrival alone, which says nothing of the answer."""

    kind: ClassVar[str] = "blind_in_tests"

    async def __call__(
        self, task: sg.Task, candidates: Sequence[sg.Candidate], run: sg.Run
    ) -> list[sg.Verdict]:
        return [sg.Verdict(run.rng.random()) for _ in candidates]


def test_best_of_n_with_a_blind_reward_is_one_sample() -> None:
    found = answers(sg.BestOfN(n=4, verifier=Blind()), ToyModel({"": ANSWERS}))
    for text, p in ANSWERS.items():
        assert within_4_standard_errors(found[text[-2]], p)


def test_weighted_vote_by_probability_agrees_with_enumeration() -> None:
    weight = {"1": 0.5, "2": 0.3, "3": 0.2}

    def wins(drawn: Sequence[str]) -> str:
        return max(drawn, key=lambda a: (drawn.count(a) * weight[a], -drawn.index(a)))

    exact = enumerated(4, wins)
    found = answers(sg.WeightedVote(n=4, by="probability"), ToyModel({"": ANSWERS}))
    for value, p in exact.items():
        assert within_4_standard_errors(found[value], p), (value, found[value] / RUNS, p)


def test_weighted_vote_by_a_judge_can_overrule_the_majority() -> None:
    model = ToyModel({"": {"The answer is 1.": 0.75, "The answer is 2.": 0.25}})
    strategy = sg.WeightedVote(n=16, by="verifier", verifier=sg.Exact(reference="2"))
    assert answers(strategy, model, 100)["2"] >= 95  # P(no 2 among 16) = 0.01


def test_answers_that_cannot_be_extracted_do_not_vote_but_lower_the_confidence() -> None:
    model = ToyModel({"": {"I cannot say.": 0.8, "The answer is 7.": 0.2}})

    async def main() -> None:
        answer = await sg.solve("Which?", sg.SelfConsistency(n=20), llm=model, seed=3)
        votes = sum(c.answer == "7" for c in answer.candidates)
        assert len(answer.candidates) == 20
        assert 0 < votes < 10
        assert (answer.value, answer.confidence) == ("7", pytest.approx(votes / 20))

    asyncio.run(main())


def test_no_answer_at_all_is_an_answer_without_value() -> None:
    answer = sg.solve_sync("Which?", sg.SelfConsistency(n=3), llm=ToyModel({"": {"Who knows.": 1.0}}))
    assert (answer.value, answer.confidence, answer.text) == (None, 0.0, "Who knows.")


def test_equality_of_a_verifier_joins_classes() -> None:
    model = ToyModel({"": {"The answer is 1/2.": 0.3, "The answer is 0.5.": 0.3, "The answer is 3.": 0.4}})
    apart, joined = Counter[str | None](), Counter[str | None]()

    async def main() -> None:
        for seed in range(60):
            a = await sg.solve("Which?", sg.SelfConsistency(n=15), llm=model, seed=seed)
            b = await sg.solve("Which?", sg.SelfConsistency(n=15, equality=sg.Math()), llm=model, seed=seed)
            apart[a.value] += 1
            joined[b.value] += 1
            shares = Counter(c.answer for c in b.candidates)
            if b.value != "3":
                assert b.confidence == pytest.approx((shares["1/2"] + shares["0.5"]) / 15)

    asyncio.run(main())
    assert joined["3"] < apart["3"]
    assert joined["1/2"] + joined["0.5"] > 30


def test_a_class_holds_only_what_is_equal_to_all_of_it() -> None:
    """50% is 0.5 and is 50; these two are not the same, and what was said more often has it."""
    assert classes(["0.5", "50", "50%", "50"], sg.Math()) == [[0], [1, 2, 3]]
    assert classes(["0.5", "50", "50%", "1/2", "0.5"], sg.Math()) == [[0, 2, 3, 4], [1]]
    assert classes(["50%", None, "2/4", "0.50"], sg.Math()) == [[0, 2, 3]]


def test_ties_go_to_the_answer_seen_first_whatever_ends_first() -> None:
    rows = {"": {"a": 0.5, "b": 0.5}, "a": {" The answer is 1.": 1.0}, "b": {" The answer is 2.": 1.0}}

    async def once(seed: int, pace: int) -> tuple[str | None, list[str | None]]:
        model = ToyModel(rows, pace=jittered(pace))
        answer = await sg.solve("Which?", sg.SelfConsistency(n=2), llm=model, seed=seed)
        return answer.value, [c.answer for c in answer.candidates]

    for seed in range(20):
        first = asyncio.run(once(seed, 1))
        assert first[0] == first[1][0]
        assert all(asyncio.run(once(seed, pace)) == first for pace in range(2, 6))


def test_a_judge_starts_before_the_last_sibling_has_ended() -> None:
    long = {"": {"The answer is 1.": 0.5, "Well,": 0.5}} | {
        "Well," + " so" * k: {" so" if k < 30 else " The answer is 2.": 1.0} for k in range(31)
    }
    order: list[str] = []

    def note(record: object) -> None:
        order.append(getattr(record, "event").type)  # noqa: B009

    async def main() -> None:
        trace = sg.Trace(listeners=[note])
        strategy = sg.BestOfN(n=8, verifier=sg.Exact(reference="1"))
        await sg.solve("Which?", strategy, llm=ToyModel(long), trace=trace, seed=1)

    asyncio.run(main())
    assert order.index("verified") < len(order) - 1 - order[::-1].index("completion")


@pytest.mark.parametrize("by", ["verifier", "probability"])
def test_weights_and_verifier_go_together(by: str) -> None:
    extra = {} if by == "verifier" else {"verifier": "judge"}
    with pytest.raises(sg.ConfigurationError, match="go together"):
        sg.Strategy.load({"kind": "weighted_vote", "by": by, **extra})
