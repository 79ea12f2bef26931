"""Permits that are shared in turn: who asks for many does not starve who asks for few."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from weakref import WeakKeyDictionary

from stratagem.core.errors import ConfigurationError


class FairPermits:
    """Permits that waiting shares get in turn, one each; within a share first come first served.

    Args:
        permits: how many may be held at a time.

    Raises:
        ConfigurationError: fewer than one.
    """

    def __init__(self, permits: int) -> None:
        if permits < 1:
            raise ConfigurationError(f"permits={permits}.", remedy="Give at least one.")
        self._free = permits
        self._shares: WeakKeyDictionary[object, Share] = WeakKeyDictionary()
        self._waiting: deque[Share] = (
            deque()
        )  # those with somebody waiting, each once; the next in turn first

    def share(self, owner: object | None = None) -> Share:
        """A share for one agent: ``async with share:`` holds one permit. An owner has the same one each time."""
        return Share(self) if owner is None else self._shares.setdefault(owner, Share(self))

    @property
    def free(self) -> bool:
        """Whether one can be had at once."""
        return self._free > 0 and not self._waiting

    async def _acquire(self, share: Share) -> None:
        if self.free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not share.line:
            self._waiting.append(share)
        share.line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()  # it was given and is not wanted
            elif turn in share.line:
                share.line.remove(turn)
                if not share.line:
                    self._waiting.remove(share)
            raise

    def _release(self) -> None:
        while self._waiting:
            share = self._waiting.popleft()
            turn = share.line.popleft()
            if share.line:
                self._waiting.append(share)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class Share:
    """One agent's part of :class:`FairPermits`."""

    def __init__(self, permits: FairPermits) -> None:
        self._permits = permits
        self.line: deque[asyncio.Future[None]] = deque()  # who waits

    async def acquire(self) -> None:
        """Wait for a permit."""
        await self._permits._acquire(self)

    def release(self) -> None:
        """Give one back."""
        self._permits._release()

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
