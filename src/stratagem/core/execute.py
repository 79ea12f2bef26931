"""Running a strategy to its end: budgets become answers, errors become Stratagem's."""

from __future__ import annotations

import time

from stratagem.core.errors import BudgetExhausted, StrategyError, boundary
from stratagem.core.protocols import Strategy
from stratagem.core.run import Run
from stratagem.core.task import Answer, Stopped, Task
from stratagem.core.trace import RunFinished, RunStarted


async def execute(strategy: Strategy, task: Task, run: Run) -> Answer:
    """The strategy's answer, with what the run spent.

    Out of budget or time, the best answer proposed so far, marked by ``stopped``. When cancelled it stops the
    engine and lets the cancellation pass; ``run.best`` still holds the best so far.

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
            raise
        answer, stopped = run.best, "budget"
    if run.ledger.refused:
        stopped = "deadline" if run.ledger.time_is_up else "budget"
    seconds = time.monotonic() - started
    answer = answer.model_copy(
        update={
            "stopped": stopped,
            "usage": run.ledger.spent,
            "seconds": seconds,
            "run_id": run.run_id,
        }
    )
    run.trace.append(RunFinished(answer.value, stopped, answer.usage, seconds))
    return answer
