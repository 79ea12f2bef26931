"""Answers grown step by step are, character by character, what the model would have written in one go."""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import replace
from typing import ClassVar

import pytest

from stratagem.core.asking import POLICY
from stratagem.core.backend import Message, Request, ScoreRequest
from stratagem.core.budget import Budget, Ledger
from stratagem.core.errors import BudgetExhausted, ConfigurationError, UnsupportedError
from stratagem.core.protocols import Strategy, Verifier
from stratagem.core.run import Run
from stratagem.core.task import Answer, Task
from stratagem.strategies._search.steps import Partial, Stepwise
from stratagem.testing.toy import CAPABLE, ToyModel

TASK = Task.of("Which?")
LINES = {
    "": {"a.": 0.5, "b.": 0.5},
    "a.": {"\n\n": 0.5, "\n": 0.5},
    "a.\n": {"  c": 1.0},
    "a.\n  c": {"\n": 0.5, "": 0.5},
    "a.\n\n": {"d\n": 1.0},
    "b.": {"\n": 1.0},
    "b.\n": {"\n": 0.5, "e": 0.5},
    "b.\n\n": {"f": 1.0},
}


class Grown(Stepwise):
    """Grows one answer to its end."""

    kind: ClassVar[str] = "grown"

    async def __call__(self, task: Task, run: Run) -> Answer:
        partial = Partial()
        while not partial.ended:
            [partial] = await self.extend(task, run, partial)
            partial = await self.judge(task, run, partial)
        return run.propose(Answer.of(self.candidate(task, partial)))


def grow(model: ToyModel, strategy: Grown, seed: int = 0, budget: Budget | None = None) -> list[Partial]:
    """What it was after each step."""

    async def main() -> list[Partial]:
        run = Run({POLICY: model}, seed=seed, ledger=Ledger(budget))
        stages = [Partial()]
        while not stages[-1].ended:
            [longer] = await strategy.extend(TASK, run, stages[-1])
            stages.append(longer)
        return stages

    return asyncio.run(main())


def test_steps_join_to_exactly_what_is_written_in_one_go() -> None:
    """Blank lines and indentation included; only what follows the last line is left off."""
    model = ToyModel(LINES)
    # One token "\n\n", two tokens "\n", and an indented line.
    asked: list[str] = []

    async def pace(request: Request | ScoreRequest) -> None:
        last = request.messages[-1]
        asked.append(last.content if last.role == "assistant" else "")

    found = {grow(ToyModel(LINES, pace=pace), Grown(), seed)[-1].text for seed in range(40)}
    assert found == {text.rstrip() for text in model.enumerate(TASK)}
    assert set(asked) == {"", "a.\n", "a.\n\n", "a.\n  c\n", "a.\n\nd\n", "b.\n", "b.\n\n"}


def test_log_probabilities_and_tokens_are_those_of_the_whole() -> None:
    model = ToyModel()
    law = model.enumerate(TASK)
    for seed in range(10):
        *_, before, last = grow(model, Grown(), seed)
        assert last.ended
        assert last.finish == "stop"
        assert last.token_count == len(last.tokens)
        assert "".join(t.token for t in last.tokens) == last.written == last.text
        assert last.logprob == pytest.approx(math.log(law[last.text]))
        assert not before.ended
        assert before.written == before.text + "\n"
        assert last.written.startswith(before.written)


def test_grown_answers_have_the_distribution_of_whole_ones() -> None:
    model = ToyModel()
    law, rng, n = model.enumerate(TASK), random.Random(0), 2000
    counts = dict.fromkeys(law, 0)
    for _ in range(n):
        counts[grow(model, Grown(), rng.getrandbits(30))[-1].text] += 1
    for text, p in law.items():
        assert abs(counts[text] - n * p) <= 4 * (n * p * (1 - p)) ** 0.5


def test_only_the_newest_step_is_judged() -> None:
    """One question a step, whatever the aggregate, also in a composition; the judge sees no open line end."""
    questions: list[tuple[Message, ...]] = []

    async def pace(request: Request | ScoreRequest) -> None:
        if "yes or no" in request.messages[-1].content:
            questions.append(request.messages)

    async def main(verifier: Verifier) -> Partial:
        strategy = Grown(verifier=verifier, aggregate="product")
        run, partial = Run({POLICY: ToyModel(pace=pace)}), Partial()
        while not partial.ended:
            [partial] = await strategy.extend(TASK, run, partial)
            partial = await strategy.judge(TASK, run, partial)
            assert partial.judged == partial.steps == len(partial.rewards)
        return partial

    step_judge = Verifier.load("step_judge")
    for verifier in (step_judge, step_judge & step_judge):
        questions.clear()
        partial = asyncio.run(main(verifier))
        said = [m[-2].content for m in questions]
        lines = partial.text.split("\n")
        once = ["\n".join(lines[: k + 1]) for k in range(len(lines))]
        assert sorted(said) == sorted(once * (1 if verifier is step_judge else 2))
        whole = asyncio.run(
            Run({POLICY: ToyModel()}).verify(verifier, TASK, [Grown().candidate(TASK, partial)])
        )
        assert Grown(verifier=verifier, aggregate="product").score(partial) == whole[0].score


def test_limits() -> None:
    model = ToyModel()
    # The last step goes on to the end of the answer; a long step is cut and gone on with.
    assert {p[-1].steps for p in (grow(model, Grown(max_steps=2), seed) for seed in range(20))} == {2}
    for seed in range(20):
        short = grow(model, Grown(step_tokens=1), seed)
        assert (short[-1].finish, short[-1].text) in {("stop", text) for text in model.enumerate(TASK)}
        assert short[-1].steps == len(short) - 1 or short[-1].steps == len(short) - 2
        cut = grow(model, Grown(max_tokens=2), seed)[-1]
        assert (cut.ended, cut.finish, cut.token_count) == (True, "length", 2)
    # The context or the budget ends it too.
    narrow = ToyModel(capabilities=replace(CAPABLE, context=model.prompt_tokens(Grown().prompt(TASK)) + 4))
    assert {grow(narrow, Grown(), seed)[-1].finish for seed in range(20)} == {"length"}
    prompt = model.prompt_tokens(Grown().prompt(TASK))
    one = grow(ToyModel({"": {"x ": 1.0}, "x ": {"y": 1.0}}), Grown(), budget=Budget(tokens=prompt + 1))
    assert (one[-1].ended, one[-1].text, one[-1].finish) == (True, "x ", "length")
    with pytest.raises(BudgetExhausted):
        grow(model, Grown(), budget=Budget(tokens=prompt))


def test_a_model_that_says_nothing_but_blank_lines_has_ended() -> None:
    rows = {"\n" * k: {"\n": 1.0} for k in range(20)}
    model = ToyModel(rows)
    [_, last] = grow(model, Grown())
    assert (last.ended, last.text, last.steps) == (True, "", 0)
    assert model.books.usage.calls == 3


@pytest.mark.parametrize(
    ("lacks", "says"),
    [({"continue_final": False}, "cannot continue its own message"), ({"logprobs": -1}, "log-prob")],
)
def test_a_model_that_cannot_is_told_before_anything_is_spent(
    lacks: dict[str, bool | int], says: str
) -> None:
    model = ToyModel(capabilities=replace(CAPABLE, **lacks))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match=says):
        grow(model, Grown())
    assert model.books.usage.calls == 0


def test_a_verifier_that_compares_is_refused() -> None:
    class Compares(Verifier):
        kind: ClassVar[str] = "compares"
        pointwise: ClassVar[bool] = False  # type: ignore[assignment]

        async def __call__(self, task, candidates, run):  # type: ignore[no-untyped-def]
            return []

    with pytest.raises(ConfigurationError, match="take one that judges each alone"):
        Strategy.load({"kind": "grown", "verifier": Compares()})
