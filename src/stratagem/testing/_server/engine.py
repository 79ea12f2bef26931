"""The time model: continuous batching driven by one event-loop timer.

All running sequences advance together, one token a step; a step takes
`per_token * (1 + slowdown * (running - 1))` seconds. At most `max_sequences` run, the others wait in a
first-in-first-out queue. A sequence's first token comes no earlier than its prefill time after admission.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable


class Sequence:
    """One sequence to decode: `decoded` of `length` tokens so far."""

    __slots__ = ("admitted", "decoded", "done", "length", "notify", "prefill", "ready_at")

    def __init__(self, length: int, prefill: float, notify: Callable[[], None]) -> None:
        self.length = length
        self.prefill = prefill
        self.notify = notify
        self.decoded = 0
        self.admitted = False
        self.done = False
        self.ready_at = 0.0


class Engine:
    """Decodes sequences in time. `notify` of a sequence is called after each step that moved it, `changed` after
    each step, submission and abort."""

    def __init__(
        self, *, per_token: float, slowdown: float, max_sequences: int, changed: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._per_token = per_token
        self._slowdown = slowdown
        self._max = max_sequences
        self._changed = changed
        self._queue: deque[Sequence] = deque()
        self._running: dict[Sequence, None] = {}
        self._step_end = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.peak_running = 0
        self.peak_waiting = 0

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def submit(self, sequences: Iterable[Sequence]) -> None:
        self._queue.extend(sequences)
        self._admit(self._loop.time())
        self.peak_waiting = max(self.peak_waiting, len(self._queue))
        self._arm()
        self._changed()

    def abort(self, sequences: Iterable[Sequence]) -> None:
        """Stops decoding now; what was decoded stays in each sequence's count."""
        for sequence in sequences:
            if self._running.pop(sequence, self) is self and sequence in self._queue:
                self._queue.remove(sequence)
        self._admit(self._loop.time())
        self._arm()
        self._changed()

    def close(self) -> None:
        self._queue.clear()
        self._running.clear()
        self._arm()

    def _admit(self, now: float) -> None:
        while self._queue and len(self._running) < self._max:
            sequence = self._queue.popleft()
            sequence.admitted = True
            sequence.ready_at = now + sequence.prefill
            self._running[sequence] = None
        self.peak_running = max(self.peak_running, len(self._running))

    def _arm(self) -> None:
        """Sets the timer for the next step: after the last one's end, when a sequence is ready."""
        due = self._due()
        if self._timer is not None:
            if self._timer.when() == due:
                return
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer = self._loop.call_at(due, self._step, due)

    def _due(self) -> float | None:
        if not self._running:
            return None
        return max(self._step_end, min(sequence.ready_at for sequence in self._running))

    def _step(self, due: float) -> None:
        """Takes the step that is due, and those a late loop has missed, so that time does not stretch."""
        self._timer = None
        moved: dict[Sequence, None] = {}
        now = max(self._loop.time(), due)
        at: float | None = due
        while at is not None and at <= now:
            self._step_end = at + self._per_token * (1 + self._slowdown * (len(self._running) - 1))
            for sequence in [s for s in self._running if s.ready_at <= at]:
                moved[sequence] = None
                if self._per_token == 0:
                    sequence.decoded = sequence.length
                else:
                    sequence.decoded = min(sequence.decoded + 1, sequence.length)
                if sequence.decoded == sequence.length:
                    sequence.done = True
                    del self._running[sequence]
            self._admit(at)
            at = self._due()
        self._arm()
        for sequence in moved:
            sequence.notify()
        self._changed()
