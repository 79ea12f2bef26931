"""The tools of a run: what :class:`stratagem.core.calling.Toolbox` asks for."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from stratagem.core.budget import Amount, Ledger
from stratagem.core.calling import Approval, Called, Instead
from stratagem.core.text import encodable
from stratagem.core.usage import Usage
from stratagem.tools.conduct import Approve, CallJournal, Conduct
from stratagem.tools.dag import Call, Problem, duplicate
from stratagem.tools.executor import Execution, Report, Skipped
from stratagem.tools.fair import FairPermits
from stratagem.tools.notation import parse, shown, signature, write, written
from stratagem.tools.patterns import pattern
from stratagem.tools.tool import Failed, Tool, Value, tool, toolbox

if TYPE_CHECKING:
    from stratagem.core.run import Run


class Toolbox:
    """Tools that runs may call, at the same time too.

    Args:
        tools: made by :func:`stratagem.tools.tool.tool`, or typed functions, which get its defaults.
        permits: calls at a time of all runs together, which get them in turn; ``None`` is no limit.
        approve: asked before each call of a destructive tool, with the call and its arguments; a run's own approval
            (:attr:`stratagem.core.run.Run.approve`) comes before it. Without any, none is asked.

    Raises:
        ConfigurationError: no tool, two of one name, or a function that makes none.
    """

    def __init__(
        self,
        tools: Iterable[Tool | Callable[..., Any]],
        *,
        permits: int | None = None,
        approve: Approve | None = None,
    ) -> None:
        self.tools: Mapping[str, Tool] = toolbox(*(t if isinstance(t, Tool) else tool(t) for t in tools))
        self._permits = None if permits is None else FairPermits(permits)
        self._approve = approve

    @property
    def priced(self) -> bool:
        """Whether a call of one costs money."""
        return any(each.cost for each in self.tools.values())

    def describe(self) -> str:
        """A line for each tool that tells a model how to call it."""
        return "\n".join(map(signature, self.tools.values()))

    def schemas(self) -> list[dict[str, Any]]:
        """The tools as the ``tools`` of OpenAI's interface list them."""
        return [each.schema for each in self.tools.values()]

    def pattern(self, *, named: bool = True, fallbacks: bool = False) -> str:
        """A regular expression for a line of a plan; not ``named``: for its right side alone; with ``fallbacks``:
        with what is done after a failure."""
        return pattern(self.tools.values(), named=named, fallbacks=fallbacks)

    async def call(
        self,
        lines: AsyncIterable[str],
        run: Run,
        *,
        known: Mapping[str, Any],
        named: bool = True,
        before: int = 0,
        instead: Instead | None = None,
        stopped: Callable[[list[Called]], None] | None = None,
    ) -> list[Called]:
        """See :meth:`stratagem.core.calling.Toolbox.call`."""
        written: list[Call | Problem] = []
        texts: list[str] = []

        async def calls() -> AsyncIterator[Call | Problem]:
            async for line in lines:
                line = encodable(line)
                if line.strip():
                    call = self._read(line, None if named else f"call{before + len(texts) + 1}")
                    written.append(call)
                    texts.append(line.strip())
                    yield call

        execution = Execution(
            self.tools,
            permits=None if self._permits is None else self._permits.share(),
            known=known,
            conduct=Conduct(
                pay=partial(_pay, run.ledger),
                journal=None if run.kept is None else CallJournal(run.kept, run.seed, run.occurrence),
                trace=run.trace,
                approve=self._approve if run.approve is None else partial(_approved, run.approve, self.tools),
                ask=None if instead is None else partial(self._other, instead),
            ),
        )
        try:
            await execution.run(calls())
        except asyncio.CancelledError:
            if stopped is not None:
                stopped(_called(written, texts, self.tools, execution.report))
            raise
        return _called(written, texts, self.tools, execution.report)

    def _read(self, line: str, name: str | None) -> Call | Problem:
        """The call that a line writes, which does after a failure what it says itself, or else its tool."""
        call = parse(line, self.tools, name=name)
        if isinstance(call, Problem) or call.tool not in self.tools or "on_failure" in call.model_fields_set:
            return call
        return call.model_copy(update={"on_failure": self.tools[call.tool].on_failure})

    async def _other(
        self, instead: Instead, call: Call, failed: Failed
    ) -> tuple[Tool, Mapping[str, Any]] | None:
        line = await instead(call.id, write(call, self.tools), failed.message)
        if line is None:
            return None
        found = parse(_NAMED.sub("", line, count=1), self.tools, name=call.id)
        if (
            isinstance(found, Problem)
            or found.tool not in self.tools
            or not set(found.needs) <= set(call.needs)
        ):
            return None  # it may take what the call took, which is there, and nothing else
        return self.tools[found.tool], found.arguments


_NAMED = re.compile(r"\s*[A-Za-z_]\w*\s*=(?!=)")
"""The left side of a line of a plan."""


async def _approved(
    approve: Approval, tools: Mapping[str, Tool], call: Call, arguments: Mapping[str, Any]
) -> bool | Mapping[str, Any] | None:
    return await approve(call.id, written(call.tool, arguments, tools))


def read_only(functions: Iterable[Callable[..., Any]]) -> Toolbox:
    """A toolbox of typed functions that change nothing."""
    return Toolbox(tool(effect="read_only")(function) for function in functions)


async def _pay(ledger: Ledger, most: float) -> Callable[[float], None]:
    reservation = await ledger.reserve(Amount(money=most))
    return lambda money: reservation.settle(Usage(money=money))


def _called(
    written: list[Call | Problem], texts: list[str], tools: Mapping[str, Tool], report: Report
) -> list[Called]:
    found: list[Called] = []
    seen: set[str] = set()
    for each, text in zip(written, texts, strict=True):
        if isinstance(each, Problem):
            found.append(Called(each.call or "", shown(text, tools), error=each.message))
        elif each.id in seen:
            found.append(Called(each.id, write(each, tools), each.tool, error=duplicate(each.id).message))
        else:
            seen.add(each.id)
            found.append(_one(each, tools, report))
    return found


def _one(call: Call, tools: Mapping[str, Tool], report: Report) -> Called:
    outcome, timing = report.outcomes[call.id], report.timings.get(call.id)
    seconds = 0.0
    if timing is not None and timing.started is not None and timing.ended is not None:
        seconds = timing.ended - timing.started
    return Called(
        call.id,
        write(call, tools) if isinstance(outcome, Skipped) or not outcome.made else outcome.made,
        call.tool,
        result=outcome.data if isinstance(outcome, Value) else None,
        error=outcome.message if isinstance(outcome, Failed) else "",
        skipped=isinstance(outcome, Skipped),
        waiting=isinstance(outcome, Failed) and outcome.why == "waiting",
        takes=call.needs,
        seconds=seconds,
        cost=0.0 if isinstance(outcome, Skipped) else outcome.cost,
    )
