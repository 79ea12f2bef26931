"""What a run has spent in all its sittings, kept while it runs and held against a budget."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from pydantic import BaseModel, ConfigDict

from stratagem.core.budget import Budget, Ledger
from stratagem.core.errors import ConfigurationError
from stratagem.core.trace import CallFinished, Record


class Spent(BaseModel):
    """What a run has used up in all its sittings, in the terms of a budget; of one that was killed, up to its last
    finished call."""

    model_config = ConfigDict(frozen=True)

    tokens: int = 0  # the upper end, as budgets are charged
    calls: int = 0
    seconds: float = 0.0
    money: float = 0.0


class Sitting:
    """Keeps what a run has spent while it runs, so that a kill loses only what was under way.

    Written when a call has ended, off the run's way: what ends while that is written goes with the next.
    """

    def __init__(self, earlier: Spent, write: Callable[[Spent], Awaitable[None]]) -> None:
        self.earlier = earlier
        self.ledger = Ledger()  # of the run, once it has begun
        self._write = write
        self._clock = asyncio.get_running_loop().time
        self._started = self._clock()
        self._latest = earlier
        self._news = asyncio.Event()
        self._over = False

    def hear(self, record: Record) -> None:
        """Listens to the run's trace."""
        if isinstance(record.event, CallFinished):
            self._note()

    def _note(self) -> None:
        spent, earlier = self.ledger.spent, self.earlier
        self._latest = Spent(
            # What a journal gives back is what earlier sittings have paid, until it has all been given back.
            tokens=max(earlier.tokens, spent.tokens + spent.uncertain_tokens),
            calls=max(earlier.calls, spent.calls),
            money=max(earlier.money, spent.money),
            seconds=earlier.seconds + self._clock() - self._started,
        )
        self._news.set()

    async def _writing(self) -> None:
        while self._news.is_set() or not self._over:
            await self._news.wait()
            self._news.clear()
            await self._write(self._latest)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Keep it for the time of the block, to its very end unless this process is killed.

        Raises:
            StoreError: it could not be written; what the block raises goes before.
        """
        # Not to be cancelled in the middle of a write, which would leave the database in a transaction.
        writer = asyncio.ensure_future(self._writing())
        try:
            yield
        finally:
            self._over = True
            self._note()
            cancelled = await _outlasted(writer)
            failure = writer.exception()
        if cancelled:
            raise asyncio.CancelledError
        if failure is not None:
            raise failure


def affords(run_id: str, budget: Budget, spent: Spent) -> None:
    """Refuse a budget that a run is over already."""
    limits = budget.model_dump(exclude_none=True)
    over = [key for key, used in spent.model_dump().items() if limits.get(key, used) < used]
    if over:
        used = ", ".join(f"{key}={getattr(spent, key):.10g}" for key in over)
        given = ", ".join(f"{key}={limits[key]:.10g}" for key in over)
        raise ConfigurationError(
            f"Run {run_id!r} has spent {used} already, more than the budget {given}.",
            remedy="A budget is for all sittings of a run: give a larger one.",
        )


def roomier(new: Budget, old: Budget) -> bool:
    """Whether some limit has been raised."""
    limits = new.model_dump()
    return any(
        limits[key] is None or limits[key] > limit for key, limit in old.model_dump(exclude_none=True).items()
    )


async def _outlasted(task: asyncio.Future[None]) -> bool:
    """Wait for the task's end, whatever happens to this one; whether it was cancelled meanwhile."""
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    return cancelled
