"""Idealized runtime: how long requests would take without contention, from few measurements or from a roofline.

A request of p prompt tokens and o decoded ones takes T(p, o) = f(p) + (o - 1) beta seconds: f encodes the prompt
and gives the first token, beta is the time per token after it (Narayanan et al. 2023, Cheaply Evaluating Inference
Efficiency Metrics for Autoregressive Transformer APIs, https://arxiv.org/abs/2305.02440). That is batch size 1; it
does not hold under speculation, nor for answers so long that attention to them counts.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from stratagem.bench.cost import Roofline
from stratagem.core.errors import DataError
from stratagem.core.trace import Record


@dataclass(frozen=True, slots=True)
class Timing:
    """One measured request."""

    prompt: int  # tokens
    output: int  # tokens
    seconds: float


@dataclass(frozen=True, slots=True)
class Runtime:
    """T(p, o) of one model on one machine."""

    prefill: tuple[tuple[int, float], ...]  # (prompt tokens, seconds to the first token), both rising
    per_token: float  # seconds of each token after the first

    def first(self, prompt: int) -> float:
        """f(p): linear between points, constant below the first, and beyond the last as between the last two."""
        lengths = [length for length, _ in self.prefill]
        at = min(max(1, bisect_left(lengths, prompt)), len(lengths) - 1)
        if at < 1 or prompt <= lengths[0]:
            return self.prefill[0][1]
        (low, f_low), (high, f_high) = self.prefill[at - 1 : at + 1]
        return f_low + (f_high - f_low) * (prompt - low) / (high - low)

    def seconds(self, prompt: int, output: int) -> float:
        """T(p, o).

        Raises:
            ValueError: no token is decoded.
        """
        if output < 1:
            raise ValueError(f"output = {output}: the model gives one token at least")
        return self.first(prompt) + (output - 1) * self.per_token

    @classmethod
    def fit(cls, timings: Iterable[Timing]) -> Self:
        """From timings of requests that were alone, each (p, o) best several times: the fastest of them counts,
        which noise has touched least.

        f is what was measured with one decoded token, raised where it falls with p; beta is the slope of T - f(p)
        on o - 1 through zero.

        Raises:
            DataError: no timing has one decoded token, or none has more, or more take no longer.
        """
        fastest: defaultdict[tuple[int, int], float] = defaultdict(lambda: math.inf)
        for timing in timings:
            at = timing.prompt, timing.output
            fastest[at] = min(fastest[at], timing.seconds)
        points: list[tuple[int, float]] = []
        for (prompt, output), seconds in sorted(fastest.items()):
            if output == 1:
                points.append((prompt, max(seconds, points[-1][1]) if points else seconds))
        first = cls(tuple(points), 0.0)
        more = [(output - 1, prompt, seconds) for (prompt, output), seconds in fastest.items() if output > 1]
        if not points or not more:
            raise DataError(
                "An idealized runtime needs timings of requests with one decoded token and of others with more.",
                remedy="Measure each prompt length with 1 and, say, 64 tokens.",
            )
        slope = math.fsum(n * (seconds - first.first(prompt)) for n, prompt, seconds in more)
        if slope <= 0:
            raise DataError(
                "By these timings a token more takes no time: what else the machine did was longer.",
                remedy="Measure longer answers, and each (p, o) more often.",
            )
        return cls(tuple(points), slope / math.fsum(n * n for n, _, _ in more))

    @classmethod
    def of_roofline(cls, roofline: Roofline, prompts: Sequence[int], output: int = 64) -> Self:
        """The least T(p, o), on that grid of prompt lengths and to answers of ``output`` tokens (two at least)."""
        timings = [Timing(p, o, roofline.generation(1, p, o)) for p in prompts for o in (1, output)]
        return cls.fit(timings)


@dataclass(frozen=True, slots=True)
class Idealized:
    """What the model calls of one run would take."""

    work: float = 0.0  # seconds, one completion after another
    span: float = 0.0  # seconds, all at the same time that did not wait for each other: the longest chain


@dataclass(slots=True)
class _Run:
    """A run as its events are read in order."""

    work: float = 0.0
    ready: float = 0.0  # when, ideally, all that has arrived so far had arrived
    # By call; one that started before the trace did counts as starting with it.
    starts: dict[int, float] = field(default_factory=lambda: defaultdict[int, float](float))  # ideally
    left: dict[int, int] = field(default_factory=lambda: defaultdict[int, int](int))  # not arrived yet
    decoded: dict[int, int] = field(default_factory=lambda: defaultdict[int, int](int))  # tokens that arrived

    def begin(self, call: int, n: int) -> None:
        self.starts[call], self.left[call], self.decoded[call] = self.ready, n, 0

    def arrive(self, call: int, seconds: float, count: int) -> None:
        """``count`` sequences of that length have ended."""
        self.work += count * seconds
        self.ready = max(self.ready, self.starts[call] + seconds)


def idealized(trace: Path | str | Iterable[Record], runtime: Runtime) -> dict[str, Idealized]:
    """The idealized runtime of each run in a recorded trace, by run id.

    A call is taken to wait for all completions of its run that had arrived when it started. What a call decoded
    without finishing counts as if its siblings had shared it evenly; what it scored counts as prompt.

    Args:
        trace: a file that :class:`~stratagem.core.trace.JsonLines` wrote, or records in order.

    Raises:
        DataError: the file cannot be read, or is no trace.
    """
    events = _read(Path(trace)) if isinstance(trace, (str, Path)) else [json.loads(r.json()) for r in trace]
    prompts = _prompts(events)
    runs: defaultdict[str, _Run] = defaultdict(_Run)
    for place, event in enumerate(events):
        run, call = runs[event["run_id"]], event.get("call", 0)
        if event["type"] == "call_started":
            run.begin(call, event["n"])
        elif event["type"] == "completion":
            run.arrive(call, runtime.seconds(prompts[place], max(1, event["token_count"])), 1)
            run.left[call] -= 1
            run.decoded[call] += event["token_count"]
        elif event["type"] == "call_finished" and run.left[call] > 0 and event["usage"]["calls"]:
            scored = not event["usage"]["completion_tokens"]
            count = event["usage"]["calls"] if scored else run.left[call]
            rest = (event["usage"]["completion_tokens"] - run.decoded[call]) // count
            run.arrive(call, runtime.seconds(prompts[place], max(1, rest)), count)
    return {name: Idealized(run.work, run.ready) for name, run in runs.items()}


def _prompts(events: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Prompt tokens of the call that an event belongs to, by the event's place: told only when a call has ended."""
    found: dict[int, int] = {}
    known: dict[tuple[str, int], int] = {}
    for place in reversed(range(len(events))):
        event = events[place]
        if event["type"] not in _COUNTS:
            continue
        key = event["run_id"], event["call"]
        if event["type"] == "call_finished":
            usage = event["usage"]
            known[key] = usage["prompt_tokens"] // max(1, usage["calls"])
        found[place] = known.get(key, 0)
    return found


_COUNTS = {"call_started": ("call", "n"), "completion": ("call", "token_count"), "call_finished": ("call",)}
_OF_USAGE = ("calls", "prompt_tokens", "completion_tokens")


def _is_event(told: Any) -> bool:
    """Whether all that is looked at here is there."""
    if not isinstance(told, dict) or not all(isinstance(told.get(key), str) for key in ("type", "run_id")):
        return False
    counts = [told.get(key) for key in _COUNTS.get(told["type"], ())]
    if told["type"] == "call_finished":
        usage = told.get("usage")
        counts += [usage.get(key) for key in _OF_USAGE] if isinstance(usage, dict) else [None]
    return all(type(count) is int and count >= 0 for count in counts)


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        # What a kill has cut off in mid-line, and maybe in mid-character, is left out.
        lines = [line.decode() for line in path.read_bytes().split(b"\n")[:-1]]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise DataError(f"Cannot read the trace {path}: {reason}.") from error
    events: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if event is None or not _is_event(event):
            raise DataError(
                f"{path}:{number} is no event of a trace.", remedy="Give a file that --trace wrote."
            )
        events.append(event)
    return events
