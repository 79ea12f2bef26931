"""One computation for all who ask at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SingleFlight(Generic[K, V]):
    """Concurrent calls with the same key share one task, per event loop.

    A failure reaches all who wait and is not remembered. When the last one who waits is cancelled, so is the
    task.
    """

    def __init__(self) -> None:
        self._flights: WeakKeyDictionary[
            asyncio.AbstractEventLoop, dict[K, tuple[asyncio.Task[V], list[None]]]
        ] = WeakKeyDictionary()

    async def do(self, key: K, compute: Callable[[], Awaitable[V]]) -> V:
        """The value of `compute`, started unless it is under way."""
        flights = self._flights.setdefault(asyncio.get_running_loop(), {})
        if key not in flights:
            task = asyncio.ensure_future(_run(compute))
            flights[key] = (task, [])

            def landed(done: asyncio.Future[V]) -> None:
                if not done.cancelled():
                    done.exception()  # retrieved, in case that the last who waited has just been cancelled
                if key in flights and flights[key][0] is done:
                    del flights[key]

            task.add_done_callback(landed)
        task, waiting = flights[key]
        waiting.append(None)
        try:
            return await asyncio.shield(task)
        finally:
            waiting.pop()
            if not waiting and not task.done():
                del flights[key]
                task.cancel()
                await asyncio.wait([task])


async def _run(compute: Callable[[], Awaitable[V]]) -> V:
    return await compute()
