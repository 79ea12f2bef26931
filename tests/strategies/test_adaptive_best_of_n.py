"""Adaptive best-of-N: schedule, stopping and cost against known answers; later samples are stopped."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest

import stratagem as sg
from stratagem.core.backend import Request, ScoreRequest
from stratagem.core.protocols import Strategy
from stratagem.strategies.adaptive_best_of_n import AdaptiveBestOfN
from stratagem.testing.loops import run
from stratagem.testing.toy import ToyModel, jittered

TASK = sg.Task.of("Which?")


class Script(sg.Verifier):
    """Gives the scores of a list, one after the other."""

    kind: ClassVar[str] = "script_in_tests"
    scores: ClassVar[Iterator[float]] = iter(())

    async def __call__(
        self, task: sg.Task, candidates: Sequence[sg.Candidate], run: sg.Run
    ) -> list[sg.Verdict]:
        return [sg.Verdict(next(Script.scores)) for _ in candidates]


class Coin(sg.Verifier):
    """Accepts a sample with probability q, whatever it says."""

    kind: ClassVar[str] = "coin_in_tests"
    q: float = 0.5

    async def __call__(
        self, task: sg.Task, candidates: Sequence[sg.Candidate], run: sg.Run
    ) -> list[sg.Verdict]:
        return [sg.Verdict(float(run.rng.random() < self.q)) for _ in candidates]


class Listwise(Coin):
    kind: ClassVar[str] = "listwise_in_tests"

    @property
    def pointwise(self) -> bool:
        return False


class Noting:
    """Notes the requests of a model as they are first worked on, with the time; a token takes a second."""

    def __init__(self) -> None:
        self.begun: list[tuple[float, Request]] = []
        self._seen: set[int] = set()

    async def __call__(self, request: Request | ScoreRequest) -> None:
        if isinstance(request, Request) and id(request) not in self._seen:
            self._seen.add(id(request))
            self.begun.append((asyncio.get_running_loop().time(), request))
        await asyncio.sleep(1)


def test_the_temperature_rises_from_greedy() -> None:
    async def main(most: float | None) -> list[float | None]:
        noting = Noting()
        strategy = AdaptiveBestOfN(n=5, tau=2.0, temperature=most, verifier=Coin())
        await sg.solve(TASK, strategy, llm=ToyModel(pace=noting))
        return [request.temperature for _, request in noting.begun]

    assert run(main(1.0)) == [0.0, 0.5, 0.75, 0.875, 0.9375]
    assert run(main(0.8)) == pytest.approx([0.0, 0.4, 0.6, 0.7, 0.75])
    assert run(main(None)) == [0.0, 0.5, 0.75, 0.875, 0.9375]  # the toy's own default is 1


@pytest.mark.parametrize(("tau", "samples", "confidence"), [(0.9, 2, 0.95), (1.01, 3, 0.99), (0.0, 1, 0.3)])
def test_it_stops_at_the_first_that_is_good_enough(tau: float, samples: int, confidence: float) -> None:
    Script.scores = iter([0.3, 0.95, 0.99])
    strategy = AdaptiveBestOfN(n=3, tau=tau, verifier=Script(), parallel=1)
    answer = run(sg.solve(TASK, strategy, llm=ToyModel()))
    assert (len(answer.candidates), answer.confidence) == (samples, confidence)
    assert answer.text == max(answer.candidates, key=lambda c: c.scores["script_in_tests"]).text


@pytest.mark.parametrize(("q", "mean"), [(0.5, 2.0), (0.8, 1.25)])
def test_expected_samples(q: float, mean: float) -> None:
    """(1 - (1 - q)^n) / q, whatever has been drawn ahead."""
    strategy = AdaptiveBestOfN(n=16, tau=0.5, verifier=Coin(q=q))
    toy = ToyModel({"": {"a": 1.0}})
    runs = 1500

    async def main() -> float:
        total = 0
        for seed in range(runs):
            total += len((await strategy(TASK, sg.Run({"policy": toy}, seed=seed))).candidates)
        return total / runs

    assert mean == pytest.approx((1 - (1 - q) ** 16) / q, abs=1e-3)
    assert asyncio.run(main()) == pytest.approx(mean, abs=4 * math.sqrt((1 - q) / q**2 / runs))


def test_samples_of_equal_length_come_as_1_1_2_4_8() -> None:
    async def main() -> list[int]:
        noting = Noting()
        strategy = AdaptiveBestOfN(n=16, tau=2.0, verifier=Coin())
        await sg.solve(TASK, strategy, llm=ToyModel({"": {"a": 1.0}}, pace=noting))
        return list(Counter(time for time, _ in noting.begun).values())

    assert run(main()) == [1, 1, 2, 4, 8]


def test_no_more_than_parallel_run_at_a_time() -> None:
    async def main() -> int:
        toy = ToyModel(pace=jittered(1))
        await sg.solve(TASK, AdaptiveBestOfN(n=16, tau=2.0, verifier=Coin(), parallel=3), llm=toy)
        return toy.books.peak

    assert run(main()) == 3


UNEQUAL: dict[str, dict[str, float]] = {"": {"short": 0.6, "long": 0.4}} | {
    "long" + "." * k: {".": 1.0} for k in range(30)
}


class Words(sg.Verifier):
    """Scores by the first letters."""

    kind: ClassVar[str] = "words_in_tests"
    scores: dict[str, float]

    async def __call__(
        self, task: sg.Task, candidates: Sequence[sg.Candidate], run: sg.Run
    ) -> list[sg.Verdict]:
        return [
            sg.Verdict(next(s for word, s in self.scores.items() if c.text.startswith(word)))
            for c in candidates
        ]


def test_a_slow_sample_holds_up_nobody() -> None:
    """While a long sample is decoded, what others' rejections allow begins."""

    async def main() -> None:
        noting = Noting()
        strategy = AdaptiveBestOfN(n=8, tau=2.0, verifier=Words(scores={"short": 0.1, "long": 0.2}))
        answer = await sg.solve(TASK, strategy, llm=ToyModel(UNEQUAL, pace=noting), seed=1)
        long = [c.text.startswith("long") for c in answer.candidates]
        at = [time for time, _ in noting.begun]
        first_long = long.index(True)
        assert 1 < first_long < 6
        assert max(at) < at[first_long] + 31  # all have begun before it has ended
        assert len(answer.candidates) == 8

    run(main())


def test_later_samples_are_stopped_in_the_engine() -> None:
    async def main(seed: int) -> tuple[int, int]:
        toy = ToyModel(UNEQUAL, pace=Noting())
        strategy = AdaptiveBestOfN(n=16, tau=0.9, verifier=Words(scores={"short": 0.3, "long": 0.95}))
        answer = await sg.solve(TASK, strategy, llm=toy, seed=seed)
        assert toy.books.in_flight == 0
        assert answer.usage == toy.books.usage
        texts = [c.text[:4] for c in answer.candidates]
        assert texts == ["shor"] * (len(texts) - 1) + ["long"]
        return toy.books.aborted, toy.books.usage.calls - len(texts)

    stopped = [run(main(seed)) for seed in range(12)]
    assert any(aborted for aborted, _ in stopped)
    assert all(aborted <= beyond for aborted, beyond in stopped)  # only what was drawn ahead, if not ended


def test_an_earlier_sample_counts_before_a_later_one_that_was_quicker() -> None:
    """Both reach tau; the first in order is the answer, though the other has ended long before."""
    strategy = AdaptiveBestOfN(n=16, tau=0.9, verifier=Words(scores={"short": 0.92, "long": 0.91, "x": 0.1}))
    rows = {**UNEQUAL, "": {"x": 0.7, "short": 0.15, "long": 0.15}}

    async def main(seed: int, pace: int) -> tuple[str, int]:
        answer = await sg.solve(TASK, strategy, llm=ToyModel(rows, pace=jittered(pace)), seed=seed)
        return answer.text, len(answer.candidates)

    found = {seed: run(main(seed, 0)) for seed in range(40)}
    assert all(run(main(seed, pace)) == expected for seed, expected in found.items() for pace in (1, 2))
    assert sum(text.startswith("long") for text, _ in found.values()) > 5


def test_it_agrees_with_enumeration() -> None:
    """With an oracle it is wrong only where every sample at its own temperature is."""
    toy = ToyModel({"": {"The answer is 1.": 0.5, "The answer is 2.": 0.3, "The answer is 3.": 0.2}})
    strategy = AdaptiveBestOfN(n=4, tau=1.0, verifier=sg.Exact(reference="2"))
    temperatures = [0.0, 0.5, 0.75, 0.875]
    wrong = math.prod(1 - toy.enumerate(TASK, t).get("The answer is 2.", 0.0) for t in temperatures)
    runs = 1000

    async def main() -> int:
        answers = [await strategy(TASK, sg.Run({"policy": toy}, seed=seed)) for seed in range(runs)]
        return sum(answer.value == "2" for answer in answers)

    p = 1 - wrong
    assert abs(asyncio.run(main()) / runs - p) <= 4 * math.sqrt(p * (1 - p) / runs)


def test_a_budget_for_some_samples_gives_the_best_of_them() -> None:
    toy = ToyModel({"": {"a": 1.0}})
    Script.scores = itertools.chain([0.2, 0.4, 0.3], itertools.repeat(0.1))
    strategy = AdaptiveBestOfN(n=16, verifier=Script())
    answer = run(sg.solve(TASK, strategy, llm=toy, budget=sg.Budget(calls=3)))
    assert (answer.stopped, answer.confidence, len(answer.candidates)) == ("budget", 0.4, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"verifier": "listwise_in_tests"}, "scores each alone"),
        ({"tau": -0.1}, "tau"),
        ({"n": 0}, "n = 0"),
    ],
)
def test_bad_settings_are_told_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(sg.ConfigurationError, match=message):
        Strategy.load({"kind": "adaptive_best_of_n", **settings})
