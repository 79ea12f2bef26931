"""Runs of every strategy and the ends that may come to them: what the tests of cost and of cancellation share."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from stratagem.core.asking import POLICY, Sampling
from stratagem.core.backend import Backend
from stratagem.core.budget import Budget, Ledger
from stratagem.core.component import parameter
from stratagem.core.errors import BackendError, BudgetExhausted
from stratagem.core.execute import execute
from stratagem.core.protocols import Strategy, Verifier
from stratagem.core.run import Run
from stratagem.core.task import Answer, Candidate, Task
from stratagem.core.trace import CallFinished, Record, Retried, Trace
from stratagem.core.usage import Usage
from stratagem.testing.loops import StepLoop


class Leaves(Strategy):
    """Leaves a stream after some pieces; may ask a judge about the first of them meanwhile."""

    kind: ClassVar[str] = "leaves"

    n: int = parameter(3, "Completions.", ge=1)
    pieces: int = parameter(6, "Pieces to read.", ge=1)
    judged: bool = parameter(True, "Ask a judge; its call goes on beside the stream.")

    async def __call__(self, task: Task, run: Run) -> Answer:
        texts = [""] * self.n
        left = self.pieces
        async with run.stream(task, self.n, sampling=Sampling(max_tokens=20)) as stream:
            async for chunk in stream:
                texts[chunk.index] += chunk.text
                run.propose(Answer(text=texts[chunk.index]))
                if self.judged and left == self.pieces:
                    begun = Candidate(texts[chunk.index], prompt=task.messages)
                    await run.verify(Verifier.load("restart"), task, [begun])
                left -= 1
                if not left:
                    break
        return run.propose(Answer(text=max(texts, key=len)))


def strategies(n: int, max_tokens: int = 20, *, beside: bool = True) -> list[Strategy]:
    """Each strategy but the agents, with each kind of judge, of ``n`` samples or somewhat fewer.

    ``beside``: one asks a judge while it holds a stream, which a model with a single permit cannot answer.
    """
    few = n * 3 // 4
    settings: tuple[dict[str, Any], ...] = (
        {"kind": "direct"},
        {"kind": "chain_of_thought"},
        {"kind": "self_consistency", "n": n},
        {"kind": "self_consistency", "n": n, "equality": "math"},
        {"kind": "weighted_vote", "n": n},
        {"kind": "weighted_vote", "n": few, "by": "verifier", "verifier": "judge"},
        {"kind": "best_of_n", "n": n},
        {"kind": "best_of_n", "n": few, "verifier": "restart"},
        {"kind": "adaptive_best_of_n", "n": n, "tau": 0.8, "parallel": 2},
        {"kind": "pruned_best_of_n", "n": n, "every": 1, "margin": 0.1},
        {"kind": "pruned_best_of_n", "n": few, "unit": "token", "checkpoints": (2, 4)},
        {"kind": "allocation", "n": n},
        {"kind": "early_stopping_consistency", "n": n, "ahead": 2},
        {"kind": "deep_confidence", "n": n, "warmup": 2, "window": 2, "ahead": True},
        {"kind": "self_certainty", "n": few},
        {"kind": "rpc", "n": n},
        {"kind": "tournament", "n": few},
        {"kind": "debate", "n": 2},
        {"kind": "self_refine"},
        {"kind": "critique_revise", "verifier": "judge"},
        {"kind": "dynamic_prompting"},
        {"kind": "step_best_of_n", "n": few},
        {"kind": "beam_search", "beams": 2, "width": 2, "verifier": "restart"},
        {"kind": "dvts", "trees": 2, "width": 2},
        {"kind": "best_first", "width": 2, "expansions": 4, "parallel": 2},
        {"kind": "mcts", "simulations": 3, "width": 2, "parallel": 2},
        {"kind": "particle_filtering", "n": n},
        {"kind": "particle_filtering", "n": n, "together": 2, "ess": 0.8, "verifier": "restart"},
        {"kind": "particle_gibbs", "n": 2, "iterations": 2},
        {"kind": "parallel_tempering", "n": 2, "iterations": 2, "temperatures": (1.0, 2.0)},
    )
    loaded = [Strategy.load({"max_tokens": max_tokens, **each}) for each in settings]
    return [*loaded, Leaves(n=few, judged=beside), Leaves(n=1, pieces=2, judged=False)]


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that has come to an end of whatever kind."""

    strategy: Strategy
    spent: Usage
    trace: Trace
    cut: bool  # cancelled, failed, or its time was up

    @property
    def undisturbed(self) -> bool:
        """Whether every call of it ended well: none was stopped, and none sent again that may have been billed."""
        again = any(event.maybe_billed for event in self.trace.of(Retried))
        stopped = any(event.error for event in self.trace.of(CallFinished))
        return not (self.cut or again or stopped or isinstance(self.strategy, Leaves))


async def random_run(backend: Backend, strategy: Strategy, number: int, rng: random.Random) -> Ended:
    """A run on question ``number`` to which one of many things happens: nothing, a cancellation some time after
    one of its events, or a budget of tokens or seconds."""
    loop = asyncio.get_running_loop()
    plan = rng.choice(("nothing", "nothing", "cancel", "tokens", "seconds"))
    limits = {"tokens": Budget(tokens=rng.randint(60, 900)), "seconds": Budget(seconds=0.3 * rng.random())}
    ledger, trace = Ledger(limits.get(plan)), Trace()
    run = Run({POLICY: backend}, ledger=ledger, seed=number, trace=trace)
    task = asyncio.create_task(execute(strategy, Task.of(f"Run {number}: how many apples?"), run))
    if plan == "cancel":
        event = rng.randint(0, 12)
        later = rng.choice((0.0, rng.expovariate(1 / 0.02)))

        def hear(record: Record) -> None:
            if record.number == event:
                loop.call_later(later, task.cancel)

        trace.listeners.append(hear)
    await asyncio.wait([task])
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, (BackendError, BudgetExhausted)):
        raise error
    assert ledger.idle
    return Ended(strategy, ledger.spent, trace, task.cancelled() or error is not None or plan == "seconds")


async def random_runs(
    backend: Backend, chosen: Sequence[Strategy], numbers: Sequence[int], rng: random.Random, at_once: int
) -> dict[int, Ended]:
    """Runs by number, so many at the same time."""
    ended: dict[int, Ended] = {}
    left = iter(numbers)

    async def work() -> None:
        for number in left:  # shared: whoever is free takes the next
            ended[number] = await random_run(backend, rng.choice(chosen), number, rng)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())
    return ended


async def cancel_at_random_points(
    points: int,
    chosen: Sequence[Strategy],
    backend: Callable[[int], Backend],
    check: Callable[[Ledger], Awaitable[None]],
    *,
    tokens: Sequence[int | None],
    first: int = 0,
) -> int:
    """Cancel runs at random steps of the loop, until so many were still under way; how many runs it took.

    ``backend`` gives the model for a run by its number (from ``first`` on), ``tokens`` are the budgets to choose
    from (tight ones make calls wait), and ``check`` looks at what is left after the end.
    """
    loop = asyncio.get_running_loop()
    assert isinstance(loop, StepLoop)
    lengths = [0] * len(chosen)  # in steps
    reached, number = 0, first - 1
    while reached < points:
        number += 1
        rng = random.Random(number)
        which = number % len(chosen)
        length = lengths[which]
        # The first run of each strategy is left alone: it tells how many points there are.
        budget = Budget(tokens=rng.choice(tokens), seconds=rng.choice([None, 60])) if length else Budget()
        ledger = Ledger(budget, clock=loop.time)
        run = Run({POLICY: backend(number)}, ledger=ledger, seed=number)
        begun = loop.steps
        task = asyncio.create_task(execute(chosen[which], Task.of("How many apples are left?"), run))
        asked: list[bool] = []
        if length:
            loop.plan(rng.randint(1, length), partial(_cancel, task, asked))
        done, _ = await asyncio.wait({task}, timeout=120)
        assert done, (chosen[which], number, "waits for what never comes")
        loop.cancel_plan()
        if not task.cancelled():
            lengths[which] = max(length, loop.steps - begun)
            error = task.exception()
            assert error is None or isinstance(error, (BackendError, BudgetExhausted)), (
                chosen[which],
                number,
            )
        assert task.cancelled() == any(asked), (chosen[which], number)
        reached += task.cancelled()
        assert ledger.idle
        await check(ledger)
        # A simulated server's own tasks may be about to end: it has just seen the client go.
        left = {t for t in asyncio.all_tasks() if "HttpServer" not in repr(t.get_coro())}
        assert left == {asyncio.current_task()}, (chosen[which], number, left)
    return number + 1 - first


def _cancel(task: asyncio.Task[Any], asked: list[bool]) -> None:
    asked.append(task.cancel())
