"""A backend that keeps the finished calls of a run, so that a killed run pays for none of them twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from stratagem.backends._replay.database import Database, database_at
from stratagem.backends._replay.replaying import Replaying
from stratagem.core.backend import Backend


class Journal:
    """An SQLite file, or a PostgreSQL database by its DSN, with the finished calls of any number of runs.

    Many backends may share it.
    """

    def __init__(self, where: str | Path) -> None:
        self.database = database_at(where)

    def of(self, run_id: str) -> KeptCalls:
        """The finished calls of a run, for what keeps others than a model's (see
        :class:`stratagem.core.kept.Kept`)."""
        return KeptCalls(self.database, run_id)

    async def aclose(self) -> None:
        """Closes it; it is opened again when used."""
        await self.database.aclose()


class KeptCalls:
    """One run's part of a journal."""

    def __init__(self, database: Database, run_id: str) -> None:
        self._database = database
        self._run_id = run_id

    async def recall(self, keys: Sequence[str]) -> Mapping[str, str]:
        """Raises StoreError."""
        return await self._database.get(self._run_id, keys)

    async def remember(self, rows: Mapping[str, str]) -> None:
        """Raises StoreError."""
        await self._database.put(self._run_id, rows)


class Journaled(Replaying):
    """Replays what the run `run_id` has finished before, and journals what it finishes now.

    Calls are told apart by their content and their seed: a run that derives the same seeds again, as
    `stratagem.core.run.Run` does, finds them whatever their order and grouping. The replayed calls report what
    they cost when they were made, so that budgets hold across a kill.

    Args:
        inner: the backend that is asked for the rest.
        journal: where they are kept, as a `Journal` to share or as its path or DSN. Closing the backend closes
            only a journal of its own.
        run_id: the run.
    """

    def __init__(self, inner: Backend, journal: Journal | str | Path, run_id: str) -> None:
        super().__init__(inner)
        self._shared = isinstance(journal, Journal)
        self._journal = journal if isinstance(journal, Journal) else Journal(journal)
        self._kept = self._journal.of(run_id)

    async def recall(self, keys: Sequence[str]) -> Mapping[str, str]:
        """Raises StoreError."""
        return await self._kept.recall(keys)

    async def remember(self, rows: Mapping[str, str]) -> None:
        """Raises StoreError."""
        await self._kept.remember(rows)

    async def aclose(self) -> None:
        """Closes the wrapped backend, and the journal unless it is shared."""
        await super().aclose()
        if not self._shared:
            await self._journal.aclose()
