"""Every law of strategies and verifiers can be broken: one offender for each, caught by the law that names it."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from pydantic import Field

from laws_kit import broken
from stratagem.core.asking import Sampling
from stratagem.core.backend import (
    Request,
)
from stratagem.core.budget import Amount
from stratagem.core.errors import BackendError, StrategyError
from stratagem.core.protocols import Strategy, Verdict, Verifier
from stratagem.core.run import Run
from stratagem.core.task import Answer, Candidate, Task
from stratagem.core.usage import Meter
from stratagem.testing import laws

_numbers = itertools.count()


# -- strategies ----------------------------------------------------------------------------------------


async def one(run: Run, task: Task, **sampling: Any) -> Candidate:
    [candidate] = await run.sample(task, sampling=Sampling(max_tokens=20, **sampling), task=task)
    return candidate


def check_strategy(algorithm: Callable[[Task, Run], Any], **options: Any) -> None:
    class Mine(Strategy):
        kind: ClassVar[str] = f"mine_{next(_numbers)}"

        async def __call__(self, task: Task, run: Run) -> Answer:
            answer: Answer = await algorithm(task, run)
            return answer

    laws.strategy(Mine, cases=30, **options)


async def good(task: Task, run: Run) -> Answer:
    return run.propose(Answer.of(await one(run, task)))


def test_a_lawful_strategy_passes() -> None:
    check_strategy(good)


def test_a_strategy_that_forgets_a_parameter() -> None:
    class Forgetful(Strategy):
        kind: ClassVar[str] = "forgetful"
        n: int = Field(default=1, exclude=True)

        async def __call__(self, task: Task, run: Run) -> Answer:
            return await good(task, run)

    broken("loads from its dump", lambda: laws.strategy(lambda: Forgetful(n=3)))


async def raises(task: Task, run: Run) -> Answer:
    raise ValueError("no")


async def behind_the_run(task: Task, run: Run) -> Answer:
    generation = await run.model().generate(Request(task.messages, max_tokens=20, seed=run.seed))
    return Answer(text=generation.completions[0].text)


async def unseeded(task: Task, run: Run) -> Answer:
    candidate = await one(run, task)
    return run.propose(Answer.of(replace(candidate, text=str(random.random()))))


async def first_to_end(task: Task, run: Run) -> Answer:
    ended: list[Candidate] = []

    async def note(number: int) -> None:
        ended.append(await one(run, Task.of(f"{task.question} {number}")))

    await run.map(note, range(4))
    return run.propose(Answer.of(ended[0]))


async def always_greedy(task: Task, run: Run) -> Answer:
    return run.propose(Answer.of(await one(run, task, temperature=0.0)))


_running = 0


async def shares_state(task: Task, run: Run) -> Answer:
    global _running
    _running += 1
    try:
        candidate = await one(run, task)
        return run.propose(Answer.of(replace(candidate, text=f"{candidate.text} {_running}")))
    finally:
        _running -= 1


async def bills_without_reserving(task: Task, run: Run) -> Answer:
    answer = await good(task, run)
    meter = Meter()
    try:
        await run.model().generate(Request(task.messages, max_tokens=20), meter)
    finally:
        (await run.ledger.reserve(Amount())).settle(meter.usage)
    return answer


async def proposes_late(task: Task, run: Run) -> Answer:
    candidates = [await one(run, task) for _ in range(4)]
    return run.propose(Answer.of(candidates[0], tuple(candidates)))


async def skimps_in_silence(task: Task, run: Run) -> Answer:
    left = run.ledger.left().tokens
    n = 8 if left is None else max(1, min(8, left // 40))
    drawn = await run.sample(task, n, sampling=Sampling(max_tokens=20), task=task)
    return run.propose(Answer.of(drawn[-1], tuple(drawn)))


async def proposes_after_thinking(task: Task, run: Run) -> Answer:
    candidate = await one(run, task)
    await asyncio.sleep(1)
    return run.propose(Answer.of(candidate))


async def hides_the_cause(task: Task, run: Run) -> Answer:
    try:
        return await good(task, run)
    except BackendError:
        raise StrategyError("something went wrong") from None


async def swallows_cancellation(task: Task, run: Run) -> Answer:
    try:
        return await good(task, run)
    except asyncio.CancelledError:
        return Answer(text="never mind")


_leaked: set[asyncio.Task[Any]] = set()


async def leaks_a_task(task: Task, run: Run) -> Answer:
    answer = await good(task, run)
    _leaked.add(asyncio.create_task(asyncio.sleep(0)))
    return answer


async def leaks_when_cancelled(task: Task, run: Run) -> Answer:
    call = asyncio.create_task(one(run, task))
    _leaked.add(call)
    return run.propose(Answer.of(await asyncio.shield(call)))


async def keeps_a_reservation(task: Task, run: Run) -> Answer:
    await run.ledger.reserve(Amount(tokens=1))
    return await good(task, run)


@pytest.mark.parametrize(
    ("law", "algorithm"),
    [
        ("answers when nothing limits it", raises),
        ("every call is on the bill", behind_the_run),
        ("same seed, same answer", unseeded),
        ("same seed, same answer", first_to_end),
        ("different seeds can give different answers", always_greedy),
        ("a batch equals its runs one by one", shares_state),
        ("never overspends", bills_without_reserving),
        ("anytime", proposes_late),
        ("anytime", skimps_in_silence),
        ("anytime", proposes_after_thinking),
        ("a failing backend ends it with its error", hides_the_cause),
        ("cancelled anywhere, it ends there", swallows_cancellation),
        ("leaves nothing behind", leaks_a_task),
        ("leaves nothing behind", leaks_when_cancelled),
        ("leaves nothing behind", keeps_a_reservation),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_strategy_that_breaks(law: str, algorithm: Callable[[Task, Run], Any]) -> None:
    broken(law, lambda: check_strategy(algorithm))


def test_a_greedy_strategy_may_say_that_it_is() -> None:
    check_strategy(always_greedy, deterministic=True)


# -- verifiers -----------------------------------------------------------------------------------------


class Lawful(Verifier):
    kind: ClassVar[str] = "lawful"

    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        async def ask(candidate: Candidate) -> Verdict:
            question = f"{candidate.text} Is it right? Answer yes or no."
            return Verdict((await run.choose(question, ("yes", "no")))["yes"])

        return await run.map(ask, candidates)


class TooFew(Lawful):
    kind: ClassVar[str] = "too_few"

    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        return (await super().__call__(task, candidates, run))[:2]


class TooHigh(Lawful):
    kind: ClassVar[str] = "too_high"

    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        return [Verdict(float(len(c.text))) for c in candidates]


class ByPosition(Lawful):
    kind: ClassVar[str] = "by_position"

    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        return [Verdict(1 / (i + 1)) for i in range(len(candidates))]


class Comparing(Lawful):
    kind: ClassVar[str] = "comparing"

    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        longest = max((len(c.text) for c in candidates), default=0)
        return [Verdict(len(c.text) / longest if longest else 0.0) for c in candidates]


class ComparingOpenly(Comparing):
    kind: ClassVar[str] = "comparing_openly"

    @property
    def pointwise(self) -> bool:
        return False


class AsksInVain(Lawful):
    kind: ClassVar[str] = "asks_in_vain"

    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        await run.sample("ready?")
        return await super().__call__(task, candidates, run)


class OneWay(Lawful):
    kind: ClassVar[str] = "one_way"

    def equivalent(self, a: str, b: str) -> bool:
        return a.startswith(b)


class NeverEqual(Lawful):
    kind: ClassVar[str] = "never_equal"

    def equivalent(self, a: str, b: str) -> bool:
        return False


class Breaks(Lawful):
    kind: ClassVar[str] = "breaks"

    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        try:
            return await super().__call__(task, candidates, run)
        except Exception as error:
            raise ValueError("no verdict") from error


class Stubborn(Lawful):
    kind: ClassVar[str] = "stubborn"

    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        try:
            return await super().__call__(task, candidates, run)
        except asyncio.CancelledError:
            return [Verdict(None)] * len(candidates)


class Unbilled(Lawful):
    kind: ClassVar[str] = "unbilled"

    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        await asyncio.gather(*(run.model().generate(Request(task.messages)) for _ in candidates))
        return [Verdict(None)] * len(candidates)


@pytest.mark.parametrize(
    ("law", "kind"),
    [
        ("one verdict per candidate, in [0, 1]", TooFew),
        ("one verdict per candidate, in [0, 1]", TooHigh),
        ("verdicts follow their candidates", ByPosition),
        ("pointwise: the verdict does not depend on the others", Comparing),
        ("no candidates, no verdicts and no cost", AsksInVain),
        ("equality is reflexive and symmetric", OneWay),
        ("equality is reflexive and symmetric", NeverEqual),
        ("out of budget is BudgetExhausted", Breaks),
        ("cancelled anywhere, it ends there", Stubborn),
        ("every call is on the bill", Unbilled),
    ],
)
def test_a_verifier_that_breaks(law: str, kind: type[Verifier]) -> None:
    broken(law, lambda: laws.verifier(kind))


def test_lawful_verifiers_pass() -> None:
    laws.verifier(Lawful)
    laws.verifier(ComparingOpenly)


def test_equalities_that_must_hold() -> None:
    broken("equal answers are equal", lambda: laws.verifier(Lawful, same=[("1/2", "0.5")]))
    broken("different answers differ", lambda: laws.verifier(Lawful, different=[("2", " 2 ")]))
