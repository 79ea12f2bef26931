"""How one call of a plan is made: found in the journal, allowed, paid for, written down, tried again otherwise."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from stratagem.core.calling import shortened
from stratagem.core.errors import BudgetExhausted
from stratagem.core.kept import Kept
from stratagem.core.trace import ToolFinished, ToolStarted, Trace
from stratagem.tools.dag import Call
from stratagem.tools.notation import written
from stratagem.tools.tool import Failed, Tool, Value

Pay: TypeAlias = Callable[[float], Awaitable[Callable[[float], None]]]
"""(the most that a call can cost) -> what to tell its real cost."""
Approve: TypeAlias = Callable[[Call, Mapping[str, Any]], Awaitable[bool | Mapping[str, Any] | None]]
"""(a call of a destructive tool, its arguments) -> whether it may be made, or those of its arguments that are to be
others; ``None``: not decided yet."""
Hold: TypeAlias = Callable[[], AbstractAsyncContextManager[Any]]
"""Holds a permit while a tool runs, and only then: not while somebody is asked."""
Ask: TypeAlias = Callable[[Call, Failed], Awaitable[tuple[Tool, Mapping[str, Any]] | None]]
"""(a call that failed, how) -> the tool and the arguments to try in its place, or ``None`` to let it fail."""

_BEGUN = "begun"
_SHOWN = 1000  # characters of a call in a trace


@dataclass(slots=True)
class CallJournal:
    """The finished calls of a run: content and occurrence tell them apart.

    Args:
        kept: where they are kept.
        owner: whose calls, of those that keep theirs there: a run within another has a seed of its own.
        occurrence: how often the run has asked for this key before, counted up.
    """

    kept: Kept
    owner: int
    occurrence: Callable[[str], int]

    def key(self, tool: Tool, arguments: Mapping[str, Any]) -> str | None:
        """The key of the call that begins now; ``None`` for arguments that are no JSON."""
        try:
            text = json.dumps([tool.name, arguments], sort_keys=True)
        except (TypeError, ValueError, RecursionError):
            return None
        digest = hashlib.sha256(text.encode()).hexdigest()
        return f"tool/{self.owner}/{digest}/{self.occurrence(digest)}"

    async def recall(self, key: str, tool: Tool) -> tuple[Value | Failed, int] | None:
        """How the call ended before, and how often it was begun then; ``None``: it is to be made.

        A destructive call that had begun when its run was stopped has failed as ``unknown``: it may have been done,
        and it is not for the executor to do it twice.
        """
        text = (await self.kept.recall([key])).get(key)
        if text is None:
            return None
        if text == _BEGUN:
            if tool.effect != "destructive":
                return None
            return Failed(
                "unknown",
                f"{tool.name} had begun when the run was stopped: whether it was done is not known. "
                "It was not called again.",
            ), 1
        found = json.loads(text)
        if "why" in found:
            earlier, made = found["attempts"], found.get("made", "")
            return Failed(found["why"], found["message"], earlier=earlier, made=made), earlier
        return Value(found["data"], 0, made=found.get("made", "")), found["attempts"]

    async def begin(self, key: str) -> None:
        """Write down that a call begins, before it does."""
        await self.kept.remember({key: _BEGUN})

    async def end(self, key: str, outcome: Value | Failed) -> None:
        """Write down how it has ended."""
        told = (
            {"data": outcome.data}
            if isinstance(outcome, Value)
            else {"why": outcome.why, "message": outcome.message}
        )
        if outcome.made:
            told["made"] = outcome.made
        await self.kept.remember({key: json.dumps({**told, "attempts": outcome.attempts})})


@dataclass(slots=True, eq=False, weakref_slot=True)
class Conduct:
    """What the calls of one plan go through; each part may be missing."""

    pay: Pay | None = None
    journal: CallJournal | None = None
    approve: Approve | None = None
    ask: Ask | None = None
    trace: Trace | None = None
    cut: dict[str, tuple[int, float]] = field(default_factory=dict[str, tuple[int, float]])
    """Attempts and cost of the calls that were cancelled, by id."""

    def key(self, tool: Tool, arguments: Mapping[str, Any]) -> str | None:
        """What tells the call apart in the journal; to be taken in the order in which calls begin."""
        return None if self.journal is None else self.journal.key(tool, arguments)

    async def make(
        self,
        call: Call,
        tool: Tool,
        arguments: Mapping[str, Any] | Failed,
        results: Mapping[str, Any],
        key: str | None,
        hold: Hold = nullcontext,
    ) -> Value | Failed:
        """Make a call, unless it has no arguments; after a failure with the other arguments that it names, and then
        with those that ``ask`` gives. A destructive tool that has begun once is not begun again."""
        if isinstance(arguments, Failed):
            outcome: Value | Failed = arguments
        else:
            outcome = await self._once(call, tool, arguments, key, hold)
        attempts, cost = outcome.attempts, outcome.cost
        begun = attempts + _earlier(outcome)
        for other in call.alternatives:
            if isinstance(outcome, Value) or not _may_repeat(tool, begun, outcome):
                break
            outcome = await self._otherwise(call, tool, other, results, hold)
            attempts, cost = attempts + outcome.attempts, cost + outcome.cost
            begun += outcome.attempts + _earlier(outcome)
        if (
            isinstance(outcome, Failed)
            and call.on_failure == "ask"
            and self.ask is not None
            and _may_repeat(tool, begun, outcome)
            and (asked := await self.ask(call, outcome)) is not None
        ):
            tool, arguments = asked
            call = call.model_copy(update={"tool": tool.name, "arguments": dict(arguments)})
            outcome = await self._otherwise(call, tool, arguments, results, hold)
            attempts, cost = attempts + outcome.attempts, cost + outcome.cost
        return outcome if outcome.attempts == attempts else replace(outcome, attempts=attempts, cost=cost)

    async def _otherwise(
        self, call: Call, tool: Tool, arguments: Mapping[str, Any], results: Mapping[str, Any], hold: Hold
    ) -> Value | Failed:
        made = written(tool.name, arguments, {tool.name: tool})
        filled = call.filled(results, arguments)
        if isinstance(filled, Failed):
            return replace(filled, made=made)
        outcome = await self._once(call, tool, filled, self.key(tool, filled), hold)
        return replace(outcome, made=outcome.made or made)

    async def _once(
        self, call: Call, tool: Tool, arguments: Mapping[str, Any], key: str | None, hold: Hold
    ) -> Value | Failed:
        checked = tool.check(arguments)
        if isinstance(checked, Failed):
            return checked
        if self.journal is None or key is None:
            return await self._allowed(call, tool, arguments, checked, hold)
        if (kept := await self.journal.recall(key, tool)) is not None:
            found, attempts = kept
            return await self._replayed(call, tool, arguments, found, attempts)
        outcome = await self._allowed(call, tool, arguments, checked, hold, key)
        if outcome.attempts:  # what did not begin may be tried when the run goes on
            await self.journal.end(key, outcome)
        return outcome

    async def _replayed(
        self, call: Call, tool: Tool, arguments: Mapping[str, Any], found: Value | Failed, attempts: int
    ) -> Value | Failed:
        """What an earlier sitting has paid for counts in this one's budget as it did then."""
        cost = tool.cost * attempts
        settle = await self._reserved(tool, cost)
        if isinstance(settle, Failed):
            return settle
        settle(cost)
        shown = self._shown(tool, arguments)
        self._tell(ToolFinished, call, shown, seconds=0.0, replayed=True, error=_reason(found))
        return found

    async def _allowed(
        self,
        call: Call,
        tool: Tool,
        arguments: Mapping[str, Any],
        checked: Mapping[str, Any],
        hold: Hold,
        key: str | None = None,
    ) -> Value | Failed:
        destructive = tool.effect == "destructive"
        if destructive and self.approve is not None:
            allowed = await self.approve(call, arguments)
            if allowed is None:
                made = written(tool.name, arguments, {tool.name: tool})
                return Failed("waiting", f"{tool.name} waits to be allowed.", made=made)
            if isinstance(allowed, Mapping):
                return await self._changed(call, tool, {**arguments, **allowed}, hold, key)
            if not allowed:
                return Failed("refused", f"{tool.name} was not allowed.")
        return await self._begun(call, tool, arguments, checked, hold, key)

    async def _changed(
        self, call: Call, tool: Tool, arguments: Mapping[str, Any], hold: Hold, key: str | None
    ) -> Value | Failed:
        """Make a call as whoever allowed it has changed it. It stays one call, kept under the plan's arguments."""
        made = written(tool.name, arguments, {tool.name: tool})
        checked = tool.check(arguments)
        if isinstance(checked, Failed):
            message = f"the changed arguments do not fit: {checked.message}"
            return replace(checked, message=message, made=made)
        return replace(await self._begun(call, tool, arguments, checked, hold, key), made=made)

    async def _begun(
        self,
        call: Call,
        tool: Tool,
        arguments: Mapping[str, Any],
        checked: Mapping[str, Any],
        hold: Hold,
        key: str | None,
    ) -> Value | Failed:
        """Pay for a call that may be made, and make it."""
        retries = 0 if tool.effect == "destructive" else call.retries
        most = tool.cost * (1 + (tool.retries if retries is None else retries))
        clock = asyncio.get_running_loop().time
        shown = self._shown(tool, arguments)
        # Before anything else that others may wait for.
        settle = await self._reserved(tool, most)
        if isinstance(settle, Failed):
            return settle
        started, begun, error = clock(), 0, "cancelled"

        async def begin(attempt: int) -> None:
            nonlocal started, begun
            if attempt == 1:
                if self.journal is not None and key is not None and tool.effect == "destructive":
                    await self.journal.begin(key)
                self._tell(ToolStarted, call, shown)
                started = clock()
            begun = attempt

        try:
            outcome = await tool.invoke(checked, retries=retries, who=self, hold=hold, begin=begin)
            error = _reason(outcome)
            return replace(outcome, cost=begun * tool.cost) if tool.cost else outcome
        finally:
            cost = begun * tool.cost
            settle(cost)
            if error == "cancelled":
                attempts, money = self.cut.get(call.id, (0, 0.0))
                self.cut[call.id] = attempts + begun, money + cost
            if begun:
                self._tell(ToolFinished, call, shown, seconds=clock() - started, error=error, cost=cost)

    async def _reserved(self, tool: Tool, most: float) -> Callable[[float], None] | Failed:
        """Hold what a call may cost; gives what to tell its real cost."""
        if self.pay is None or not most:
            return _free
        try:
            return await self.pay(most)
        except BudgetExhausted as error:
            return Failed("budget", f"There is no money left for {tool.name}.", error)

    def _shown(self, tool: Tool, arguments: Mapping[str, Any]) -> str:
        """The call as the trace shows it, if there is one."""
        if self.trace is None:
            return ""
        # Masked before it is written or cut, which may split a secret or escape it.
        masked = tool.masked(dict(arguments), arguments)
        return shortened(written(tool.name, masked, {tool.name: tool}), _SHOWN)

    def _tell(self, event: type[ToolStarted | ToolFinished], call: Call, shown: str, **more: Any) -> None:
        if self.trace is not None:
            self.trace.append(event(call.id, shown, **more))


def _free(cost: float) -> None:
    """In place of a reservation, where nothing is to be paid."""


def _reason(outcome: Value | Failed) -> str:
    return f"{outcome.why}: {outcome.message}" if isinstance(outcome, Failed) else ""


def _earlier(outcome: Value | Failed) -> int:
    return outcome.earlier if isinstance(outcome, Failed) else 0


def _may_repeat(tool: Tool, begun: int, failed: Value | Failed) -> bool:
    """Whether another try does no harm and may help."""
    if isinstance(failed, Failed) and failed.why in ("refused", "waiting", "budget", "unknown"):
        return False
    return tool.effect != "destructive" or begun == 0
