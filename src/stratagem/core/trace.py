"""What happened in a run, as typed, append-only events.

Code below a run (backends, wrappers) reports through :func:`emit`, which finds the current run's trace by a
context variable, so that no signature carries it. Texts are recorded as they are; headers and keys never are.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from stratagem.core.errors import StoreError
from stratagem.core.usage import Usage

if TYPE_CHECKING:
    from stratagem.core.task import Answer


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""

    type: ClassVar[str] = "event"


E = TypeVar("E", bound="Event")


@dataclass(frozen=True, slots=True)
class RunStarted(Event):
    """A strategy begins on a task."""

    type: ClassVar[str] = "run_started"
    strategy: dict[str, Any]
    question: str
    seed: int


@dataclass(frozen=True, slots=True)
class RunFinished(Event):
    """A run has ended, well or not."""

    type: ClassVar[str] = "run_finished"
    value: str | None  # of the best answer it had
    stopped: str  # that of the answer, or "cancelled" or "failed"
    usage: Usage
    seconds: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class CallStarted(Event):
    """A model call has its budget and goes to the backend."""

    type: ClassVar[str] = "call_started"
    call: int
    operation: str  # generate, stream or score
    role: str
    n: int


@dataclass(frozen=True, slots=True)
class CompletionArrived(Event):
    """One completion of a call has ended."""

    type: ClassVar[str] = "completion"
    call: int
    index: int
    text: str
    finish: str
    token_count: int


@dataclass(frozen=True, slots=True)
class CallFinished(Event):
    """A model call has ended, well or not, and its budget is settled."""

    type: ClassVar[str] = "call_finished"
    call: int
    usage: Usage
    seconds: float
    replayed: bool = False
    error: str = ""  # the class of what ended it early; "CancelledError" for an abort


@dataclass(frozen=True, slots=True)
class ToolStarted(Event):
    """A call of a tool is allowed, paid for, and begins. Secrets are masked."""

    type: ClassVar[str] = "tool_started"
    name: str
    call: str  # tool(arguments), in the plan notation


@dataclass(frozen=True, slots=True)
class ToolFinished(Event):
    """A call of a tool has ended, well or not."""

    type: ClassVar[str] = "tool_finished"
    name: str
    call: str
    seconds: float
    replayed: bool = False  # found where an earlier sitting kept it
    error: str = ""  # why there is no result; "cancelled" where it was
    cost: float = 0.0  # money, of all attempts


@dataclass(frozen=True, slots=True)
class Retried(Event):
    """A backend sends a request again."""

    type: ClassVar[str] = "retried"
    reason: str
    attempt: int
    delay: float  # seconds waited
    maybe_billed: bool  # the server may have charged for the failed attempt


@dataclass(frozen=True, slots=True)
class Verified(Event):
    """A verifier has judged candidates; ``None`` is an abstention."""

    type: ClassVar[str] = "verified"
    verifier: str
    scores: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Proposed(Event):
    """A strategy has a best answer so far."""

    type: ClassVar[str] = "proposed"
    value: str | None
    confidence: float | None


@dataclass(frozen=True, slots=True)
class Chosen(Event):
    """A strategy has chosen another one to go on with."""

    type: ClassVar[str] = "chosen"
    strategy: dict[str, Any]
    reason: str


@dataclass(frozen=True, slots=True)
class Record:
    """An event with its number, time (seconds since the epoch) and run."""

    number: int
    at: float
    run_id: str
    event: Event

    def json(self) -> str:
        """One line of JSON."""
        head = {"number": self.number, "at": self.at, "run_id": self.run_id, "type": self.event.type}
        return json.dumps(head | asdict(self.event), ensure_ascii=False, default=str)


@dataclass(slots=True)
class Trace:
    """The events of a run in order; ``listeners`` are called with each record as it comes."""

    run_id: str = ""
    records: list[Record] = field(default_factory=list)
    listeners: list[Callable[[Record], None]] = field(default_factory=list)
    partial: Answer | None = None  # what a cancelled run had: its best so far (empty if none) with its cost
    _calls: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def next_call(self) -> int:
        """A number for a model call, unique in this trace."""
        return next(self._calls)

    def append(self, event: Event) -> None:
        """Record an event."""
        record = Record(len(self.records), time.time(), self.run_id, event)
        self.records.append(record)
        for listener in self.listeners:
            listener(record)

    def of(self, kind: type[E]) -> list[E]:
        """All events of one type."""
        return [r.event for r in self.records if isinstance(r.event, kind)]


class JsonLines:
    """A trace listener that appends each record to a file, one JSON object a line.

    A line is written through at once, so that a killed run has left its events.
    """

    def __init__(self, path: Path | str) -> None:
        try:
            self._file = Path(path).open(  # noqa: SIM115 - closed by close()
                "a", encoding="utf-8", errors="backslashreplace", buffering=1
            )
        except OSError as error:
            raise StoreError(f"Cannot write the trace {path}: {error.strerror}.") from error

    def __call__(self, record: Record) -> None:
        try:
            self._file.write(record.json() + "\n")
        except OSError as error:
            raise StoreError(f"Cannot write the trace {self._file.name}: {error.strerror}.") from error

    def close(self) -> None:
        """Write out what is buffered and close the file."""
        self._file.close()


_current: ContextVar[Trace | None] = ContextVar("stratagem_trace", default=None)


def emit(event: Event) -> None:
    """Record an event in the trace of the current run, if there is one."""
    trace = _current.get()
    if trace is not None:
        trace.append(event)


@contextmanager
def tracing(trace: Trace) -> Iterator[None]:
    """Make ``trace`` the one that :func:`emit` writes to, inside the block and the tasks it starts."""
    token = _current.set(trace)
    try:
        yield
    finally:
        _current.reset(token)
