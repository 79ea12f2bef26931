"""The laws of verifiers, checked with the toy model as judge in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from stratagem.core.asking import POLICY
from stratagem.core.budget import Budget, Ledger
from stratagem.core.errors import BudgetExhausted
from stratagem.core.protocols import Verdict, Verifier
from stratagem.core.run import Run
from stratagem.core.task import Candidate, Task
from stratagem.testing.laws._trial import (
    cancelled_everywhere,
    leaves_nothing,
    loads_from_its_dump,
    never_overspends,
    require,
)
from stratagem.testing.loops import run as run_loop
from stratagem.testing.toy import ToyModel, jittered

QUESTION = Task.of("How many apples are left?")
TEXTS = (
    "I count.\nThe answer is 3.",
    "I guess.\nThe answer is 1.",
    "I count.\nI check.\nThe answer is 3.",
    "no idea",
    "",
    "The answer is 1/0 apples: \u221e\U0001f34e \x00 {\u202e",
)


def verifier(
    make: Callable[[], Verifier],
    *,
    task: Task = QUESTION,
    texts: Sequence[str] = TEXTS,
    same: Sequence[tuple[str, str]] = (),
    different: Sequence[tuple[str, str]] = (),
    model: Callable[..., ToyModel] = ToyModel,
    cases: int = 50,
) -> None:
    """Check every law of verifiers.

    Args:
        make: makes the verifier. One that says it is not ``pointwise`` may judge a candidate by the others,
            but not by their order.
        task: what was asked.
        texts: completions to judge.
        same: pairs of answers that it must hold to be equal; ``different``: pairs that it must not.
        model: called like :class:`ToyModel`, with some of its keywords; plays the judge.
        cases: permutations, budgets and points of cancellation tried, each.

    Raises:
        AssertionError: a law is broken; the message opens with its name.
    """
    judge = make()
    loads_from_its_dump(judge, Verifier)
    _equality(judge, texts, same, different)
    prompt = task.messages
    candidates = [Candidate(text, task.extract(text), prompt=prompt) for text in texts]
    run_loop(_Battery(judge, task, candidates, model, cases).check())


def _equality(
    judge: Verifier,
    texts: Sequence[str],
    same: Sequence[tuple[str, str]],
    different: Sequence[tuple[str, str]],
) -> None:
    law = "equality is reflexive and symmetric"
    answers = {*texts, *(a for pair in (*same, *different) for a in pair)}
    for answer in answers:
        require(judge.equivalent(answer, answer), law, f"{answer!r} is not itself")
    for a in answers:
        for b in answers:
            one = judge.equivalent(a, b)
            require(one == judge.equivalent(b, a), law, f"{a!r} and {b!r} depend on their order")
    for a, b in same:
        require(judge.equivalent(a, b), "equal answers are equal", f"{a!r} and {b!r}")
    for a, b in different:
        require(not judge.equivalent(a, b), "different answers differ", f"{a!r} and {b!r}")


class _Battery:
    def __init__(
        self,
        judge: Verifier,
        task: Task,
        candidates: Sequence[Candidate],
        model: Callable[..., ToyModel],
        cases: int,
    ) -> None:
        self.judge, self.task, self.candidates = judge, task, candidates
        self.model, self.cases = model, cases

    async def check(self) -> None:
        verdicts = await self._verdicts(self.candidates, "one verdict per candidate, in [0, 1]")
        await self._empty()
        await self._permuted(verdicts)
        if self.judge.pointwise:
            await self._alone(verdicts)
        await self._budgets()
        await self._cancelled()

    def _setup(self, budget: Budget | None = None, shuffle: int = 0) -> tuple[Run, ToyModel]:
        toy = self.model(pace=jittered(shuffle))
        clock = asyncio.get_running_loop().time
        return Run({POLICY: toy}, ledger=Ledger(budget, clock=clock)), toy

    async def _verdicts(self, candidates: Sequence[Candidate], law: str, shuffle: int = 0) -> list[Verdict]:
        run, toy = self._setup(shuffle=shuffle)
        verdicts = await self.judge(self.task, candidates, run)
        leaves_nothing(run, toy, law)
        count = f"{len(verdicts)} verdicts on {len(candidates)} candidates"
        require(len(verdicts) == len(candidates), law, count)
        for verdict in verdicts:
            inside = verdict.score is None or 0.0 <= verdict.score <= 1.0
            require(inside, law, f"the score {verdict.score}")
        return verdicts

    async def _empty(self) -> None:
        law = "no candidates, no verdicts and no cost"
        run, toy = self._setup()
        verdicts = await self.judge(self.task, [], run)
        require(list(verdicts) == [], law, f"it said {verdicts}")
        require(toy.books.usage.calls == 0, law, f"it spent {toy.books.usage}")

    async def _permuted(self, verdicts: Sequence[Verdict]) -> None:
        law = "verdicts follow their candidates"
        rng = random.Random(0)
        for case in range(max(3, self.cases // 10)):
            order = rng.sample(range(len(self.candidates)), len(self.candidates))
            got = await self._verdicts([self.candidates[i] for i in order], law, shuffle=case)
            for verdict, i in zip(got, order, strict=True):
                self._equal(verdict, verdicts[i], law, f"in the order {order}: candidate {i}")

    async def _alone(self, verdicts: Sequence[Verdict]) -> None:
        law = "pointwise: the verdict does not depend on the others"
        for candidate, verdict in zip(self.candidates, verdicts, strict=True):
            [alone] = await self._verdicts([candidate], law)
            self._equal(alone, verdict, law, repr(candidate.text))

    async def _budgets(self) -> None:
        run, toy = self._setup()
        await self.judge(self.task, self.candidates, run)
        most = toy.books.usage
        rng = random.Random(0)
        for case in range(self.cases if most.calls else 0):
            kind = rng.choice(["tokens", "calls"])
            budget = Budget.model_validate({kind: rng.randint(0, 2 * getattr(most, kind))})
            run, toy = self._setup(budget, shuffle=case)
            when = f"budget {budget.model_dump(exclude_none=True)}"
            try:
                await self.judge(self.task, self.candidates, run)
            except BudgetExhausted:
                pass
            except Exception as error:
                raise AssertionError(f"out of budget is BudgetExhausted: {when}: {error!r}") from error
            never_overspends(budget, toy.books.usage)
            leaves_nothing(run, toy, when)

    async def _cancelled(self) -> None:
        run, toy = self._setup()

        def start(_: int) -> Coroutine[Any, Any, list[Verdict]]:
            nonlocal run, toy
            run, toy = self._setup()
            return self.judge(self.task, self.candidates, run)

        await cancelled_everywhere(start, lambda when: leaves_nothing(run, toy, when), self.cases)

    def _equal(self, one: Verdict, other: Verdict, law: str, when: str) -> None:
        a, b = one.score, other.score
        same = a == b if a is None or b is None else abs(a - b) <= 1e-9
        require(same, law, f"{when}: {a} is not {b}")
