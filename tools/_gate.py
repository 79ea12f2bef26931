"""What limits a tool in one event loop: how many calls at a time, how often one starts, and room for threads.

Agents that wait are let in in turn, as :mod:`stratagem.tools.fair` says.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

from stratagem.tools._places import Place, Places
from stratagem.tools._threads import room
from stratagem.tools.fair import FairPermits


@dataclass(eq=False, slots=True)
class Entered:
    """A call that has been let in. It leaves when it has ended, also a thread that nobody waits for any more."""

    place: Place | None = None  # of the tool
    thread: Place | None = None

    def is_late(self) -> None:
        """It has taken too long; until it ends, it holds its places."""
        for each in (self.place, self.thread):
            if each is not None:
                each.is_late()

    def thread_ended(self, goes_on: bool) -> None:
        """Its thread has ended; ``goes_on``: the call has not."""
        if goes_on and self.thread is not None:
            self.thread.release()
        if not goes_on:
            self.leave()

    def leave(self) -> None:
        """It has ended."""
        for each in (self.place, self.thread):
            if each is not None:
                each.release()


@dataclass(slots=True, eq=False)
class Gate:
    """Lets calls in."""

    places: Places | None
    last: float = -math.inf  # loop time of the last start, or of the turn for the next one
    line: FairPermits = field(default_factory=lambda: FairPermits(1))  # of those that wait for their turn

    async def enter(self, patience: float, *, thread: bool, who: object | None) -> Entered | None:
        """Wait for a place and a thread; ``None`` where there is no hope for one of them, as :class:`Places`
        says."""
        entered = Entered()
        try:
            if self.places is not None:
                entered.place = await self.places.take(who, patience)
            if thread and (self.places is None or entered.place is not None):
                entered.thread = await room().take(who, patience)
        except BaseException:
            entered.leave()
            raise
        if (self.places is None or entered.place is not None) and (not thread or entered.thread is not None):
            return entered
        entered.leave()
        return None

    async def turn(self, rate: float | None, who: object | None) -> float:
        """Wait for the next start that ``rate`` a second allows; gives the loop time of that turn."""
        clock = asyncio.get_running_loop().time
        if rate is not None:
            async with self.line.share(who):
                while (wait := self.last + 1 / rate - clock()) > 0:  # noqa: ASYNC110 - others may start late
                    await asyncio.sleep(wait)
                self.last = clock()
        return self.last

    def starts(self, rate: float | None, turn: float) -> bool:
        """Start with that turn, unless others have had theirs meanwhile and it is too soon again."""
        now = asyncio.get_running_loop().time()
        if rate is not None and self.last != turn and now < self.last + 1 / rate:
            return False
        self.last = now
        return True
