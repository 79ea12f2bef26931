"""A table of texts in SQLite, off the event loop."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from stratagem.core.errors import StoreError

T = TypeVar("T")

_LOCKED_SECONDS = 30.0  # how long another process may hold the file
_MOST_VARIABLES = 500  # in one statement; SQLite's own limit is higher


class Database:
    """Texts by scope and key. One connection in one thread; opened at the first use, and again after a close.

    A write is in the operating system's hands when `put` returns (write-ahead log), so that it outlives a
    killed process.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._executor: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None

    async def get(self, scope: str, keys: Sequence[str]) -> dict[str, str]:
        """The texts of those keys that are there. Raises StoreError."""
        return await self._run(lambda db: _get(db, scope, keys))

    async def put(self, scope: str, rows: Mapping[str, str]) -> None:
        """Writes all rows or none. Raises StoreError."""
        await self._run(lambda db: _put(db, scope, rows))

    async def aclose(self) -> None:
        """Closes the file and ends the thread."""
        executor, self._executor = self._executor, None
        if executor is not None:
            await asyncio.get_running_loop().run_in_executor(executor, self._close)
            executor.shutdown()

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="stratagem-store")
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._work, work)

    def _work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._connection is None:
                self._connection = _open(self.path)
            return work(self._connection)
        except sqlite3.Error as error:
            remedy = "Check that the folder exists and is writable and that the file is one of Stratagem's."
            raise StoreError(f"The store {self.path} cannot be used: {error}.", remedy=remedy) from error

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _open(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_LOCKED_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        # Without a sync per write: the log survives the process, not a power cut, and stays whole in both.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS stratagem_calls"
            " (scope TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (scope, key)) WITHOUT ROWID"
        )
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _get(db: sqlite3.Connection, scope: str, keys: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for start in range(0, len(keys), _MOST_VARIABLES):
        part = keys[start : start + _MOST_VARIABLES]
        marks = ",".join("?" * len(part))
        query = f"SELECT key, value FROM stratagem_calls WHERE scope = ? AND key IN ({marks})"
        found.update(db.execute(query, (scope, *part)).fetchall())
    return found


def _put(db: sqlite3.Connection, scope: str, rows: Mapping[str, str]) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        db.executemany(
            "INSERT OR REPLACE INTO stratagem_calls VALUES (?, ?, ?)",
            [(scope, key, value) for key, value in rows.items()],
        )
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
