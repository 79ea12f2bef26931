"""Runs that outlive their process.

A run is one thread of a LangGraph graph with a single node. Its specification stands in the first checkpoint,
its answer in the last; in between, the finished model calls are the journal's to keep (a backend that wraps
the models given here). So a run that was killed is started from its beginning, with the same seed, and gets
from the journal what it has paid for already. A run that its budget has stopped goes on in the same way under
a larger one.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint, CheckpointTuple, empty_checkpoint
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stratagem.core.backend import Backend
from stratagem.core.budget import Budget, Ledger
from stratagem.core.calling import Tooling
from stratagem.core.errors import ConfigurationError, StoreError
from stratagem.core.execute import execute
from stratagem.core.protocols import Strategy
from stratagem.core.run import Run
from stratagem.core.task import Answer, Task
from stratagem.core.trace import Trace
from stratagem.graphs._sitting import Sitting, Spent, affords, roomier
from stratagem.graphs.stores import Store, damaged, open_store

_MARK = "stratagem"  # in the metadata of our checkpoints: the same database may hold other graphs
_NODE = "strategy"
_SPENT = "spent"  # namespace, and key in the metadata, of the one checkpoint per run that is written over


_RUNNING: set[tuple[object, str]] = set()  # store and run: every runner of this process knows them


class _Spec(BaseModel):
    """All that decides the answer of a run; only its budget may change."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1  # of what is kept; a reader refuses a newer one
    strategy: dict[str, Any]
    task: Task
    seed: int = Field(ge=-(2**63), lt=2**63)
    budget: Budget


class _Kept(BaseModel):
    """A run as the store has it."""

    spec: _Spec
    answer: Answer | None = None
    spent: Spent = Spent()


class _State(TypedDict, total=False):
    """The specification and the answer as plain data, which is all that a checkpoint should hold."""

    spec: dict[str, Any]
    answer: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class _Context:
    """What a run needs and no checkpoint holds."""

    models: Mapping[str, Backend]
    tools: Tooling
    trace: Trace
    sitting: Sitting


@dataclass(frozen=True, slots=True)
class RunState:
    """A run in a store."""

    run_id: str
    state: Literal["finished", "unfinished"]
    strategy: str  # its kind
    question: str
    updated: str  # when its last checkpoint was written, in ISO 8601


class Runner:
    """Runs strategies and keeps them in a store; used as ``async with Runner(store) as runner``.

    One runner serves any number of runs at the same time, and several processes may share a store, as long as
    no two of them run the same id. To watch a run give it a trace with a listener.

    Args:
        store: ``None`` keeps runs in memory for as long as the runner lives; else the path of an SQLite file,
            or ``postgresql://user:password@host/database`` (needs the extra ``postgres``).
        patience: seconds to wait for the server, or for a file that another process has locked.

    Raises:
        StoreError: (on entering, or by any method) the store cannot be reached, read or written.
    """

    store: Store

    def __init__(self, store: str | Path | None = None, *, patience: float = 30.0) -> None:
        self._where = store
        self._patience = patience

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self.store = await stack.enter_async_context(open_store(self._where, patience=self._patience))
            self._stack = stack.pop_all()
        builder = StateGraph(_State, context_schema=_Context)
        builder.add_node(_NODE, _answer)
        builder.add_edge(START, _NODE)
        builder.add_edge(_NODE, END)
        self._graph = builder.compile(checkpointer=self.store.saver)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def run(
        self,
        strategy: Strategy,
        task: Task,
        models: Mapping[str, Backend],
        *,
        tools: Tooling | None = None,
        budget: Budget | None = None,
        seed: int = 0,
        run_id: str | None = None,
        trace: Trace | None = None,
    ) -> Answer:
        """The strategy's answer. A run of that id that was interrupted is resumed, a finished one is read; one
        that its budget has stopped is read as well, or goes on if the budget given now has more room.

        Args:
            models: backends by role, wrapped in a journal if a resumed run shall pay for no call twice.
            tools: what strategies that call tools may call, where finished calls are kept, and who allows them.
            budget: the total over all sittings of the run (default: as it was, at first without limits). What a
                journal replays counts as it did when it was paid, and so do the seconds of earlier sittings, of
                one that was killed up to its last finished call. Not counted is what an earlier sitting spent on
                calls that it did not finish, or on a completion cut short by a budget that was smaller.
            run_id: a name for the run (default: one is made of the time).

        Raises:
            ConfigurationError: that id is another run's, or is running now, or has spent more than ``budget``.
        """
        try:
            spec = _Spec(strategy=strategy.dump(), task=task, seed=seed, budget=budget or Budget())
        except ValidationError:
            raise ConfigurationError(
                f"The seed {seed} is too large.", remedy="Use 64 bits at most."
            ) from None
        run_id = _checked(run_id) if run_id is not None else _new_id()
        known = await self._read(run_id)
        if known is None:
            return await self._sit(run_id, _Kept(spec=spec), models, tools, trace, _State(spec=_dumped(spec)))
        _same(run_id, known.spec, spec)
        return await self._go(run_id, known, models, tools, budget, trace)

    async def resume(
        self,
        run_id: str,
        models: Mapping[str, Backend],
        *,
        tools: Tooling | None = None,
        budget: Budget | None = None,
        trace: Trace | None = None,
    ) -> Answer:
        """The answer of a run in the store: read if it is finished, else worked out from where it stopped.

        ``budget`` is as in :meth:`run`: a larger one makes a run go on that its budget has stopped.

        Raises:
            ConfigurationError: there is no run of that id, or it is running now, or has spent more than ``budget``.
        """
        known = await self._read(run_id)
        if known is None:
            raise ConfigurationError(
                f"There is no run {run_id!r} in the store {self.store.name}.",
                remedy=_some([state.run_id for state in await self.runs()]),
            )
        return await self._go(run_id, known, models, tools, budget, trace)

    async def runs(self) -> list[RunState]:
        """All runs in the store, the one last active first."""
        with self.store.guard():
            found = [item async for item in self.store.saver.alist(None, filter={_MARK: True})]
        states: dict[str, RunState] = {}
        for item in found:
            run_id = item.config.get("configurable", {})["thread_id"]
            if run_id not in states:  # the newest checkpoint of each comes first
                kept = self._kept(run_id, item)
                states[run_id] = RunState(
                    run_id,
                    "finished" if kept.answer else "unfinished",
                    kept.spec.strategy["kind"],
                    kept.spec.task.question,
                    item.checkpoint["ts"],
                )
        return sorted(states.values(), key=lambda state: state.updated, reverse=True)

    async def _read(self, run_id: str) -> _Kept | None:
        with self.store.guard():
            item = await self.store.saver.aget_tuple({"configurable": {"thread_id": run_id}})
            if item is None:
                return None
            spent = await self.store.saver.aget_tuple(_spent_of(run_id))
        return self._kept(run_id, item, spent)

    def _kept(self, run_id: str, item: CheckpointTuple, spent: CheckpointTuple | None = None) -> _Kept:
        try:
            if not item.metadata.get(_MARK):
                raise StoreError(
                    f"{run_id!r} in the store {self.store.name} is no run but another graph's thread.",
                    remedy="Use another run id.",
                )
            values = item.checkpoint["channel_values"]
            # The first checkpoint of a sitting still has what it begins with at the graph's entry.
            kept = {**values, **values.get(START, {})}
            if spent is not None:
                kept["spent"] = dict(spent.metadata)[_SPENT]
            return _Kept.model_validate(kept)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise damaged(self.store.name, f"run {run_id!r} is not as this version writes it") from error

    async def _go(
        self,
        run_id: str,
        known: _Kept,
        models: Mapping[str, Backend],
        tools: Tooling | None,
        budget: Budget | None,
        trace: Trace | None,
    ) -> Answer:
        """The answer of a run that is in the store."""
        begin: _State | None = None
        was, answer = known.spec.budget, known.answer
        if budget is not None and budget != was:
            affords(run_id, budget, known.spent)
            if answer is None or (answer.stopped in ("budget", "deadline") and roomier(budget, was)):
                answer = None
                known = known.model_copy(update={"spec": known.spec.model_copy(update={"budget": budget})})
                begin = _State(spec=_dumped(known.spec), answer=None)
        return answer or await self._sit(run_id, known, models, tools, trace, begin)

    async def _sit(
        self,
        run_id: str,
        kept: _Kept,
        models: Mapping[str, Backend],
        tools: Tooling | None,
        trace: Trace | None,
        begin: _State | None,
    ) -> Answer:
        """One attempt at a run, from its beginning."""
        running = (self.store.name if self._where is not None else id(self), run_id)
        if running in _RUNNING:
            raise ConfigurationError(
                f"Run {run_id!r} is running now.", remedy="Wait for it, or name another."
            )
        trace = trace or Trace()
        trace.run_id = trace.run_id or run_id
        config: RunnableConfig = {
            "configurable": {"thread_id": run_id},
            "metadata": {_MARK: True},
            "run_name": run_id,
        }

        async def write(spent: Spent) -> None:
            metadata: Any = {_SPENT: spent.model_dump()}
            with self.store.guard():
                await self.store.saver.aput(_spent_of(run_id), _empty(), metadata, {})

        sitting = Sitting(kept.spent, write)
        _RUNNING.add(running)
        trace.listeners.insert(0, sitting.hear)  # before those that may raise
        try:
            async with sitting.kept():
                with self.store.guard():
                    values = await self._graph.ainvoke(
                        begin,
                        config,
                        context=_Context(models, tools or Tooling(), trace, sitting),
                        durability="sync",
                    )
        finally:
            trace.listeners.remove(sitting.hear)
            _RUNNING.discard(running)
        return Answer.model_validate(values["answer"])


async def _answer(state: _State, runtime: Runtime[_Context]) -> dict[str, Any]:
    """The graph's only node."""
    spec, context, info = _Kept.model_validate(state).spec, runtime.context, runtime.execution_info
    assert info is not None  # LangGraph fills it before it calls a node
    budget = spec.budget
    if budget.seconds is not None:
        left = max(0.0, budget.seconds - context.sitting.earlier.seconds)
        budget = budget.model_copy(update={"seconds": left})
    context.sitting.ledger = Ledger(budget)
    run = Run(
        context.models,
        ledger=context.sitting.ledger,
        seed=spec.seed,
        trace=context.trace,
        tools=context.tools.box,
        kept=context.tools.kept,
        approve=context.tools.approve,
        run_id=info.thread_id or "",
    )
    answer = await execute(Strategy.load(spec.strategy), spec.task, run)
    return {"answer": answer.model_dump(mode="json")}


def _new_id() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def _checked(run_id: str) -> str:
    if not 0 < len(run_id) <= 200 or not run_id.isprintable():
        raise ConfigurationError(f"{run_id!r} is no run id.", remedy="Use 1 to 200 printable characters.")
    return run_id


def _dumped(spec: _Spec) -> dict[str, Any]:
    return spec.model_dump(mode="json")


def _spent_of(run_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": run_id, "checkpoint_ns": _SPENT}}


def _empty() -> Checkpoint:
    checkpoint = empty_checkpoint()
    checkpoint["id"] = _SPENT  # the same one each time, so that it is written over
    return checkpoint


def _same(run_id: str, known: _Spec, given: _Spec) -> None:
    """Refuse to mix two runs under one id."""
    old, new = known.model_dump(mode="json"), given.model_dump(mode="json")
    differing = [key for key in new if key != "budget" and old[key] != new[key]]
    if not differing:
        return
    key = differing[0]
    was, now = _brief(old[key], new[key]), _brief(new[key], old[key])
    raise ConfigurationError(
        f"Run {run_id!r} exists with another {' and '.join(differing)}: {was}, not {now}.",
        remedy="Give the new run another id, or resume the old one by its id alone.",
    )


def _brief(value: Any, other: Any) -> str:
    """What is in ``value`` and not in ``other``, short enough for a message."""
    if isinstance(value, dict) and isinstance(other, dict):
        value = {k: v for k, v in value.items() if k == "kind" or k not in other or other[k] != v}
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."


def _some(run_ids: list[str]) -> str:
    if not run_ids:
        return "It has no runs."
    shown = ", ".join(run_ids[:5])
    return f"It has {shown}." if len(run_ids) <= 5 else f"It has {shown} and {len(run_ids) - 5} more."
