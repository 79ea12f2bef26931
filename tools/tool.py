"""Tools: typed functions that a model may call, with limits, and outcomes that are data.

Whatever a call does, :class:`Tool` gives a :class:`Value` or a :class:`Failed` and raises nothing but a
cancellation from outside.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias, Unpack, get_args, overload

from pydantic import TypeAdapter, ValidationError

from stratagem.core.errors import ConfigurationError
from stratagem.core.text import encodable
from stratagem.tools._gate import Entered, Gate
from stratagem.tools._limits import Limits
from stratagem.tools._masking import MASK as MASK
from stratagem.tools._masking import masked, texts, write_only
from stratagem.tools._places import Places
from stratagem.tools._signature import typed
from stratagem.tools._threads import Raised, guarded, in_thread, releasing, stopped

Effect: TypeAlias = Literal["read_only", "idempotent", "destructive"]
Why: TypeAlias = Literal[
    "plan",
    "arguments",
    "reference",
    "error",
    "timeout",
    "result",
    "too_large",
    "cancelled",
    "budget",
    "refused",
    "waiting",
    "unknown",
]

MOST_SAID = 4000
"""Characters of an error's message that are kept."""
MOST_NESTED = 100
"""Lists and objects in each other in a result: what journals and checkpoints surely can keep."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A call that gave nothing."""

    why: Why
    """``plan`` (see :class:`stratagem.tools.dag.Problem`), ``arguments`` that do not fit the signature, a
    ``reference`` to what a result does not have, an ``error`` raised, ``timeout``, a ``result`` that is not what
    the signature says or no JSON, ``too_large``, ``cancelled``, no ``budget`` for it,
    ``refused`` or still ``waiting`` to be allowed, or ``unknown``: begun when its run was stopped."""
    message: str
    error: BaseException | None = field(default=None, repr=False)
    """What was raised, whole: with its cause, group and traceback, and what secrets it holds."""
    attempts: int = 0  # how often the function was begun
    cost: float = field(default=0.0, compare=False)  # money that this took now
    earlier: int = field(default=0, compare=False)  # attempts in an earlier sitting
    made: str = field(default="", compare=False)  # in the plan notation, where it is not the call of the plan

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", encodable(self.message))


@dataclass(frozen=True, slots=True)
class Value:
    """A call's result as plain JSON data."""

    data: Any
    attempts: int = 1  # how often the function was begun: 0 where the result is another call's
    cost: float = field(default=0.0, compare=False)  # as in :class:`Failed`
    failure: Failed | None = None  # why ``data`` is the default that the call names
    made: str = field(default="", compare=False)  # as in :class:`Failed`


@dataclass(frozen=True, eq=False)
class Tool:
    """A function with its limits; made by :func:`tool`, which explains the fields."""

    name: str
    description: str
    parameters: dict[str, Any]  # JSON schema of the arguments
    function: Callable[..., Any]
    timeout: float
    retries: int
    concurrency: int | None
    rate: float | None
    cost: float
    effect: Effect
    max_bytes: int
    on_failure: Literal["skip", "ask"]
    secrets: tuple[str, ...] = field(repr=False)
    _arguments: Mapping[str, TypeAdapter[Any]]
    _result: TypeAdapter[Any]
    _gates: dict[asyncio.AbstractEventLoop, Gate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z_]\w*", self.name, re.ASCII):
            raise ConfigurationError(
                f"Tool {self.name!r}: a model cannot write such a name.",
                remedy="Give name= of letters, digits and _, as get_price.",
            )
        for key, known in (("effect", get_args(Effect)), ("on_failure", ("skip", "ask"))):
            chosen = getattr(self, key)
            if chosen not in known:
                raise ConfigurationError(
                    f"Tool {self.name!r}: {key} {chosen!r}.", remedy=f"Known are: {', '.join(known)}."
                )
        for key in ("timeout", "rate", "cost", "retries", "concurrency", "max_bytes"):
            limit: Any = getattr(self, key)
            if key in ("rate", "concurrency") and getattr(self, key) is None:
                continue
            whole, zero = key in ("retries", "concurrency", "max_bytes"), key in ("cost", "retries")
            kind: Any = Integral if whole else Real  # which type checkers do not know to be numbers
            if (
                not isinstance(limit, kind)
                or isinstance(limit, bool)
                or not (limit > 0 or (zero and limit == 0))
            ):
                least = f"{'whole ' * whole}number {'not below' if zero else 'greater than'} 0"
                raise ConfigurationError(f"Tool {self.name!r}: {key}={limit!r}.", remedy=f"Give a {least}.")
        if self.effect == "destructive" and self.retries:
            raise ConfigurationError(
                f"Tool {self.name!r} is destructive and would be retried.",
                remedy="Set retries=0, or effect='idempotent' if calling it twice does no harm.",
            )

    @cached_property
    def hidden(self) -> frozenset[str]:
        """Parameters that are never shown: those with a ``writeOnly`` part, which is how schemas mark secrets."""
        properties = self.parameters["properties"].items()
        return frozenset(key for key, each in properties if write_only(each, self.parameters, set()))

    @cached_property
    def _defaults(self) -> frozenset[str]:
        """Secrets that stand in the signature."""
        given = inspect.signature(self.function).parameters if self.hidden else {}
        defaults = [given[key].default for key in self.hidden if key in given]
        return frozenset(
            text for each in defaults if each is not inspect.Parameter.empty for text in texts(each)
        )

    def masked(self, data: Any, arguments: Mapping[str, Any] | None = None) -> Any:
        """Text or JSON data without the tool's secrets, nor those among the arguments of a call."""
        given = arguments or {}
        hidden = {text for key in self.hidden if key in given for text in texts(given[key])} | self._defaults
        return masked(data, sorted({*self.secrets, *hidden} - {""}, key=len, reverse=True))

    @property
    def schema(self) -> dict[str, Any]:
        """The tool as the ``tools`` of OpenAI's interface list it."""
        told = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": told}

    def misfits(self, arguments: Mapping[str, Any], *, unknown: frozenset[str] = frozenset()) -> list[str]:
        """What is wrong with arguments, one sentence each; of those in ``unknown`` only the name is known."""
        return self._checked(arguments, unknown)[1]

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any] | Failed:
        """Arguments as the function takes them, or what is wrong with them."""
        checked, wrong = self._checked(arguments, frozenset())
        return Failed("arguments", " ".join(wrong)) if wrong else checked

    def _checked(
        self, arguments: Mapping[str, Any], unknown: frozenset[str]
    ) -> tuple[dict[str, Any], list[str]]:
        wrong = [
            f"{self.name} has no parameter {name!r}; it has: {', '.join(self._arguments) or 'none'}."
            for name in arguments
            if name not in self._arguments
        ]
        wrong += [
            f"{self.name} needs {name!r}."
            for name in self.parameters["required"]
            if name not in arguments and name not in unknown
        ]
        checked: dict[str, Any] = {}
        for name, adapter in self._arguments.items():
            if name in arguments and name not in unknown:
                try:
                    checked[name] = adapter.validate_python(arguments[name])
                except Exception as error:  # also what a validator of a type's own raises
                    wrong.append(self.masked(f"{self.name}: {name}: {_reason(error)}.", arguments))
        return checked, wrong

    async def __call__(self, /, **arguments: Any) -> Value | Failed:
        """Check the arguments and call the function."""
        checked = self.check(arguments)
        return checked if isinstance(checked, Failed) else await self.invoke(checked)

    async def invoke(
        self,
        checked: Mapping[str, Any],
        *,
        retries: int | None = None,
        who: object | None = None,
        hold: Callable[[], AbstractAsyncContextManager[Any]] = nullcontext,
        begin: Callable[[int], Awaitable[None]] | None = None,
    ) -> Value | Failed:
        """Call the function with what :meth:`check` gave, again after an error or time-out.

        Args:
            retries: how often again; by default the tool's own number.
            who: calls for whom; several, as agents, are let in in turn.
            hold: holds a permit while an attempt runs, and only then: not while it waits to be let in by the tool.
            begin: told the number of an attempt, from 1, that begins now.
        """
        attempt, most = 1, 1 + (self.retries if retries is None else retries)
        while isinstance(outcome := await self._attempt(checked, attempt, who, hold, begin), Failed):
            if outcome.why not in ("error", "timeout") or outcome.attempts < attempt or attempt == most:
                break
            attempt += 1
        if not (self.secrets or self.hidden):
            return outcome
        if isinstance(outcome, Value):
            return replace(outcome, data=self.masked(outcome.data, checked))
        return replace(outcome, message=self.masked(outcome.message, checked))

    async def _attempt(
        self,
        checked: Mapping[str, Any],
        attempt: int,
        who: object | None,
        hold: Callable[[], AbstractAsyncContextManager[Any]],
        begin: Callable[[int], Awaitable[None]] | None,
    ) -> Value | Failed:
        gate = self._gate()
        thread = not inspect.iscoroutinefunction(self.function)
        place = await gate.enter(self.timeout, thread=thread, who=who)
        if place is None:
            message = f"{self.name} is not called: earlier calls, which took too long, still go on."
            return Failed("timeout", message, TimeoutError(message), attempt - 1)
        begun = False  # the call gives its place back itself
        try:
            while True:
                turn = await gate.turn(self.rate, who)
                async with hold():
                    if not gate.starts(self.rate, turn):
                        continue  # others have started meanwhile
                    if begin is not None:
                        await begin(attempt)
                    begun = True
                    return await self._made(checked, attempt, place)
        finally:
            if not begun:
                place.leave()

    async def _made(self, checked: Mapping[str, Any], attempt: int, place: Entered) -> Value | Failed:
        running = asyncio.ensure_future(self._begin(checked, attempt, place))
        late = False
        try:
            await asyncio.sleep(0)  # one that ends at once needs no timer
            if not running.done():
                late = not (await asyncio.wait({running}, timeout=self.timeout))[0]
        except asyncio.CancelledError:
            if not running.done():
                place.is_late()  # whether it ever ends nobody knows
            await stopped(running)
            if not running.done() or running.cancelled():
                raise
            # It kept the cancellation to itself: what it gave stands, and the task knows that it is cancelled.
        if late:
            place.is_late()
            await stopped(running)
        if not running.done() or (late and running.cancelled()):
            goes_on = "" if running.done() else " It does not stop, and goes on."
            message = f"{self.name} took longer than {self.timeout:g} s.{goes_on}"
            return Failed("timeout", message, TimeoutError(message), attempt)
        try:
            return running.result()
        except asyncio.CancelledError as error:
            return Failed("error", f"{self.name} ended as cancelled.", error, attempt)  # by itself
        except Raised as raised:
            why: Why = "timeout" if late else "error"
            cause = raised.error
            return Failed(why, f"{self.name}: {type(cause).__name__}: {_said(cause)}", cause, attempt)

    def _begin(self, checked: Mapping[str, Any], attempt: int, place: Entered) -> Awaitable[Value | Failed]:
        """The call, which leaves when it has ended, a thread also where nobody waits for it any more."""
        if inspect.iscoroutinefunction(self.function):
            return releasing(guarded(self._awaited(self.function(**checked), attempt)), place.leave)
        return in_thread(partial(self._blocking, checked, attempt), place.thread_ended)

    def _blocking(
        self, checked: Mapping[str, Any], attempt: int
    ) -> Value | Failed | Awaitable[Value | Failed]:
        """In its thread, where also the result is read: it may be an iterator that takes as long as it likes."""
        result = self.function(**checked)
        return (
            self._awaited(result, attempt) if inspect.isawaitable(result) else self._bounded(result, attempt)
        )

    async def _awaited(self, result: Awaitable[Any], attempt: int) -> Value | Failed:
        return self._bounded(await result, attempt)

    def _bounded(self, result: Any, attempt: int) -> Value | Failed:
        try:
            data, size = self._as_json(result)
        except Exception as error:
            message = f"{self.name} gave what its signature or JSON does not allow: {_reason(error)}."
            return Failed("result", message, error, attempt)
        if size > self.max_bytes:
            message = f"{self.name} gave {size} bytes; it may give {self.max_bytes}."
            return Failed("too_large", message, attempts=attempt)
        if _deeper(data, MOST_NESTED):
            message = f"{self.name} gave a result that is nested more than {MOST_NESTED} deep."
            return Failed("result", message, attempts=attempt)
        return Value(data, attempt)

    def _as_json(self, result: Any) -> tuple[Any, int]:
        """As JSON data, and its bytes in UTF-8."""
        data = self._result.dump_python(self._result.validate_python(encodable(result)), mode="json")
        text = json.dumps(data, ensure_ascii=False, allow_nan=False)
        try:
            return data, len(text.encode())
        except UnicodeEncodeError:  # in objects of the function's own
            return encodable(data), len(encodable(text).encode())

    def _gate(self) -> Gate:
        loop = asyncio.get_running_loop()
        if loop not in self._gates:
            for old in [each for each in self._gates if each.is_closed()]:
                del self._gates[old]
            self._gates[loop] = Gate(None if self.concurrency is None else Places(self.concurrency))
        return self._gates[loop]

    def replace(self, **limits: Unpack[Limits]) -> Tool:
        """The same function as a tool with other limits, which :func:`tool` explains. It shares no places with this
        one.

        Raises:
            ConfigurationError: a limit is out of range.
        """
        unknown = sorted(limits.keys() - Limits.__annotations__.keys())
        if unknown:
            known = ", ".join(Limits.__annotations__)
            raise ConfigurationError(f"A tool has no limit {unknown[0]!r}.", remedy=f"Known are: {known}.")
        return replace(self, **limits, _gates={})


def _deeper(data: Any, most: int) -> bool:
    """Whether lists and objects stand in each other more than ``most`` deep."""
    level = [data]
    for _ in range(most + 1):
        level = [each for each in level if isinstance(each, dict | list)]
        if not level:
            return False
        level = [part for each in level for part in (each.values() if isinstance(each, dict) else each)]
    return True


def _said(error: BaseException) -> str:
    """An error's own words, and not without end."""
    try:
        words = str(error)
    except Exception as another:
        return f"its message cannot be read ({type(another).__name__})"
    cut = "" if len(words) <= MOST_SAID else f" ... ({len(words) - MOST_SAID} characters more)"
    return words[:MOST_SAID] + cut


def _reason(error: BaseException) -> str:
    if not isinstance(error, ValidationError):
        return _said(error).rstrip(".")
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *,
    name: str | None = None,
    timeout: float = 30.0,
    retries: int = 0,
    concurrency: int | None = None,
    rate: float | None = None,
    cost: float = 0.0,
    effect: Effect = "destructive",
    max_bytes: int = 100_000,
    on_failure: Literal["skip", "ask"] = "skip",
    needs: Sequence[str] = (),
    secrets: Sequence[str] = (),
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a typed function a :class:`Tool`: its docstring is the description, its signature the JSON schema.

    An async function runs in the event loop, any other in a thread. A thread cannot be stopped: after a time-out or
    cancellation it goes on, and keeps its permit, until the function returns. So does an async function that keeps
    a cancellation to itself for more than two seconds. Where such calls hold all permits, the next one waits for as
    long as its own time-out and then fails.

    Args:
        name: what a model calls it; the function's name by default.
        timeout: seconds for each attempt, counted from its start.
        retries: further attempts after an error or a time-out.
        concurrency: attempts at a time in one event loop; ``None`` is no limit.
        rate: starts a second, evenly spaced, in one event loop.
        cost: money for each attempt.
        effect: what a second call with the same arguments does. Equal calls of a ``read_only`` tool are made once
            in a plan; an ``idempotent`` one may be repeated; a ``destructive`` one (the default) is never retried.
        max_bytes: of a result as JSON in UTF-8; a larger one is a failure.
        on_failure: what an agent does when a call fails for good: ``ask`` the model for another call in its place,
            while the rest of the plan goes on, or ``skip`` what takes its result until the next turn.
        needs: environment variables, such as keys, that the function reads. Their values are masked in results,
            failures and traces.
        secrets: further values to mask there.

    A parameter that holds a ``SecretStr`` is masked there and in answers. A default may be pydantic's
    ``Field(...)``. A result may be nested 100 deep.

    Raises:
        ConfigurationError: it is no function, or none with a signature; an environment variable is missing; a
            parameter or the result has no type, or none that has a JSON schema; it takes ``*`` or positional-only
            parameters; it has no docstring; a limit is out of range, or none.
    """
    return partial(_made, **options) if function is None else _made(function, **options)


def _made(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    timeout: float = 30.0,
    retries: int = 0,
    concurrency: int | None = None,
    rate: float | None = None,
    cost: float = 0.0,
    effect: Effect = "destructive",
    max_bytes: int = 100_000,
    on_failure: Literal["skip", "ask"] = "skip",
    needs: Sequence[str] = (),
    secrets: Sequence[str] = (),
) -> Tool:
    if not callable(function):
        raise ConfigurationError(
            f"{function!r} is no function.", remedy="Write @tool, or @tool(name=...), before a function."
        )
    name = name or str(getattr(function, "__name__", type(function).__name__))
    missing = [each for each in needs if not os.environ.get(each)]
    if missing:
        raise ConfigurationError(
            f"Tool {name!r} needs {', '.join(missing)}.", remedy="Set it in the environment."
        )
    description = inspect.getdoc(function)
    if not description:
        raise ConfigurationError(
            f"Tool {name!r} has no docstring.", remedy="Write what it does: the model reads it."
        )
    called, arguments, result, parameters = typed(name, function)
    return Tool(
        name,
        description,
        parameters,
        called,
        timeout,
        retries,
        concurrency,
        rate,
        cost,
        effect,
        max_bytes,
        on_failure,
        (*(os.environ[each] for each in needs), *secrets),
        arguments,
        result,
    )


def toolbox(*tools: Tool) -> dict[str, Tool]:
    """Tools by name.

    Raises:
        ConfigurationError: two have one name.
    """
    named: dict[str, Tool] = {}
    for each in tools:
        if each.name in named:
            raise ConfigurationError(f"Two tools are called {each.name!r}.", remedy="Give one another name=.")
        named[each.name] = each
    return named
