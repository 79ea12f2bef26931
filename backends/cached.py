"""A backend that asks no model the same thing twice: content-addressed, in memory or in a SQLite file."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

from stratagem.backends._replay.database import Sqlite
from stratagem.backends._replay.replaying import Replaying
from stratagem.core.backend import Backend

_SCOPE = "cache"


class Cached(Replaying):
    """Answers a request that was answered before, by any run, from the cache.

    The address is the model's identity and all that decides a completion, seed included. Replayed calls report
    what they cost when they were made, and say that they are replayed.

    Args:
        inner: the backend that is asked for the rest.
        path: a SQLite file that outlives the process; without one the cache is in memory.
        entries: the most completions kept in memory; the longest unused goes first.
    """

    def __init__(self, inner: Backend, path: str | Path | None = None, *, entries: int = 100_000) -> None:
        super().__init__(inner)
        self._database = Sqlite(path) if path is not None else None
        self._memory: OrderedDict[str, str] = OrderedDict()
        self._entries = entries

    async def recall(self, keys: Sequence[str]) -> Mapping[str, str]:
        """Raises StoreError."""
        if self._database is not None:
            return await self._database.get(_SCOPE, keys)
        found = {key: self._memory[key] for key in keys if key in self._memory}
        for key in found:
            self._memory.move_to_end(key)
        return found

    async def remember(self, rows: Mapping[str, str]) -> None:
        """Raises StoreError."""
        if self._database is not None:
            await self._database.put(_SCOPE, rows)
            return
        self._memory.update(rows)
        while len(self._memory) > self._entries:
            self._memory.popitem(last=False)

    async def aclose(self) -> None:
        """Closes the wrapped backend and the file; what is in memory stays."""
        await super().aclose()
        if self._database is not None:
            await self._database.aclose()
