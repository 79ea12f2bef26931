"""The dataflow executor of plans: each call begins when its last input arrives, and no call waits for any other.

There are no rounds and nothing is polled: the step of the event loop that brings a result also starts what has
waited for it alone, or writes off what can no longer run.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

from stratagem.core.concurrency import task_group
from stratagem.tools.conduct import Conduct
from stratagem.tools.dag import Call, Plan, Problem, duplicate, loose_ends
from stratagem.tools.tool import Failed, Tool, Value


@dataclass(frozen=True, slots=True)
class Skipped:
    """A call that never began."""

    because: str | None  # the call whose failure was the first cause; None: the execution was cancelled


Outcome: TypeAlias = Value | Failed | Skipped


@dataclass(slots=True)
class Timing:
    """Seconds of the event loop's clock; ``started`` follows ``ready`` at once, unless permits were short."""

    ready: float
    started: float | None = None
    ended: float | None = None


@dataclass(slots=True)
class Report:
    """What became of a plan."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)  # by id of the call
    problems: list[Problem] = field(default_factory=list)
    error: Exception | None = None  # what ended the stream of calls too early
    timings: dict[str, Timing] = field(default_factory=dict)  # of the calls that were ready to begin
    cost: float = 0.0  # money, by the tools' prices and the attempts that ended

    @property
    def complete(self) -> bool:
        """Whether every call has given its own result and nothing was wrong with the plan."""
        good = all(isinstance(each, Value) and each.failure is None for each in self.outcomes.values())
        return good and not self.problems and self.error is None


@dataclass(slots=True)
class _Held:
    """A permit, for as long as a tool runs."""

    permits: AbstractAsyncContextManager[Any] | None
    timing: Timing

    async def __aenter__(self) -> None:
        if self.permits is not None:
            await self.permits.__aenter__()
        if self.timing.started is None:
            self.timing.started = asyncio.get_running_loop().time()

    async def __aexit__(self, *raised: Any) -> None:
        if self.permits is not None:
            await self.permits.__aexit__(*raised)


class Execution:
    """Runs one plan, once. ``report`` can be read at any time, also after a cancellation.

    Args:
        tools: by name, see :func:`stratagem.tools.tool.toolbox`.
        permits: holds a permit for each call; executions may share it, or have shares of it
            (:class:`stratagem.tools.fair.FairPermits`). ``None`` is no limit.
        known: results of earlier plans, for calls to take by name; a call of that name replaces one.
        conduct: how a call is paid for, kept, allowed and tried again.
    """

    def __init__(
        self,
        tools: Mapping[str, Tool],
        *,
        permits: AbstractAsyncContextManager[Any] | None = None,
        known: Mapping[str, Any] | None = None,
        conduct: Conduct | None = None,
    ) -> None:
        self.report = Report()
        self._tools = tools
        self._permits = permits
        self._conduct = conduct or Conduct()
        self._calls: dict[str, Call] = {}
        self._missing: dict[str, dict[str, None]] = {}  # the calls whose results each waiting call lacks
        self._inputs: dict[str, dict[str, Any]] = {}  # the results that it has: those of when it was written
        self._takers: defaultdict[str, list[str]] = defaultdict(list)  # who takes whose result
        self._results: dict[str, Any] = dict(known or {})
        self._running: dict[str, asyncio.Task[None]] = {}
        # Equal calls: the outcome, or who waits for it.
        self._shared: dict[str, Value | Failed | list[str]] = {}
        self._keys: dict[str, str] = {}  # of the calls that others may share
        self._settling: deque[tuple[str, Outcome]] = deque()
        self._busy = False  # somebody further up the stack empties ``_settling``
        self._failed: str | None = None  # the call that stopped everything
        self._told: set[Problem] = set()
        self._lost: set[str] = set()  # names of calls that could not be read
        self._feeding: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup | None = None

    async def run(self, calls: Plan | AsyncIterable[Any]) -> Report:
        """Run a plan, or calls (as objects or plain data) while they still arrive.

        When cancelled, the tools are cancelled first; ``report`` then says how far it came.
        """
        if self._group is not None:
            raise RuntimeError("An Execution runs once; make another.")
        try:
            async with task_group() as self._group:
                if isinstance(calls, Plan):
                    self._tell(calls.problems)
                    for each in calls.calls:
                        self._add(each)
                    self._all_known()
                else:
                    self._feeding = self._group.create_task(self._feed(calls))
        finally:
            for name in self._calls:
                self.report.outcomes.setdefault(name, Skipped(self._failed))
        return self.report

    async def _feed(self, calls: AsyncIterable[Any]) -> None:
        async with AsyncExitStack() as stack:
            if isinstance(calls, AsyncGenerator):
                await stack.enter_async_context(aclosing(calls))
            try:
                async for each in calls:
                    self._add(each)
                    if self._failed is not None:
                        break
            except Exception as error:  # what has begun goes on
                self.report.error = error
            self._all_known()

    def _add(self, data: Any) -> None:
        call = data if isinstance(data, Call | Problem) else Call.parse(data)
        if isinstance(call, Problem):
            self.report.problems.append(call)
            if call.call is not None and call.call not in self._calls:  # nobody means its old result any more
                self._results.pop(call.call, None)
                self._lost.add(call.call)
            return
        if call.id in self._calls:
            self._tell([duplicate(call.id)])
            return
        self._calls[call.id] = call
        inputs = {need: self._results[need] for need in call.needs if need in self._results}
        self._results.pop(call.id, None)
        self._lost.discard(call.id)
        if self._failed is not None:
            return
        wrong = list(call.problems(self._tools))
        if wrong:
            self._refuse(call.id, wrong)
            self._follow()
            return
        outcomes = self.report.outcomes
        lacks = [need for need in call.needs if need not in inputs]
        lost = next((n for n in lacks if n in call.own_needs and (n in outcomes or n in self._lost)), None)
        if lost is not None:
            self._settle(call.id, _without(lost, outcomes.get(lost)))
            return
        waits = dict.fromkeys(n for n in lacks if n not in outcomes and n not in self._lost)
        for need in waits:
            self._takers[need].append(call.id)
        self._missing[call.id], self._inputs[call.id] = waits, inputs
        if not waits:
            self._start(call)

    def _all_known(self) -> None:
        """No call will be added: what waits for one that is not there, or for itself, has failed."""
        if not self._missing or self._failed is not None:
            return
        wrong: defaultdict[str, list[Problem]] = defaultdict(list)
        waiting = {
            name: [need for need in waits if need in self._missing or need not in self._calls]
            for name, waits in self._missing.items()
        }
        for problem in loose_ends(waiting):
            if problem.call is not None:
                wrong[problem.call].append(problem)
        # All before what follows: of a cycle every call has failed, none is skipped.
        for name, problems in wrong.items():
            self._refuse(name, problems)
        self._follow()

    def _tell(self, problems: Iterable[Problem]) -> None:
        """Note what is wrong, each once."""
        new = [each for each in dict.fromkeys(problems) if each not in self._told]
        self._told.update(new)
        self.report.problems += new

    def _refuse(self, name: str, problems: list[Problem]) -> None:
        self._tell(problems)
        failed = Failed("plan", " ".join(problem.message for problem in problems))
        self._settling.append((name, failed))

    def _start(self, call: Call) -> None:
        assert self._group is not None
        del self._missing[call.id]
        tool = self._tools[call.tool]
        self.report.timings[call.id] = Timing(asyncio.get_running_loop().time())
        inputs = self._inputs.pop(call.id)
        filled = call.filled(inputs)
        parts = (tool.name, filled, call.retries, call.alternatives, call.on_failure == "ask")
        fails = isinstance(filled, Failed)
        if tool.effect == "read_only" and not fails and (key := _key(*parts)) is not None:
            same = self._shared.setdefault(key, [])
            if not isinstance(same, list):
                self._settle(call.id, replace(same, attempts=0, cost=0.0))
                return
            same.append(call.id)
            if len(same) > 1:
                return
            self._keys[call.id] = key
        key = None if isinstance(filled, Failed) else self._conduct.key(tool, filled)
        self._running[call.id] = self._group.create_task(self._call(call, tool, filled, inputs, key))

    async def _call(
        self,
        call: Call,
        tool: Tool,
        filled: dict[str, Any] | Failed,
        inputs: Mapping[str, Any],
        key: str | None,
    ) -> None:
        timing = self.report.timings[call.id]
        clock = asyncio.get_running_loop().time
        try:
            outcome = await self._conduct.make(
                call, tool, filled, inputs, key, partial(_Held, self._permits, timing)
            )
        except asyncio.CancelledError:
            attempts, cost = self._conduct.cut.get(call.id, (0, 0.0))
            self.report.cost += cost
            self.report.outcomes[call.id] = (
                Failed("cancelled", f"{call.id} was cancelled while it ran.", attempts=attempts, cost=cost)
                if attempts
                else Skipped(self._failed)
            )
            raise
        finally:
            timing.ended = clock()
            del self._running[call.id]
        self.report.cost += outcome.cost
        task = asyncio.current_task()
        # A tool kept its cancellation to itself: nothing may start any more.
        if task is not None and task.cancelling():
            self.report.outcomes[call.id] = outcome
            raise asyncio.CancelledError
        self._settle(call.id, outcome)

    def _settle(self, name: str, outcome: Outcome) -> None:
        """Note how a call has ended and do what follows."""
        self._settling.append((name, outcome))
        self._follow()

    def _follow(self) -> None:
        """Do what follows from what has been settled; iterative, since chains may be long."""
        if self._busy:
            return
        self._busy = True
        try:
            while self._settling:
                self._note(*self._settling.popleft())
        finally:
            self._busy = False

    def _note(self, name: str, outcome: Outcome) -> None:
        if name in self.report.outcomes or (self._failed is not None and isinstance(outcome, Skipped)):
            return  # it lacks two inputs; or all that is left is written off in the end
        call = self._calls[name]
        self._missing.pop(name, None)
        if not isinstance(outcome, Skipped) and (key := self._keys.pop(name, None)) is not None:
            waiting, self._shared[key] = self._shared[key], outcome
            assert isinstance(waiting, list)
            for other in waiting[1:]:
                self._settle(other, replace(outcome, attempts=0, cost=0.0))
        if isinstance(outcome, Failed) and call.on_failure == "default":
            outcome = Value(call.default, outcome.attempts, outcome.cost, outcome)
        self.report.outcomes[name] = outcome
        if isinstance(outcome, Value):
            self._results[name] = outcome.data
        elif isinstance(outcome, Failed) and call.on_failure == "fail":
            self._stop(name)
        for taker in self._takers.pop(name, ()):
            if taker not in self._missing:
                continue  # written off because of another input
            if isinstance(outcome, Value):
                self._inputs[taker][name] = outcome.data
            elif name in self._calls[taker].own_needs:
                self._settle(taker, _without(name, outcome))
                continue
            del self._missing[taker][name]
            if not self._missing[taker] and self._failed is None:
                self._start(self._calls[taker])

    def _stop(self, name: str) -> None:
        if self._failed is not None:
            return
        self._failed = name
        for task in (*self._running.values(), *([self._feeding] if self._feeding else [])):
            if task is not asyncio.current_task():
                task.cancel()


def _key(*parts: Any) -> str | None:
    """One text for equal calls; ``None`` for data that is not quite JSON."""
    try:
        return json.dumps(parts, sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return None


def _without(name: str, outcome: Outcome | None) -> Skipped:
    """What becomes of a call whose input ``name`` has this outcome."""
    return Skipped(outcome.because if isinstance(outcome, Skipped) else name)
