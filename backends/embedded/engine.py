"""The embedded engine: a model folder, a driver thread that owns it, and jobs from any event loop."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
from llguidance import LLTokenizer
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from stratagem.backends.embedded.cache import BLOCK
from stratagem.backends.embedded.constraints import Grammar, Kind
from stratagem.backends.embedded.forward import Model
from stratagem.backends.embedded.requests import Event, Handle, Job, Result, Want
from stratagem.backends.embedded.sampling import Sampling
from stratagem.backends.embedded.scheduler import Scheduler
from stratagem.backends.embedded.tokenizer import Tokenizer
from stratagem.core.errors import ConfigurationError, ContextLengthError

MAX_RUNNING = 64
MAX_BATCH = 256  # tokens a step
KV_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the engine was made, and what it holds now."""

    decoded_tokens: int = 0
    prefilled_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens that the prefix cache saved
    steps: int = 0
    ended: int = 0  # jobs
    aborted: int = 0  # of these
    running: int = 0  # jobs
    waiting: int = 0  # jobs
    blocks_active: int = 0  # in use by sequences
    blocks_cached: int = 0  # kept for reuse only


def blas_threads() -> int:
    """BLAS threads while an engine runs (OpenBLAS knows only one number for the whole process):
    STRATAGEM_THREADS, else 1 in CI (two lose badly beside another process) and 2 elsewhere."""
    given = os.environ.get("STRATAGEM_THREADS", "")
    if not given:
        return 1 if os.environ.get("CI") else min(2, os.cpu_count() or 1)
    if not given.isdecimal() or int(given) < 1:
        raise ConfigurationError(f"STRATAGEM_THREADS is {given!r}.", remedy="Give a number of at least 1.")
    return int(given)


_ENGINES: WeakSet[Engine] = WeakSet()  # of this process


def _forked() -> None:
    for engine in list(_ENGINES):
        engine._reset()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)


class Engine:
    """A model in this process. Made without starting anything; the driver thread starts with the first job
    and sleeps when there is none.

    Raises:
        ConfigurationError: the folder lacks a file, or holds a model of another kind.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_running: int = MAX_RUNNING,
        max_batch: int = MAX_BATCH,
        threads: int | None = None,
    ) -> None:
        self.folder = folder
        self.model = Model.load(folder)
        self.tokenizer = Tokenizer(folder)
        config = self.model.config
        if len(self.tokenizer.bytes) > config.vocabulary:
            raise ConfigurationError(
                f"{folder}: the tokenizer has {len(self.tokenizer.bytes)} tokens, the model {config.vocabulary}."
            )
        self.tokenizer.bytes += [b""] * (config.vocabulary - len(self.tokenizer.bytes))
        per_context = -(-config.context // BLOCK)
        block_bytes = config.layers * 2 * config.kv_heads * config.head_dim * BLOCK * 4
        # Two at least: a prompt waits in one place while its samples are decoded in the other.
        running = max(2, min(max_running, KV_BYTES // (per_context * block_bytes)))
        urgent = running // 4
        self._limits = (running + urgent) * per_context, running, max_batch, urgent
        self._threads = threads or blas_threads()
        ends = sorted(config.end | {self.tokenizer.end})
        self._words = LLTokenizer(self.tokenizer.json, n_vocab=config.vocabulary, eos_token=ends)
        self._reset()
        _ENGINES.add(self)

    def _reset(self) -> None:
        """Nothing runs: as it begins, and in a forked process, which has none of its parent's threads."""
        blocks, *limits = self._limits
        cache = self.model.new_cache(blocks)
        self._scheduler = Scheduler(self.model, self.tokenizer, cache, *limits)
        self._wake = threading.Condition()
        self._commands: list[Callable[[], None]] = []
        self._handles: dict[Job, Handle] = {}  # of jobs not ended; the driver's
        self._closing = False
        self._thread: threading.Thread | None = None
        self._stats = EngineStats()

    @property
    def context(self) -> int:
        """Tokens of prompt and completion together."""
        return self.model.config.context

    def grammar(self, kind: Kind, value: Any) -> Grammar:
        """Compile a constraint (see :class:`Grammar`); thread-safe, and slow for large schemas."""
        return Grammar(self._words, kind, value)

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        n: int = 1,
        want: Want = "result",
        priority: int = 0,
    ) -> Handle:
        """Draw ``n`` completions of ``prompt``, sample i with seed + i. Call it in an event loop.

        Of what waits for room, the smallest ``priority`` is begun first; a quarter of the room is kept beside for
        what is below 0.

        A completion ends where the context is full, if ``max_tokens`` does not end it before.

        Raises:
            ContextLengthError: the prompt leaves no room for a token.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1; it is {n}")
        self._fits(len(prompt), 1)
        return self._start(Job(prompt, sampling, n, want=want, priority=priority))

    def score(
        self,
        prompt: Sequence[int],
        continuations: Sequence[Sequence[int]],
        *,
        top: int = 0,
        prompt_logprobs: bool = False,
    ) -> Handle:
        """Log-probabilities of each continuation after ``prompt``, which is computed once; with
        ``prompt_logprobs`` also of the prompt's own tokens (then its prefix is not taken from the cache).

        Raises:
            ContextLengthError: prompt and longest continuation do not fit.
        """
        self._fits(len(prompt), max(map(len, continuations), default=0))
        job = Job(prompt, continuations=continuations, top=top, prompt_logprobs=prompt_logprobs)
        return self._start(job)

    def stats(self) -> EngineStats:
        """As of the last step that has ended."""
        return self._stats

    def close(self) -> None:
        """Abort what runs and end the driver thread; the next job starts it again."""
        with self._wake:
            thread = self._thread
            if thread is None:
                return
            self._closing = True
            self._wake.notify()
        if thread is not threading.current_thread():  # which may be where the garbage collector closes us
            thread.join()

    def _fits(self, prompt: int, more: int) -> None:
        if not prompt:
            raise ValueError("the prompt is empty")
        if prompt + more > self.context:
            raise ContextLengthError(
                f"The prompt has {prompt} tokens and needs room for {more} more; "
                f"the model takes {self.context} in all.",
                remedy="Shorten the prompt or use a model with a longer context.",
            )

    def _start(self, job: Job) -> Handle:
        handle = Handle(job, self._abort)

        def add() -> None:
            self._handles[job] = handle
            self._scheduler.enter(job)

        self._command(add)
        return handle

    def _abort(self, handle: Handle) -> None:
        self._command(lambda: self._scheduler.abort(handle.job))

    def _command(self, command: Callable[[], None]) -> None:
        """Have the driver do something before its next step."""
        with self._wake:
            self._commands.append(command)
            if self._thread is None:
                self._thread = threading.Thread(target=self._drive, name="stratagem-engine", daemon=True)
                self._thread.start()
                atexit.register(self.close)  # a daemon killed inside BLAS would take the process along
            self._wake.notify()

    # -- the driver thread -----------------------------------------------------------------------------

    def _drive(self) -> None:
        # exp() overflows to infinity where a gate is closed, which is what the formula wants.
        with threadpool_limits(self._threads, user_api="blas"), np.errstate(over="ignore", under="ignore"):
            while self._next():
                try:
                    self._scheduler.step()
                except Exception as error:
                    self._scheduler.fail(error)
                self._publish()
        atexit.unregister(self.close)

    def _next(self) -> bool:
        """Wait for work and take commands; False, with everything aborted, when it is time to go."""
        with self._wake:
            while self._scheduler.idle and not self._commands and not self._closing:
                self._wake.wait()
            commands, self._commands = self._commands, []
            for command in commands:
                command()
            if self._closing:
                for job in list(self._handles):
                    self._scheduler.abort(job)
                self._publish()
                self._closing, self._thread = False, None
                return False
            return True

    def _publish(self) -> None:
        """Update the counters, then hand each event loop what is new in one call."""
        s = self._scheduler
        self._stats = EngineStats(
            decoded_tokens=s.total.decoded,
            prefilled_tokens=s.total.prefilled,
            cached_tokens=s.total.cached,
            steps=s.steps,
            ended=s.ended,
            aborted=s.aborted,
            running=s.running,
            waiting=len(s.waiting),
            blocks_active=s.cache.active,
            blocks_cached=s.cache.cached,
        )
        if not s.outbox:
            return
        mail: dict[asyncio.AbstractEventLoop, list[tuple[Handle, Event]]] = defaultdict(list)
        for job, event in s.outbox:
            handle = self._handles[job]
            mail[handle.loop].append((handle, event))
            if isinstance(event, Result):
                del self._handles[job]
        s.outbox.clear()
        for loop, events in mail.items():
            try:
                loop.call_soon_threadsafe(_receive, events)
            except RuntimeError:  # the loop was closed with jobs under way: nobody waits for them
                for job in [j for j, h in self._handles.items() if h.loop is loop]:
                    del self._handles[job]
                    s.abort(job)
        s.outbox = [(job, event) for job, event in s.outbox if job in self._handles]


def _receive(events: Sequence[tuple[Handle, Event]]) -> None:
    for handle, event in events:
        handle.receive(event)
