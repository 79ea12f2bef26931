"""The public doors: ask a question, get an answer with its cost."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stratagem.core.asking import JUDGE, POLICY
from stratagem.core.backend import Backend
from stratagem.core.budget import Budget, Ledger
from stratagem.core.calling import Approval, Toolbox, Tooling
from stratagem.core.connect import checked_roles, shipped
from stratagem.core.errors import ConfigurationError
from stratagem.core.execute import execute, execute_all
from stratagem.core.protocols import Strategy
from stratagem.core.run import Run
from stratagem.core.task import Answer, Task
from stratagem.core.trace import Trace


async def solve(
    question: str | Task,
    strategy: Strategy | Mapping[str, Any] | str | Path = "self_consistency",
    *,
    llm: Backend | None = None,
    judge: Backend | None = None,
    models: Mapping[str, Backend] | None = None,
    tools: Toolbox | Iterable[Any] | None = None,
    approve: Approval | None = None,
    budget: Budget | str | Mapping[str, Any] | None = None,
    seed: int = 0,
    store: str | Path | None = None,
    run_id: str | None = None,
    trace: Trace | None = None,
) -> Answer:
    """Answer a question with a strategy.

    Args:
        question: text, or a :class:`Task` with choices, schema or a conversation.
        strategy: an object, its kind, its plain data, or a YAML/JSON file.
        llm: the model that answers (default: the embedded one, which is read once and then stays in this process);
            ``judge``: the one that judges (default: the same); ``models``: any further roles.
        tools: what strategies that call tools may call: tools, typed functions, or a toolbox of them. approve:
        asked before each call of a destructive tool, with its name and the call; without it, none is asked.
        budget: limits, as an object, a mapping or ``"tokens=20000,seconds=30"``. In a store they are for all
            sittings of a run together, and hold until others are given.
        seed: the same seed gives the same answer on the same backend.
        store: SQLite file or PostgreSQL DSN for checkpoints and the journal of finished calls. With the
            ``run_id`` of an earlier, unfinished run it goes on where that was and pays for no finished call
            twice; so does one that its budget has stopped, under a larger one.
        trace: collects the events; give it listeners to follow the run. When the call is cancelled, its
            ``partial`` is the best answer so far.

    Raises:
        ConfigurationError: what was given cannot be used; the message names it.
        BudgetExhausted: the budget did not hold even one answer.
        BackendError: the model's side failed for good.
    """
    task = as_task(question)
    chosen = strategy if isinstance(strategy, Strategy) else Strategy.load(strategy)
    limits = Budget.of(budget)
    roles = roles_of(llm, judge, models)
    toolbox = as_toolbox(tools)
    if store is not None:
        return await _stored(
            task, chosen, roles, Tooling(toolbox, approve=approve), limits, seed, store, run_id, trace
        )
    run_id = run_id or new_run_id()
    trace = trace or Trace()
    trace.run_id = run_id
    return await execute(
        chosen,
        task,
        Run(
            roles,
            ledger=Ledger(limits),
            seed=seed,
            trace=trace,
            run_id=run_id,
            tools=toolbox,
            approve=approve,
        ),
    )


async def solve_all(
    questions: Iterable[str | Task],
    strategy: Strategy | Mapping[str, Any] | str | Path = "allocation",
    *,
    llm: Backend | None = None,
    judge: Backend | None = None,
    models: Mapping[str, Backend] | None = None,
    budget: Budget | str | Mapping[str, Any] | None = None,
    seed: int = 0,
    trace: Callable[[int], Trace] | None = None,
) -> list[Answer]:
    """Answer many questions at the same time under one budget.

    ``allocation`` spends it where it pays; another strategy is run on each question, and those that come too late
    find the budget spent. Each answer is what :func:`solve` gives to that question with the same seed, but for how
    much it was given.

    Args:
        budget: of all questions together. The others are those of :func:`solve`.
        trace: gives the trace of each question, by its index; of a cancelled call, their ``partial`` are the best
            answers so far.

    Returns:
        An answer to each question, in order. One that the budget has left without, or whose run has failed, is
        empty, and its ``stopped`` and ``reason`` say why.

    Raises:
        ConfigurationError: what was given cannot be used; the message names it.
        StratagemError: no question has an answer: why the first one has none.
    """
    tasks = [as_task(question) for question in questions]
    chosen = strategy if isinstance(strategy, Strategy) else Strategy.load(strategy)
    limits = Budget.of(budget)
    whole = Run(roles_of(llm, judge, models), ledger=Ledger(limits), seed=seed)

    def own(index: int) -> Run:
        run_id, of = new_run_id(), trace(index) if trace else Trace()
        of.run_id = run_id
        return Run(whole.models, ledger=whole.ledger.child(), seed=seed, trace=of, run_id=run_id)

    return await execute_all(chosen, tasks, whole, [own(index) for index in range(len(tasks))])


async def _stored(
    task: Task,
    strategy: Strategy,
    models: Mapping[str, Backend],
    tools: Tooling,
    budget: Budget | None,
    seed: int,
    store: str | Path,
    run_id: str | None,
    trace: Trace | None,
) -> Answer:
    from stratagem.backends.journaled import Journal, Journaled
    from stratagem.graphs.runner import Runner

    run_id = run_id or new_run_id()
    async with Runner(store) as runner:
        journal = Journal(store)  # in the same database as the checkpoints
        try:
            # One wrapper per backend, also where it plays several roles.
            wrapped = {id(b): Journaled(b, journal, run_id) for b in models.values()}
            roles = {role: wrapped[id(b)] for role, b in models.items()}
            kept = replace(tools, kept=journal.of(run_id))
            return await runner.run(
                strategy, task, roles, tools=kept, budget=budget, seed=seed, run_id=run_id, trace=trace
            )
        finally:
            await journal.aclose()


def solve_sync(question: str | Task, *args: Any, **kwargs: Any) -> Answer:
    """:func:`solve` for scripts and notebooks; takes the same arguments.

    Where an event loop already runs in this thread (a notebook) it works in a thread of its own.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(solve(question, *args, **kwargs))
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(lambda: asyncio.run(solve(question, *args, **kwargs))).result()


def as_toolbox(tools: Toolbox | Iterable[Any] | None) -> Toolbox | None:
    """A toolbox from tools or typed functions; a toolbox passes unchanged."""
    if tools is None or not isinstance(tools, Iterable):
        return tools
    from stratagem.tools.toolbox import Toolbox as Box

    return Box(tools)


def as_task(question: str | Task) -> Task:
    """A task from a question, with a readable error for what is none."""
    if not isinstance(question, str | Task):
        raise ConfigurationError(
            f"The question is {type(question).__name__}.", remedy="Give text, or a sg.Task."
        )
    try:
        return Task.of(question)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"{message[0].upper()}{message[1:]}.") from None


def roles_of(
    llm: Backend | None, judge: Backend | None = None, models: Mapping[str, Backend] | None = None
) -> dict[str, Backend]:
    """Backends by role; the embedded model is the policy where none is given.

    Raises:
        ConfigurationError: something is no backend, or a role is almost one of those that have a name.
    """
    roles = dict(models or {})
    if llm is not None:
        roles[POLICY] = llm
    if judge is not None:
        roles[JUDGE] = judge
    if POLICY not in roles:
        roles[POLICY] = shipped()
    return checked_roles(roles)


def new_run_id() -> str:
    """A name for a run that nobody has used."""
    return uuid.uuid4().hex[:12]
