"""Places that calls take in turn, and who waits in vain: where calls that take too long hold them all."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from stratagem.tools.fair import FairPermits, Share


class Places:
    """So many calls at a time. One that has taken too long and goes on keeps its place, and is known as late."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._permits = FairPermits(total)
        self._late: set[Place] = set()
        self._waiting: dict[asyncio.Task[Any], tuple[float, float]] = {}  # loop time from when, patience
        self._since = math.inf  # loop time from which late calls hold all places
        self._timer: asyncio.TimerHandle | None = None

    async def take(self, who: object | None, patience: float) -> Place | None:
        """Wait for one. ``None``: late calls hold them all, and none has ended within ``patience`` seconds; nobody
        knows when they will."""
        share = self._permits.share(who)
        if self._permits.free:
            await share.acquire()  # at once
            return Place(self, share)
        loop = asyncio.get_running_loop()
        taking = loop.create_task(share.acquire())
        self._waiting[taking] = loop.time(), patience
        self._set_timer(loop.time() + patience)
        try:
            await asyncio.wait({taking})
        except asyncio.CancelledError:
            if taking.done() and not taking.cancelled():
                share.release()
            raise
        finally:
            del self._waiting[taking]
            cancelled = taking.cancelled()
            taking.cancel()
        return None if cancelled else Place(self, share)

    def is_late(self, place: Place) -> None:
        """The call there has taken too long."""
        self._late.add(place)
        if len(self._late) == self._total:
            self._since = asyncio.get_running_loop().time()
            self._set_timer(min(map(self._until, self._waiting.values()), default=math.inf))

    def ended(self, place: Place) -> None:
        """The call there has ended."""
        self._late.discard(place)
        self._since = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _until(self, waiting: tuple[float, float]) -> float:
        started, patience = waiting
        return max(started, self._since) + patience

    def _set_timer(self, until: float) -> None:
        """One for all who wait: for the first of them."""
        if math.inf in (self._since, until) or (self._timer is not None and self._timer.when() <= until):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(until, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        now, first = asyncio.get_running_loop().time(), math.inf
        for taking, waiting in self._waiting.items():
            if self._until(waiting) <= now:
                taking.cancel()
            else:
                first = min(first, self._until(waiting))
        self._set_timer(first)


class Place:
    """One that is held."""

    def __init__(self, places: Places, share: Share) -> None:
        self._places = places
        self._share = share
        self._held = True

    def is_late(self) -> None:
        """Its call has taken too long, if it has not ended."""
        if self._held:
            self._places.is_late(self)

    def release(self) -> None:
        """Its call has ended; more than once does no harm."""
        if self._held:
            self._held = False
            self._places.ended(self)
            self._share.release()
