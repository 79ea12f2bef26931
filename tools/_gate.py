"""What limits a tool in one event loop: how many calls at a time, how often one starts, and room for threads.

Agents that wait are let in in turn, as :mod:`stratagem.tools.fair` says.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from stratagem.tools._places import Place, Places
from stratagem.tools._threads import room
from stratagem.tools.fair import FairPermits


@dataclass(eq=False, slots=True)
class Entered:
    """A call that has been let in. It leaves when it has ended, also a thread that nobody waits for any more."""

    held: tuple[Place, ...]

    def is_late(self) -> None:
        """It has taken too long; until it ends, it holds its places."""
        for each in self.held:
            each.is_late()

    def leave(self) -> None:
        """It has ended."""
        for each in self.held:
            each.release()


@dataclass(slots=True, eq=False)
class Gate:
    """Lets calls in."""

    places: Places | None
    free: float = 0.0  # loop time of the next start that the rate allows
    line: FairPermits = field(default_factory=lambda: FairPermits(1))  # of those that wait for it

    async def enter(
        self, rate: float | None, patience: float, *, thread: bool, who: object | None
    ) -> Entered | None:
        """Wait for a place, the next start that ``rate`` a second allows, and a thread; ``None`` where there is no
        hope for one of them, as :class:`Places` says."""
        held: list[Place] = []
        wanted = [each for each in (self.places, room() if thread else None) if each is not None]
        try:
            for places in wanted:
                if (place := await places.take(who, patience)) is None:
                    break
                held.append(place)
            if len(held) == len(wanted) and rate is not None:
                async with self.line.share(who):
                    await self._turn(rate)
        except BaseException:
            Entered(tuple(held)).leave()
            raise
        entered = Entered(tuple(held))
        if len(held) == len(wanted):
            return entered
        entered.leave()
        return None

    async def _turn(self, rate: float) -> None:
        """Wait for the next start, 1 / rate seconds after the one before."""
        now = asyncio.get_running_loop().time()
        if self.free > now:
            await asyncio.sleep(self.free - now)
        self.free = max(now, self.free) + 1 / rate
