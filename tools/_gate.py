"""What limits a tool in one event loop: how many calls at a time, how often one starts, and room for threads.

Agents that wait are let in in turn, as :mod:`stratagem.tools.fair` says.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from stratagem.tools._threads import room
from stratagem.tools.fair import FairPermits, Share


@dataclass(eq=False, slots=True)
class Entered:
    """A call that has been let in."""

    held: tuple[Share, ...]  # what it gives back


@dataclass(slots=True, eq=False)
class Gate:
    """Lets calls in. Each leaves when it has ended, also a thread that nobody waits for any more."""

    permits: FairPermits | None
    most: int = 0  # permits in all
    free: float = 0.0  # loop time of the next start that the rate allows
    line: FairPermits = field(default_factory=lambda: FairPermits(1))  # of those that wait for it
    stuck: set[Entered] = field(default_factory=set[Entered])  # that have taken too long and still go on
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def enter(
        self, rate: float | None, patience: float, *, thread: bool, who: object | None
    ) -> Entered | None:
        """Wait for a permit, the next start that ``rate`` a second allows, and room for a thread.

        ``None`` where calls that have taken too long hold all permits, and none has ended within ``patience``
        seconds: nobody knows when they will.
        """
        held: list[Share] = []
        try:
            if self.permits is not None:
                permit = self.permits.share(who)
                if not await self._permitted(self.permits, permit, patience):
                    return None
                held.append(permit)
            if rate is not None:
                async with self.line.share(who):
                    await self._turn(rate)
            if thread:
                await (place := room().share(who)).acquire()
                held.append(place)
        except BaseException:
            for each in held:
                each.release()
            raise
        return Entered(tuple(held))

    def leave(self, call: Entered) -> None:
        """The call has ended."""
        self.stuck.discard(call)
        for each in call.held:
            each.release()

    def late(self, call: Entered) -> None:
        """The call has taken too long; until it ends, it holds its permit."""
        self.stuck.add(call)
        self.changed.set()

    async def _permitted(self, permits: FairPermits, permit: Share, patience: float) -> bool:
        if permits.free:
            await permit.acquire()  # at once
            return True
        taking = asyncio.ensure_future(permit.acquire())
        try:
            while not taking.done():
                if len(self.stuck) >= self.most:
                    return bool((await asyncio.wait({taking}, timeout=patience))[0])
                self.changed.clear()
                news = asyncio.ensure_future(self.changed.wait())
                try:
                    await asyncio.wait({taking, news}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    news.cancel()
            return True
        except asyncio.CancelledError:
            if taking.done() and not taking.cancelled():
                permit.release()
            raise
        finally:
            taking.cancel()

    async def _turn(self, rate: float) -> None:
        """Wait for the next start, 1 / rate seconds after the one before."""
        now = asyncio.get_running_loop().time()
        if self.free > now:
            await asyncio.sleep(self.free - now)
        self.free = max(now, self.free) + 1 / rate
