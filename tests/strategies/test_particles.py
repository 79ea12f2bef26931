"""Particle strategies through a run: their laws against enumeration, their requests, their time."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from particles import uneven
from stratagem.api import solve
from stratagem.backends.journaled import Journal, Journaled
from stratagem.core.asking import POLICY
from stratagem.core.backend import Message, Request, ScoreRequest
from stratagem.core.component import parameter
from stratagem.core.errors import ConfigurationError
from stratagem.core.execute import execute
from stratagem.core.protocols import Strategy, Verdict, Verifier
from stratagem.core.run import Run
from stratagem.core.task import Answer, Candidate, Task
from stratagem.strategies._search.filtering import Filtering, Weighted, same
from stratagem.strategies._search.particles import Filter
from stratagem.strategies._search.steps import Partial
from stratagem.strategies.parallel_tempering import ParallelTempering
from stratagem.strategies.particle_filtering import ParticleFiltering
from stratagem.strategies.particle_gibbs import ParticleGibbs
from stratagem.testing.loops import run as run_loop
from stratagem.testing.toy import ToyModel, jittered

TASK = Task.of("Which?")
ONE, TWO = "The answer is 1.", "The answer is 2."
ROWS = {
    "": {"a\n": 0.6, "b\n": 0.4},
    "a\n": {"c\n": 0.5, ONE: 0.5},
    "b\n": {"c\n": 0.3, TWO: 0.7},
    "a\nc\n": {ONE: 0.2, TWO: 0.8},
    "b\nc\n": {ONE: 0.9, TWO: 0.1},
}
REWARD = {"a": 0.7, "b": 0.4, "a\nc": 0.3, f"a\n{ONE}": 0.9, "b\nc": 0.8, f"b\n{TWO}": 0.2}
REWARD |= {f"a\nc\n{ONE}": 0.6, f"a\nc\n{TWO}": 0.35, f"b\nc\n{ONE}": 0.5, f"b\nc\n{TWO}": 0.9}
KINDS: list[dict[str, Any]] = [
    {"kind": "particle_filtering", "n": 4},
    {"kind": "particle_filtering", "n": 6, "together": 2, "ess": 0.8},
    {"kind": "particle_gibbs", "n": 3, "iterations": 2},
    {"kind": "parallel_tempering", "n": 2, "iterations": 2, "temperatures": (1, 3)},
]


def _id(data: dict[str, Any]) -> str:
    return "-".join(map(str, data.values()))


class Rated(Verifier):
    """A reward for every beginning of a text, or one for all."""

    kind: ClassVar[str] = "rated_in_tests"

    constant: float | None = parameter(None, "The reward of everything.")
    judged: ClassVar[list[str]] = []

    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        self.judged.extend(c.text for c in candidates)
        return [Verdict(REWARD[c.text] if self.constant is None else self.constant) for c in candidates]


def posterior(score: Any, aggregate: Any) -> dict[str, float]:
    """p(x) g(x), normalised."""
    mass = {text: p * score(aggregate(_rewards(text))) for text, p in ToyModel(ROWS).enumerate(TASK).items()}
    return {text: m / math.fsum(mass.values()) for text, m in mass.items()}


def _rewards(text: str) -> list[float]:
    lines = text.split("\n")
    return [REWARD["\n".join(lines[:k])] for k in range(1, len(lines) + 1)]


def drawn(strategy: Strategy, runs: int) -> Counter[str]:
    """How often each text is the answer."""

    async def main() -> Counter[str]:
        model = ToyModel(ROWS)
        return Counter([(await solve(TASK, strategy, llm=model, seed=seed)).text for seed in range(runs)])

    return asyncio.run(main())


@pytest.mark.parametrize("data", KINDS, ids=_id)
def test_a_constant_reward_leaves_the_models_own_law(data: dict[str, Any]) -> None:
    strategy = Strategy.load({**data, "answer": "sample", "verifier": Rated(constant=0.3)})
    runs = 200
    found = drawn(strategy, runs)
    for text, p in ToyModel(ROWS).enumerate(TASK).items():
        assert abs(found[text] / runs - p) <= 4 * math.sqrt(p * (1 - p) / runs), text


@pytest.mark.parametrize("data", [{"n": 16}, {"n": 16, "together": 3}], ids=_id)
def test_answers_have_the_posterior(data: dict[str, Any]) -> None:
    exact = posterior(lambda r: r / (1 - r), min)
    runs = 150
    found = drawn(ParticleFiltering(**data, answer="sample", verifier=Rated()), runs)
    for text, p in exact.items():  # 16 particles have a small bias of their own
        assert abs(found[text] / runs - p) <= 0.03 + 4 * math.sqrt(p * (1 - p) / runs), text


def carried_out(strategy: Filtering, filter: Filter[Partial]) -> Weighted:
    async def ignore(_: Weighted) -> None:
        pass

    return asyncio.run(strategy.carry_out(TASK, Run({POLICY: ToyModel(ROWS)}, seed=5), filter, ignore))


@pytest.mark.parametrize("aggregate", ["product", "min", "last", "mean"])
@pytest.mark.parametrize("weights", ["odds", "likelihood", "exponential"])
def test_every_reward_counts_once(aggregate: Any, weights: Any) -> None:
    """Without resampling a weight is that of the aggregate reward, whatever the steps were."""
    strategy = ParticleFiltering(aggregate=aggregate, weights=weights, verifier=Rated())
    combined = {"product": math.prod, "min": min, "last": lambda r: r[-1], "mean": lambda r: sum(r) / len(r)}
    score = {"odds": lambda r: math.log(r / (1 - r)), "likelihood": math.log, "exponential": lambda r: r}
    found = carried_out(strategy, Filter[Partial](16, 1, key=same, ess=1e-9))
    assert len({partial.text for partial, _ in found}) > 3
    for partial, w in found:
        assert w == pytest.approx(score[weights](combined[aggregate](_rewards(partial.text))))


def asked(strategy: Strategy, seed: int) -> tuple[list[Request], Answer]:
    requests: list[Request] = []

    class Noting(ToyModel):
        def _check(self, request: Request) -> None:
            requests.append(request)
            super()._check(request)

    answer = asyncio.run(execute(strategy, TASK, Run({POLICY: Noting(ROWS)}, seed=seed)))
    return requests, answer


def test_copies_and_equal_beginnings_are_one_request_and_judged_once() -> None:
    several = 0
    for seed in range(10):
        Rated.judged.clear()
        requests, answer = asked(ParticleFiltering(n=8, verifier=Rated()), seed)
        said = [r.messages[-1].content for r in requests if r.messages[-1].role == "assistant"]
        assert len(said) == len(set(said))
        assert [r.n for r in requests if r.messages[-1].role == "user"] == [8]
        assert all(text.endswith("\n") for text in said)  # the answer so far goes on
        assert len(Rated.judged) == len(set(Rated.judged))
        several += sum(r.n > 1 for r in requests[1:])
        assert len(answer.candidates) == 8
    assert several > 10


def test_answers_of_particles() -> None:
    def solved(**fields: Any) -> Answer:
        return asked(ParticleFiltering(n=8, verifier=Rated(), **fields), 3)[1]

    vote, best = solved(), solved(answer="best")
    assert [c.text for c in vote.candidates] == [c.text for c in best.candidates]
    assert best.confidence == max(c.scores[Rated.kind] for c in best.candidates)
    assert vote.confidence is not None
    assert 0.5 <= vote.confidence <= 1.0


@pytest.mark.parametrize("data", KINDS, ids=_id)
def test_a_second_sitting_asks_the_model_nothing(data: dict[str, Any], tmp_path: Path) -> None:
    """Although completions end in another order: seeds follow from slot and step."""

    async def main() -> None:
        journal = Journal(tmp_path / "calls.sqlite")
        sittings: list[tuple[Answer, int]] = []
        for shuffle in (1, 2):
            toy = ToyModel(pace=jittered(shuffle, most=9))
            answer = await solve(TASK, Strategy.load(data), llm=Journaled(toy, journal, run_id="one"), seed=3)
            sittings.append((answer, toy.books.usage.calls))
        await journal.aclose()
        (first, calls), (second, none) = sittings
        assert calls > none == 0
        assert second.candidates == first.candidates
        assert second.usage.tokens == first.usage.tokens

    asyncio.run(main())


def test_particle_gibbs_answers_from_all_iterations_unless_told_not_to() -> None:
    for pool, count in {True: 12, False: 4}.items():
        _, answer = asked(ParticleGibbs(n=4, iterations=3, pool=pool, verifier=Rated()), 0)
        assert len(answer.candidates) == count


def test_a_gibbs_reference_is_not_sampled_again() -> None:
    requests, _ = asked(ParticleGibbs(n=4, iterations=3, verifier=Rated()), 0)
    assert [r.n for r in requests if r.messages[-1].role == "user"] == [4, 3, 3]


def test_chains_end_when_nothing_of_them_can_reach_the_first() -> None:
    def chains(iterations: int, count: int) -> list[int]:
        temperatures = tuple(float(t) for t in range(1, count + 1))
        return ParallelTempering(iterations=iterations, temperatures=temperatures).needed()

    with pytest.raises(ConfigurationError, match="at least 2"):
        chains(1, 3)
    assert chains(2, 3) == [2, 1, 0]
    assert chains(4, 3) == [4, 3, 2]
    assert chains(5, 1) == [5]
    requests, _ = asked(
        ParallelTempering(n=4, iterations=4, temperatures=(1.0, 2.0, 4.0), verifier=Rated()), 0
    )
    assert sorted(r.n for r in requests if r.messages[-1].role == "user") == [3] * 6 + [4] * 3


def test_a_model_that_never_ends_is_ended_at_its_most_steps() -> None:
    def endless(messages: tuple[Message, ...], tokens: tuple[str, ...]) -> dict[str, float]:
        return {"so\n": 1.0}

    seen: list[int] = []

    async def pace(request: Request | ScoreRequest) -> None:
        last = request.messages[-1]
        seen.append(last.content.count("\n") if last.role == "assistant" else 0)

    strategy = ParticleFiltering(n=2, verifier=Rated(constant=0.5))
    answer = asyncio.run(execute(strategy, TASK, Run({POLICY: ToyModel(endless, pace=pace)})))
    assert max(seen) == strategy.max_steps - 1 == 39
    assert answer.candidates[0].finish == "length"
    assert answer.candidates[0].token_count == strategy.max_tokens


@pytest.mark.parametrize("data", [*KINDS, {"kind": "particle_filtering", "n": 3, "answer": "best"}], ids=_id)
def test_a_model_that_says_nothing_at_times(data: dict[str, Any]) -> None:
    strategy = Strategy.load({**data, "verifier": Rated(constant=0.5)})
    silent = asyncio.run(solve(TASK, strategy, llm=ToyModel({"": {"": 1.0}})))
    assert (silent.text, silent.value) == ("", None)
    at_times = ToyModel({"": {"": 0.5, ONE: 0.5}})
    answers = [asyncio.run(solve(TASK, strategy, llm=at_times, seed=seed)) for seed in range(8)]
    assert "1" in {answer.value for answer in answers}


def test_small_groups_do_not_wait_for_the_slowest() -> None:
    """In virtual time, a hundredth of a second a token."""

    async def seconds(**fields: Any) -> float:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for seed in range(4):
            model = ToyModel(uneven, pace=lambda _: asyncio.sleep(0.01))
            strategy = ParticleFiltering(n=12, verifier=Rated(constant=0.4), **fields)
            await execute(strategy, TASK, Run({POLICY: model}, seed=seed))
        return loop.time() - begun

    barrier, groups = run_loop(seconds()), run_loop(seconds(together=2, ess=0.8))
    assert groups < 0.9 * barrier


def test_bad_parameters() -> None:
    with pytest.raises(ConfigurationError, match=r"give ess above 0\.5"):
        Strategy.load({"kind": "particle_filtering", "together": 2})
    with pytest.raises(ConfigurationError, match="begin with 1 and rise"):
        Strategy.load({"kind": "parallel_tempering", "temperatures": (1, 1)})
    with pytest.raises(ConfigurationError, match="begin with 1 and rise"):
        Strategy.load({"kind": "parallel_tempering", "temperatures": (2, 4)})


class Finished(Verifier):
    """Good where an answer is stated."""

    kind: ClassVar[str] = "finished_in_tests"

    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        return [Verdict(0.9 if c.answer is not None else 0.2) for c in candidates]


def test_equal_texts_of_which_one_has_ended_are_judged_apart() -> None:
    model = ToyModel({"": {ONE: 0.5, f"{ONE}\n": 0.5}, f"{ONE}\n": {TWO: 1.0}})
    strategy = ParticleFiltering(n=8, aggregate="last", ess=0.01, verifier=Finished())
    for seed in range(6):
        answer = asyncio.run(solve(TASK, strategy, llm=model, seed=seed))
        assert {c.scores["finished_in_tests"] for c in answer.candidates if c.answer is not None} == {0.9}
