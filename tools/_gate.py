"""What limits a tool in one event loop: how many calls at a time, how often one starts, and room for threads."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from stratagem.tools._threads import room


@dataclass(eq=False, slots=True)
class Entered:
    """A call that has been let in."""

    threads: asyncio.Semaphore | None


@dataclass(slots=True, eq=False)
class Gate:
    """Lets calls in. Each leaves when it has ended, also a thread that nobody waits for any more."""

    permits: asyncio.Semaphore | None
    most: int = 0  # permits in all
    free: float = 0.0  # loop time of the next start that the rate allows
    stuck: set[Entered] = field(default_factory=set[Entered])  # that have taken too long and still go on
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def enter(self, rate: float | None, patience: float, *, thread: bool) -> Entered | None:
        """Wait for a permit, the next start that ``rate`` a second allows, and room for a thread.

        ``None`` where calls that have taken too long hold all permits, and none has ended within ``patience``
        seconds: nobody knows when they will.
        """
        if not await self._permitted(patience):
            return None
        try:
            if rate is not None:
                await self._turn(rate)
            threads = room() if thread else None
            if threads is not None:
                await threads.acquire()
        except BaseException:
            self._give_back()
            raise
        return Entered(threads)

    def leave(self, call: Entered) -> None:
        """The call has ended."""
        self.stuck.discard(call)
        if call.threads is not None:
            call.threads.release()
        self._give_back()

    def late(self, call: Entered) -> None:
        """The call has taken too long; until it ends, it holds its permit."""
        self.stuck.add(call)
        self.changed.set()

    async def _permitted(self, patience: float) -> bool:
        if self.permits is None:
            return True
        if not self.permits.locked():
            await self.permits.acquire()  # at once
            return True
        taking = asyncio.ensure_future(self.permits.acquire())
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
                self._give_back()
            raise
        finally:
            taking.cancel()

    def _give_back(self) -> None:
        if self.permits is not None:
            self.permits.release()

    async def _turn(self, rate: float) -> None:
        """Wait for the next start, 1 / rate seconds after the one before. Who is cancelled has used his."""
        now = asyncio.get_running_loop().time()
        start = max(now, self.free)
        self.free = start + 1 / rate
        if start > now:
            await asyncio.sleep(start - now)
