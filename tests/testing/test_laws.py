"""Every law can be broken: one offender for each, caught by the law that names it."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from pydantic import Field

from stratagem.core.backend import (
    Capabilities,
    Completion,
    Generation,
    Request,
    ScoreRequest,
    Scoring,
)
from stratagem.core.budget import Amount
from stratagem.core.errors import BackendError, StrategyError
from stratagem.core.protocols import Strategy, Verdict, Verifier
from stratagem.core.run import Run, Sampling
from stratagem.core.task import Answer, Candidate, Task
from stratagem.core.usage import Meter, Usage
from stratagem.testing import laws
from stratagem.testing.toy import Books, ToyModel, ToyStream

_numbers = itertools.count()


def broken(law: str, check: Callable[[], None]) -> None:
    with pytest.raises(AssertionError) as caught:
        check()
    assert str(caught.value).startswith(law + ": ")


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
    left = run.ledger.tokens_unspent()
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


# -- backends ------------------------------------------------------------------------------------------


def check_backend(make: Callable[[], ToyModel]) -> None:
    def idle(backend: Any) -> bool:
        books: Books = backend.books
        return books.in_flight == 0 and books.permits == 0

    def usage(backend: Any) -> Usage:
        books: Books = backend.books
        return books.usage

    laws.backend(make, idle=idle, usage=usage)


def test_lawful_backends_pass() -> None:
    check_backend(ToyModel)
    check_backend(lambda: ToyModel(permits=1))
    laws.backend(ToyModel)


class _Changed(ToyModel):
    """Changes what generate gives."""

    def change(self, completions: tuple[Completion, ...]) -> tuple[Completion, ...]:
        raise NotImplementedError

    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        generation = await super().generate(request, meter)
        return replace(generation, completions=self.change(generation.completions))


class Reversed(_Changed):
    def change(self, completions: tuple[Completion, ...]) -> tuple[Completion, ...]:
        return completions[::-1]


class Shouting(_Changed):
    def change(self, completions: tuple[Completion, ...]) -> tuple[Completion, ...]:
        return tuple(replace(c, text=c.text.upper()) for c in completions)


class Optimistic(_Changed):
    def change(self, completions: tuple[Completion, ...]) -> tuple[Completion, ...]:
        return tuple(
            replace(c, tokens=tuple(replace(t, logprob=t.logprob + 1) for t in c.tokens)) for c in completions
        )


class SameSeed(ToyModel):
    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        meter = meter or Meter()
        parts = [await super(SameSeed, self).generate(request.sibling(0), meter) for _ in range(request.n)]
        found = tuple(replace(p.completions[0], index=i) for i, p in enumerate(parts))
        return Generation(found, meter.usage)


class Unseeded(ToyModel):
    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        return await super().generate(replace(request, seed=None), meter)


class BillsTwice(ToyModel):
    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        generation = await super().generate(request, meter)
        if meter is not None:
            meter.add(generation.usage)
        return generation


class ForgetsTheCancelled(ToyModel):
    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        generation = await super().generate(request)
        if meter is not None:
            meter.add(generation.usage)
        return generation


class GoesOn(ToyModel):
    @asynccontextmanager
    async def stream(
        self, request: Request, meter: Meter | None = None, *, deltas: bool = True
    ) -> AsyncIterator[ToyStream]:
        async with super().stream(request, meter, deltas=deltas) as stream:
            yield stream
            async for _ in stream:
                pass


class KeepsPermits(ToyModel):
    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        try:
            return await super().generate(request, meter)
        except asyncio.CancelledError:
            self.books.permits += 1
            raise


class LosesADelta(ToyModel):
    @asynccontextmanager
    async def stream(
        self, request: Request, meter: Meter | None = None, *, deltas: bool = True
    ) -> AsyncIterator[ToyStream]:
        async with super().stream(request, meter, deltas=deltas) as stream:
            if deltas:
                await anext(stream)
            yield stream


class IgnoresStops(ToyModel):
    @asynccontextmanager
    async def stream(
        self, request: Request, meter: Meter | None = None, *, deltas: bool = True
    ) -> AsyncIterator[ToyStream]:
        async with super().stream(replace(request, stop=()), meter, deltas=deltas) as stream:
            yield stream


class IgnoresConstraints(ToyModel):
    @asynccontextmanager
    async def stream(
        self, request: Request, meter: Meter | None = None, *, deltas: bool = True
    ) -> AsyncIterator[ToyStream]:
        async with super().stream(replace(request, constraint=None), meter, deltas=deltas) as stream:
            yield stream


class ScoresByLength(ToyModel):
    async def score(self, request: ScoreRequest, meter: Meter | None = None) -> Scoring:
        scoring = await super().score(request, meter)
        return replace(
            scoring,
            scores=tuple(tuple(replace(t, logprob=-float(len(t.token))) for t in s) for s in scoring.scores),
        )


class Miscounts(ToyModel):
    def prompt_tokens(self, prompt: Any) -> int:
        return super().prompt_tokens(prompt) + next(_numbers)


class Forgetful(ToyModel):
    async def capabilities(self) -> Capabilities:
        return replace(await super().capabilities(), version=str(next(_numbers)))


class OneLoop(ToyModel):
    _loop: asyncio.AbstractEventLoop | None = None

    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        self._loop = self._loop or asyncio.get_running_loop()
        if self._loop is not asyncio.get_running_loop():
            request = replace(request, seed=next(_numbers))
        return await super().generate(request, meter)


class OneAtATime(ToyModel):
    """Answers wrongly when it is asked several things at once."""

    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        if self.books.in_flight > 3:
            request = replace(request, seed=0)
        return await super().generate(request, meter)


@pytest.mark.parametrize(
    ("law", "kind"),
    [
        ("it knows its name and what it can do", Forgetful),
        ("prompts are counted", Miscounts),
        ("n completions, in order of index", Reversed),
        ("completion i is drawn with seed + i", SameSeed),
        ("completion i is drawn with seed + i", Unseeded),
        ("what is spent is metered exactly once", BillsTwice),
        ("a stream gives what generate gives", Shouting),
        ("deltas join to the text", LosesADelta),
        ("max_tokens and stop strings are kept", IgnoresStops),
        ("log-probabilities are the model's, best first", Optimistic),
        ("scores are the log-probabilities of generation", ScoresByLength),
        ("a constraint is kept", IgnoresConstraints),
        ("leaving the block stops decoding", GoesOn),
        ("at the same time as one by one", OneAtATime),
        ("what is spent is metered exactly once", ForgetsTheCancelled),
        ("leaves nothing behind", KeepsPermits),
        ("used from a second event loop", OneLoop),
    ],
)
def test_a_backend_that_breaks(law: str, kind: type[ToyModel]) -> None:
    broken(law, lambda: check_backend(kind))
