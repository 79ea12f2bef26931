"""Running a strategy to its end: budgets become answers, errors become Stratagem's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from stratagem.core.errors import BudgetExhausted, StratagemError, StrategyError, boundary
from stratagem.core.protocols import Spreading, Strategy
from stratagem.core.run import Run
from stratagem.core.task import Answer, Stopped, Task
from stratagem.core.trace import RunFinished, RunStarted


async def execute(strategy: Strategy, task: Task, run: Run) -> Answer:
    """The strategy's answer, with what the run spent.

    Out of budget or time, the best answer proposed so far, marked by ``stopped``. When cancelled it stops the
    engine and lets the cancellation pass; ``run.trace.partial`` then holds the best so far, marked in the same way,
    and so it does where the run fails.

    Raises:
        BudgetExhausted: nothing had been proposed when the budget ran out.
        StratagemError: typed by the boundary that failed.
    """
    started = time.monotonic()
    run.trace.append(RunStarted(strategy.dump(), task.question, run.seed))
    stopped: Stopped = "complete"
    reason = ""
    try:
        with boundary(StrategyError, f"Strategy {strategy.kind!r}"):
            async with run.deadline():
                await strategy.check(run)
                answer = await strategy(task, run)
            if not isinstance(answer, Answer):
                raise TypeError(f"it gave {answer!r}, not an Answer")
    except BudgetExhausted as error:
        if run.best is None:
            _finished(run, "budget", started)
            raise
        answer, stopped, reason = run.best, "budget", error.message
    except asyncio.CancelledError:
        event = _finished(run, "cancelled", started)
        run.trace.partial = _with_cost(run.best or Answer(text=""), "cancelled", "", event, run)
        raise
    except BaseException as error:
        event = _finished(run, "failed", started, error)
        why = error.message if isinstance(error, StratagemError) else str(error)
        run.trace.partial = _with_cost(run.best or Answer(text=""), "failed", why, event, run)
        raise
    stopped, reason = _cut_short(run) or (stopped, reason)
    run.best = answer
    return _with_cost(answer, stopped, reason, _finished(run, stopped, started), run)


async def execute_all(
    strategy: Strategy, tasks: Sequence[Task], run: Run, runs: Sequence[Run]
) -> list[Answer]:
    """The strategy's answers to all tasks at the same time, each in its own of ``runs``, which stand within ``run``
    and share its budget. One that :class:`Spreading` says decides how much each of them gets.

    A task that the budget has left without an answer, or that fails, has an empty one that says why.

    Raises:
        StratagemError: that of the first task, if no task has an answer.
    """
    errors: dict[int, StratagemError] = {}
    if isinstance(strategy, Spreading):
        answers = await _spread(strategy, tasks, run, runs, errors)
    else:

        async def one(at: int) -> Answer:
            try:
                return await execute(strategy, tasks[at], runs[at])
            except StratagemError as error:
                errors[at] = error
                stopped: Stopped = "budget" if isinstance(error, BudgetExhausted) else "failed"
                told = {"stopped": stopped, "reason": error.message, "usage": runs[at].ledger.spent}
                return Answer(text="", run_id=runs[at].run_id).model_copy(update=told)

        answers = await run.map(one, range(len(tasks)))
    if tasks and len(errors) == len(tasks):
        raise errors[0]
    return answers


async def _spread(
    strategy: Spreading,
    tasks: Sequence[Task],
    run: Run,
    runs: Sequence[Run],
    errors: dict[int, StratagemError],
) -> list[Answer]:
    started = time.monotonic()
    for task, own in zip(tasks, runs, strict=True):
        own.trace.append(RunStarted(strategy.dump(), task.question, own.seed))
    try:
        with boundary(StrategyError, f"Strategy {strategy.kind!r}"):
            async with run.deadline():
                await strategy.check(runs[0] if runs else run)
                errors |= await strategy.spread(tasks, runs)
    except BudgetExhausted:
        pass  # what each run has proposed stands
    except asyncio.CancelledError:
        for own in runs:
            event = _finished(own, "cancelled", started)
            own.trace.partial = _with_cost(own.best or Answer(text=""), "cancelled", "", event, own)
        raise
    except BaseException as error:
        for own in runs:
            _finished(own, "failed", started, error)
        raise
    answers: list[Answer] = []
    for at, own in enumerate(runs):
        stopped, reason = _cut_short(own) or ("complete", "")
        why = (
            errors.pop(at)
            if at in errors
            else BudgetExhausted(f"The budget is exhausted: {run.ledger.refusal}.")
        )
        if not isinstance(why, BudgetExhausted):
            stopped, reason = "failed", why.message
        elif own.best is None:
            stopped, reason = "budget", why.message
        if own.best is None:
            errors[at] = why
        event = _finished(own, stopped, started)
        answers.append(_with_cost(own.best or Answer(text=""), stopped, reason, event, own))
    return answers


def _cut_short(run: Run) -> tuple[Stopped, str] | None:
    """What kept the run from doing more."""
    if not run.ledger.refused:
        return None
    return (
        "deadline" if run.ledger.time_is_up else "budget",
        f"The budget is exhausted: {run.ledger.refusal}.",
    )


def _with_cost(answer: Answer, stopped: Stopped, reason: str, event: RunFinished, run: Run) -> Answer:
    told = {"stopped": stopped, "usage": event.usage, "seconds": event.seconds, "run_id": run.run_id}
    return answer.model_copy(update={**told, "reason": reason})


def _finished(run: Run, stopped: str, started: float, error: BaseException | None = None) -> RunFinished:
    """Record the end of a run, with the best answer that it had."""
    value = run.best.value if run.best is not None else None
    message = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else ""
    event = RunFinished(value, stopped, run.ledger.spent, time.monotonic() - started, message)
    run.trace.append(event)
    return event
