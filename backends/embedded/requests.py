"""What goes into the engine and what comes out of it, in its own terms: token ids and plain data."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from stratagem.backends.embedded.sampling import Sampling

Finish = Literal["stop", "length", "abort"]
Want = Literal["result", "samples", "deltas"]


@dataclass(frozen=True, slots=True)
class Token:
    """A token, its natural log-probability at temperature 1 before any mask, and the likeliest (id,
    log-probability) at its place, best first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion. ``tokens`` holds all that were decoded, an end token and a stop string's included;
    ``text`` ends before the stop string."""

    index: int
    text: str
    tokens: tuple[int, ...]
    finish: Finish
    logprobs: tuple[Token, ...] = ()  # one per token, if asked for


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of completion ``index``; ``sample`` is set on the last."""

    index: int
    text: str
    logprobs: tuple[Token, ...] = ()
    sample: Sample | None = None


@dataclass(slots=True)
class Spent:
    """Tokens that the engine really worked off for a job."""

    prefilled: int = 0  # of the prompt and of given continuations, by computing them
    cached: int = 0  # of the prompt, out of the prefix cache
    decoded: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """The end of a job. After an abort, unfinished samples hold what they had."""

    samples: tuple[Sample, ...]
    scores: tuple[tuple[Token, ...], ...]  # per continuation
    prompt: tuple[Token, ...]  # of the prompt's second token on, if asked for
    spent: Spent
    error: Exception | None = None
    aborted: bool = False


@dataclass(slots=True, eq=False)
class Job:
    """A request on its way: a prompt with either ``n`` samples to draw or continuations to score."""

    prompt: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    continuations: Sequence[Sequence[int]] | None = None
    top: int = 0  # likeliest tokens to report beside scored ones
    prompt_logprobs: bool = False
    want: Want = "result"
    priority: int = 0  # smaller is admitted first
    spent: Spent = field(default_factory=Spent)
    started: int = 0  # children that have begun
    live: int = 0  # children being decoded or scored
    samples: dict[int, Sample] = field(default_factory=dict)
    scores: dict[int, tuple[Token, ...]] = field(default_factory=dict)
    prompt_tokens: list[Token] = field(default_factory=list)

    @property
    def children(self) -> int:
        """How many sequences go on from the prompt."""
        return self.n if self.continuations is None else len(self.continuations)

    @property
    def open(self) -> int:
        """Children that have not ended."""
        return self.children - self.started + self.live

    def result(self, error: Exception | None = None, *, aborted: bool = False) -> Result:
        """Its end, or where it stands; samples that never began are empty."""
        draws = 0 if self.continuations is not None else self.n
        return Result(
            samples=tuple(self.samples.get(i, Sample(i, "", (), "abort")) for i in range(draws)),
            scores=tuple(self.scores.get(i, ()) for i in range(self.children - draws)),
            prompt=tuple(self.prompt_tokens),
            spent=replace(self.spent),
            error=error,
            aborted=aborted,
        )


Event = Delta | Result


class Handle:
    """The awaiting side of a job, in the event loop that submitted it."""

    def __init__(self, job: Job, abort: Callable[[Handle], None]) -> None:
        self.job = job
        self.loop = asyncio.get_running_loop()
        self._abort = abort
        self._end: asyncio.Future[Result] = self.loop.create_future()
        self._events: asyncio.Queue[Delta | None] = asyncio.Queue()

    def abort(self) -> None:
        """Stop at the next step. Thread-safe, at any time, more than once; the result tells what was spent."""
        if not self._end.done():
            self._abort(self)

    async def result(self) -> Result:
        """The end of the job, whether it went well, failed or was aborted; cancelling the wait changes nothing."""
        return await asyncio.shield(self._end)

    async def event(self) -> Delta | None:
        """The next piece (``want="deltas"``) or whole sample (``want="samples"``); None at the end."""
        if self._end.done() and self._events.empty():
            return None
        return await self._events.get()

    def receive(self, event: Event) -> None:
        """Called in the loop with what the driver thread delivers."""
        if isinstance(event, Delta):
            self._events.put_nowait(event)
        else:
            self._events.put_nowait(None)
            self._end.set_result(event)
