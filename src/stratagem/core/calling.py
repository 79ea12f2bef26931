"""Tools, as a strategy sees them: it writes calls in the plan notation and gets back what became of each.

``stratagem.tools`` implements it; the notation is that of ``stratagem.tools.notation``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from stratagem.core.kept import Kept

if TYPE_CHECKING:
    from stratagem.core.run import Run


@dataclass(frozen=True, slots=True)
class Called:
    """What became of one call that a model wrote."""

    name: str  # by which other calls take its result; "" where the line named none
    call: str  # its right side, tool(...), or the line as it was where that is no call
    tool: str = ""  # "" where the line is no call
    result: Any = None  # JSON data
    error: str = ""  # why there is no result of its own, in words for the model; "": there is one
    skipped: bool = False  # it never began: what it takes is not there
    waiting: bool = False  # it waits to be allowed
    takes: tuple[str, ...] = ()  # the calls whose results it takes
    seconds: float = 0.0
    cost: float = 0.0  # money

    @property
    def ok(self) -> bool:
        """Whether it gave its own result."""
        return not self.error and not self.skipped

    def told(self, limit: int | None = None) -> str:
        """What the model reads after the call, at most ``limit`` characters of a result or an error."""
        if self.skipped:
            return "skipped"
        if self.error:
            return f"failed: {shortened(self.error, limit)}"
        return shortened(json.dumps(self.result, ensure_ascii=False), limit)


Approval: TypeAlias = Callable[[str, str], Awaitable[bool | Mapping[str, Any] | None]]
"""(a call's name, the call with its arguments filled in) -> whether it may be made, or arguments to change in it
before; ``None``: not decided yet."""
Instead: TypeAlias = Callable[[str, str, str], Awaitable[str | None]]
"""(a call's name, the call, why it failed) -> a line with another call in its place; ``None``: there is none."""


def shortened(text: str, limit: int | None) -> str:
    """The text, or as much of its beginning as fits, and how much was left out."""
    if limit is None or len(text) <= limit:
        return text
    kept = max(0, limit - 24)
    return f"{text[:kept]}... ({len(text) - kept} more)"


@dataclass(frozen=True, slots=True)
class Tooling:
    """The tools of a run, and what goes with them."""

    box: Toolbox | None = None
    kept: Kept | None = None  # where finished calls are kept, for a resumed run not to repeat them
    approve: Approval | None = None  # asked before a call of a destructive tool


class Toolbox(Protocol):
    """The tools that a run may call."""

    @property
    def priced(self) -> bool:
        """Whether a call of one costs money."""
        ...

    def describe(self) -> str:
        """A line for each tool that tells a model how to call it."""
        ...

    def schemas(self) -> list[dict[str, Any]]:
        """The tools as the ``tools`` of OpenAI's interface list them."""
        ...

    def pattern(self, *, named: bool = True, fallbacks: bool = False) -> str:
        """A regular expression for a line of a plan; not ``named``: for its right side alone; with ``fallbacks``:
        with what is done after a failure."""
        ...

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
        """Make the calls that the lines write, each as soon as its line and what it takes are there.

        ``known`` are results of earlier plans by name. Not ``named``: each line is a right side alone, and is named
        ``call1`` and so on, after the calls that there were ``before``. ``instead`` is asked once for each call
        that fails of a tool that says so. Gives what became of every line, in order; a call that fails is data, not
        an exception. Where the calls are stopped by a cancellation, ``stopped`` gets what has become of them.
        """
        ...
