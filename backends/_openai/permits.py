"""Permits, counted in sequences, that always come back."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Self


class Permits:
    """So many sequences may be decoded at the same time; first come, first served.

    Who wants several gets what is free now and stays first in line for the rest, but gets no fewer at a time than a
    sixteenth of all, if that many are missing: a request of its own for each sequence, as they end one by one,
    costs both sides time, and the prompt each time. So fewer than that are idle while somebody waits.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self.least = max(1, total // 16)
        self._line: deque[Claim] = deque()

    def claim(self, wanted: int) -> Claim:
        """A claim on so many permits, to be used as a context."""
        return Claim(self, wanted)

    def give(self, count: int) -> None:
        """Hands permits back and passes them on to those who wait."""
        self.free += count
        self._serve()

    def _serve(self) -> None:
        while self._line and self._line[0].grant():
            self._line.popleft()

    def enter(self, claim: Claim) -> None:
        self._line.append(claim)
        self._serve()

    def leave(self, claim: Claim) -> None:
        if claim in self._line:
            self._line.remove(claim)


class Claim:
    """A wish for permits; leaving the context gives back what was granted and not taken."""

    def __init__(self, permits: Permits, wanted: int) -> None:
        self._permits = permits
        self._missing = wanted
        self._granted = 0
        self._waiting: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        self._permits.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._permits.leave(self)
        granted, self._granted = self._granted, 0
        self._permits.give(granted)

    def grant(self) -> bool:
        """Takes what is free, as far as it is wanted; returns whether nothing is missing any more."""
        count = min(self._permits.free, self._missing)
        if count < min(self._missing, self._permits.least):
            return False
        self._permits.free -= count
        self._missing -= count
        self._granted += count
        if self._granted and self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
        return self._missing == 0

    async def take(self) -> Lease:
        """What has been granted so far, at least one permit."""
        if not self._granted:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        granted, self._granted = self._granted, 0
        return Lease(self._permits, granted)


class Lease:
    """Permits that are held. Closing gives back the rest of them; more than once does no harm."""

    def __init__(self, permits: Permits, count: int) -> None:
        self._permits = permits
        self.count = count

    def split(self, count: int) -> Lease:
        """Moves so many of the permits into a lease of their own."""
        self.count -= count
        return Lease(self._permits, count)

    def release(self, count: int = 1) -> None:
        """Gives some back early, when a sequence has ended."""
        count = min(count, self.count)
        self.count -= count
        self._permits.give(count)

    def close(self) -> None:
        """Gives all back."""
        self.release(self.count)
