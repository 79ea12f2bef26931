"""Running a strategy to its end: budgets become answers, errors become Stratagem's."""

from __future__ import annotations

import asyncio
import time

from stratagem.core.errors import BudgetExhausted, StrategyError, boundary
from stratagem.core.protocols import Strategy
from stratagem.core.run import Run
from stratagem.core.task import Answer, Stopped, Task
from stratagem.core.trace import RunFinished, RunStarted


async def execute(strategy: Strategy, task: Task, run: Run) -> Answer:
    """The strategy's answer, with what the run spent.

    Out of budget or time, the best answer proposed so far, marked by ``stopped``. When cancelled it stops the
    engine and lets the cancellation pass; ``run.trace.partial`` then holds the best so far, marked in the same way.

    Raises:
        BudgetExhausted: nothing had been proposed when the budget ran out.
        StratagemError: typed by the boundary that failed.
    """
    started = time.monotonic()
    run.trace.append(RunStarted(strategy.dump(), task.question, run.seed))
    stopped: Stopped = "complete"
    try:
        with boundary(StrategyError, f"Strategy {strategy.kind!r}"):
            async with run.deadline():
                answer = await strategy(task, run)
            if not isinstance(answer, Answer):
                raise TypeError(f"it gave {answer!r}, not an Answer")
    except BudgetExhausted:
        if run.best is None:
            _finished(run, "budget", started)
            raise
        answer, stopped = run.best, "budget"
    except asyncio.CancelledError:
        event = _finished(run, "cancelled", started)
        run.trace.partial = _with_cost(run.best or Answer(text=""), "cancelled", event, run)
        raise
    except BaseException as error:
        _finished(run, "failed", started, error)
        raise
    if run.ledger.refused:
        stopped = "deadline" if run.ledger.time_is_up else "budget"
    run.best = answer
    return _with_cost(answer, stopped, _finished(run, stopped, started), run)


def _with_cost(answer: Answer, stopped: Stopped, event: RunFinished, run: Run) -> Answer:
    told = {"stopped": stopped, "usage": event.usage, "seconds": event.seconds, "run_id": run.run_id}
    return answer.model_copy(update=told)


def _finished(run: Run, stopped: str, started: float, error: BaseException | None = None) -> RunFinished:
    """Record the end of a run, with the best answer that it had."""
    value = run.best.value if run.best is not None else None
    message = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else ""
    event = RunFinished(value, stopped, run.ledger.spent, time.monotonic() - started, message)
    run.trace.append(event)
    return event
