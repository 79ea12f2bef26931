"""The laws of strategies, checked against the toy model in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from stratagem.core.asking import POLICY
from stratagem.core.backend import Backend, Request, ScoreRequest
from stratagem.core.budget import Budget, Ledger
from stratagem.core.calling import Toolbox
from stratagem.core.errors import BudgetExhausted, StratagemError
from stratagem.core.execute import execute
from stratagem.core.protocols import Strategy
from stratagem.core.run import Run
from stratagem.core.task import Answer, Task
from stratagem.core.trace import CompletionArrived, Record
from stratagem.core.usage import Prices, Usage
from stratagem.testing.faults import Failing, broken
from stratagem.testing.laws._trial import (
    cancelled_everywhere,
    leaves_nothing,
    loads_from_its_dump,
    never_overspends,
    require,
    sampled,
)
from stratagem.testing.loops import run as run_loop
from stratagem.testing.toy import CAPABLE, ToyModel, jittered

PRICED = replace(CAPABLE, prices=Prices(prompt=1e6, completion=2e6))  # 1 and 2 a token: exact in floats
TICK = 0.01  # virtual seconds a token
QUESTION = Task.of("How many apples are left?")


def strategy(
    make: Callable[[], Strategy],
    *,
    task: Task = QUESTION,
    model: Callable[..., ToyModel] = ToyModel,
    tools: Toolbox | None = None,
    cases: int = 100,
    deterministic: bool = False,
) -> None:
    """Check every law of strategies.

    Args:
        make: makes the strategy.
        task: what it is asked.
        model: called like :class:`ToyModel`, with some of its keywords.
        tools: what it may call.
        cases: random budgets, deadlines and points of cancellation tried, each.
        deterministic: it may give the same answer for all seeds.

    Raises:
        AssertionError: a law is broken; the message opens with its name.
    """
    loads_from_its_dump(make(), Strategy)
    run_loop(_Battery(make(), task, model, tools, cases, deterministic).check())


@dataclass(frozen=True, slots=True)
class _Free:
    """The run that nothing limits."""

    answer: Answer
    usage: Usage
    least: Budget  # affords the first completion asked for, whole


@dataclass(slots=True)
class _Trial:
    """One run of the strategy and the model it met."""

    run: Run
    toy: ToyModel
    answer: Answer | None = None
    error: StratagemError | None = None


Shape = tuple[object, ...]


def _shape(answer: Answer) -> Shape:
    """What must be equal in equal answers; a confidence may differ by the order of a sum."""
    confidence = None if answer.confidence is None else round(answer.confidence, 9)
    return answer.text, answer.value, confidence, tuple(c.text for c in answer.candidates)


class _Battery:
    def __init__(
        self,
        strategy: Strategy,
        task: Task,
        model: Callable[..., ToyModel],
        tools: Toolbox | None,
        cases: int,
        deterministic: bool,
    ) -> None:
        self.strategy, self.task, self.model, self.tools = strategy, task, model, tools
        self.cases, self.deterministic = cases, deterministic

    async def check(self) -> None:
        free = await self._free()
        await self._same_seed_same_answer(free)
        await self._batch_equals_single()
        await self._budgets(free)
        for limits in ({}, {"permits": 2}):
            await self._cancelled(free, limits)
        await self._deadlines(free)
        await self._failures(free)

    async def _try(
        self,
        toy: ToyModel,
        when: str,
        *,
        budget: Budget | None = None,
        seed: int = 0,
        backend: Backend | None = None,
    ) -> _Trial:
        trial = _Trial(self._run(backend or toy, budget, seed), toy)
        try:
            trial.answer = await execute(self.strategy, self.task, trial.run)
        except StratagemError as error:
            trial.error = error
        leaves_nothing(trial.run, toy, when)
        if trial.answer is not None:
            require(
                trial.answer.usage == toy.books.usage,
                "the answer's usage is the backend's count",
                f"{when}: {trial.answer.usage} is not {toy.books.usage}",
            )
        return trial

    def _run(self, backend: Backend, budget: Budget | None = None, seed: int = 0) -> Run:
        clock = asyncio.get_running_loop().time
        return Run({POLICY: backend}, ledger=Ledger(budget, clock=clock), seed=seed, tools=self.tools)

    async def _free(self) -> _Free:
        law = "answers when nothing limits it"
        asked: list[Request | ScoreRequest] = []

        async def pace(request: Request | ScoreRequest) -> None:
            asked.append(request)
            await asyncio.sleep(0)

        toy = self.model(pace=pace, capabilities=PRICED)
        trial = await self._try(toy, "without limits")
        if trial.answer is None:
            raise AssertionError(f"{law}: {trial.error}") from trial.error
        require(trial.answer.stopped == "complete", law, f"stopped is {trial.answer.stopped!r}")
        first = next((r for r in asked if isinstance(r, Request)), None)
        usage = trial.answer.usage
        least = Budget(tokens=usage.tokens, calls=usage.calls, money=usage.money)
        if first is not None:
            prompt = toy.prompt_tokens(first.messages)
            money = PRICED.prices.of(prompt, first.max_tokens)
            least = Budget(tokens=prompt + first.max_tokens, calls=1, money=money)
        return _Free(trial.answer, usage, least)

    async def _same_seed_same_answer(self, free: _Free) -> None:
        law = "same seed, same answer"
        for shuffle in range(max(10, self.cases // 10)):
            toy = self.model(pace=jittered(shuffle, most=20), permits=(None, 1, 3)[shuffle % 3])
            trial = await self._try(toy, f"completions shuffled by {shuffle}")
            self._equal(trial, free.answer, law, f"completions shuffled by {shuffle}")
        law = "different seeds can give different answers"
        texts = {
            trial.answer.text
            for seed in range(30)
            if (trial := await self._try(self.model(), f"seed {seed}", seed=seed)).answer
        }
        require(len(texts) > 1 or self.deterministic, law, f"30 seeds all gave {texts}")

    async def _batch_equals_single(self) -> None:
        law = "a batch equals its runs one by one"
        single = [await self._try(self.model(), f"alone, seed {seed}", seed=seed) for seed in range(20)]
        toy = self.model(pace=jittered(1))
        runs = [self._run(toy, seed=seed) for seed in range(20)]
        answers = await asyncio.gather(*(execute(self.strategy, self.task, run) for run in runs))
        for seed, (trial, answer) in enumerate(zip(single, answers, strict=True)):
            self._equal(trial, answer, law, f"seed {seed}")
        spent = sum((run.ledger.spent for run in runs), Usage())
        require(spent == toy.books.usage, law, f"together billed {spent}, spent {toy.books.usage}")

    async def _budgets(self, free: _Free) -> None:
        rng = random.Random(0)
        for case in range(self.cases):
            budget = _some_budget(rng, free)
            when = f"budget {budget.model_dump(exclude_none=True)}"
            toy = self.model(pace=jittered(case), capabilities=PRICED, permits=rng.choice([None, 3]))
            trial = await self._try(toy, when, budget=budget)
            never_overspends(budget, toy.books.usage)
            self._anytime(trial, free, when, must_answer=_affords(budget, free.least))

    async def _deadlines(self, free: _Free) -> None:
        async def pace(_: Request | ScoreRequest) -> None:
            await asyncio.sleep(TICK)

        loop = asyncio.get_running_loop()
        arrivals: list[float] = []

        def listen(record: Record) -> None:
            if isinstance(record.event, CompletionArrived):
                arrivals.append(loop.time())

        started = loop.time()
        run = self._run(self.model(pace=pace))
        run.trace.listeners.append(listen)
        await execute(self.strategy, self.task, run)
        whole = loop.time() - started
        first = arrivals[0] - started if arrivals else whole
        rng = random.Random(0)
        for _ in range(self.cases):
            seconds, permits = rng.uniform(0, whole + TICK), rng.choice([None, 3])
            when = f"deadline {seconds:.3f} of {whole:.2f} s, first completion at {first:.2f} s"
            toy = self.model(pace=pace, permits=permits)
            trial = await self._try(toy, when, budget=Budget(seconds=seconds))
            self._anytime(trial, free, when, must_answer=permits is None and seconds > first + TICK / 2)

    def _anytime(self, trial: _Trial, free: _Free, when: str, *, must_answer: bool) -> None:
        law = "anytime"
        if trial.answer is None:
            known = isinstance(trial.error, BudgetExhausted)
            require(known, law, f"{when}: it ended with {trial.error!r} instead of BudgetExhausted")
            require(not must_answer, law, f"{when}: no answer, though it affords a completion")
        elif trial.answer.stopped == "complete":
            self._equal(trial, free.answer, law, f"{when}: said to be complete")
        else:
            require(bool(trial.answer.candidates), law, f"{when}: an answer without candidates")

    async def _failures(self, free: _Free) -> None:
        law = "a failing backend ends it with its error"
        calls = range(1, free.usage.calls + 1)
        for at in sampled(calls, self.cases):
            toy = self.model(pace=jittered(at))
            when = f"call {at} fails"
            trial = await self._try(toy, when, backend=Failing(toy, {at}, after=at % 4))
            if trial.answer is None:
                said = str(trial.error)
                require(said == str(broken()), law, f"{when}: the error is {trial.error!r}")

    async def _cancelled(self, free: _Free, limits: dict[str, int]) -> None:
        # With permits, tight enough that calls wait for each other's reservations too.
        budget = Budget(tokens=3 * (free.least.tokens or 0)) if limits else Budget()
        trial = self._trial(limits, budget)

        def start(number: int) -> Coroutine[Any, Any, Answer]:
            nonlocal trial
            trial = self._trial(limits, budget)
            return execute(self.strategy, self.task, trial.run)

        def check(when: str) -> None:
            leaves_nothing(trial.run, trial.toy, when)

        await cancelled_everywhere(start, check, self.cases)

    def _trial(self, limits: dict[str, int], budget: Budget) -> _Trial:
        toy = self.model(pace=jittered(0), **limits)
        return _Trial(self._run(toy, budget), toy)

    def _equal(self, trial: _Trial, answer: Answer, law: str, when: str) -> None:
        if trial.answer is None:
            raise AssertionError(f"{law}: {when}: {trial.error}") from trial.error
        one, other = _shape(trial.answer), _shape(answer)
        require(one == other, law, f"{when}: {one} is not {other}")


def _some_budget(rng: random.Random, free: _Free) -> Budget:
    """One or several limits between nothing and twice what is needed."""
    kinds = rng.choice(
        [("tokens",), ("calls",), ("money",), ("tokens", "calls"), ("tokens", "calls", "money")]
    )
    limits: dict[str, int] = {}
    for kind in kinds:
        most = max(getattr(free.usage, kind), getattr(free.least, kind))
        limits[kind] = rng.randint(0, rng.choice([int(most) // 4, int(most), 2 * int(most)]))
    return Budget.model_validate(limits)


def _affords(budget: Budget, least: Budget) -> bool:
    pairs = zip(budget.model_dump().values(), least.model_dump().values(), strict=True)
    return all(limit is None or need is None or limit >= need for limit, need in pairs)
