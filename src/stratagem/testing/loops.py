"""Event loops whose steps can be counted and whose time can be virtual, for tests that decide interleavings."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class StepLoop(asyncio.SelectorEventLoop):
    """Counts the callbacks put into the loop, and can do something right after the k-th.

    Every resumption of a task is one callback, so the count numbers all points at which a run can be cancelled.
    """

    def __init__(self, selector: selectors.BaseSelector | None = None) -> None:
        super().__init__(selector)
        self.steps = 0
        self._planned: tuple[int, Callable[[], object]] | None = None

    def plan(self, step: int, action: Callable[[], object]) -> None:
        """Call ``action`` once, ``step`` >= 1 callbacks from now."""
        self._planned = (self.steps + step, action)

    def cancel_plan(self) -> None:
        """Forget what was planned."""
        self._planned = None

    def _due(self) -> Callable[[], object] | None:
        self.steps += 1
        planned = self._planned  # read once: other threads come here as well
        if planned is None or self.steps < planned[0]:
            return None
        self._planned = None
        return planned[1]

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        action = self._due()
        handle = super().call_soon(callback, *args, context=context)
        if action is not None:
            super().call_soon(action)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        action = self._due()
        handle = super().call_soon_threadsafe(callback, *args, context=context)
        if action is not None:
            super().call_soon_threadsafe(action)
        return handle


class _Jumping(selectors.DefaultSelector):
    """Never waits for time to pass: where nothing is ready, the clock jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.threads = 0  # calls now running in the executor: real work, which the clock must not overtake

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or self.threads:
            return super().select(None if timeout else timeout)
        ready = super().select(0)
        if not ready:
            self.now += timeout
        return ready


class VirtualLoop(StepLoop):
    """A loop in which ``asyncio.sleep`` and time-outs take no real time and end in exactly the order of time.

    Calls in the loop's executor take no virtual time. Sockets only between parts that all run in this loop, as a
    simulated server and its client: on Linux's loopback what was sent has come before the loop looks for it. Not
    for sockets to elsewhere or threads of one's own.
    """

    def __init__(self) -> None:
        self._clock = _Jumping()
        super().__init__(self._clock)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._clock.now

    def run_in_executor(self, executor: Any, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """As any loop does; until the call has ended the clock waits."""
        future = super().run_in_executor(executor, func, *args)
        self._clock.threads += 1
        future.add_done_callback(self._thread_ended)
        return future

    def _thread_ended(self, _: object) -> None:
        self._clock.threads -= 1

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the loop's signature
        """Waits for real: a virtual time-out would be over at once."""
        await super().shutdown_default_executor()


def run(main: Coroutine[Any, Any, T], loop: Callable[[], asyncio.AbstractEventLoop] = VirtualLoop) -> T:
    """Like ``asyncio.run``, in a loop of the given kind."""
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(main)
