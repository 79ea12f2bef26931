"""A table of texts in SQLite or PostgreSQL, off the event loop."""

from __future__ import annotations

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from stratagem.core import postgres, sqlite
from stratagem.core.errors import MissingExtraError, StoreError

T = TypeVar("T")

_LOCKED_SECONDS = 30.0  # how long another process may hold the file
_MOST_VARIABLES = 500  # in one statement; SQLite's own limit is higher
_TABLE = (
    "CREATE TABLE IF NOT EXISTS stratagem_calls"
    " (scope TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (scope, key))"
)


class Database(ABC):
    """Texts by scope and key. One connection in one thread; opened at the first use, and again after a close."""

    name: str  # for messages: without a password

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._connection: Any = None

    async def get(self, scope: str, keys: Sequence[str]) -> dict[str, str]:
        """The texts of those keys that are there. Raises StoreError."""
        return await self._run(lambda db: self._get(db, scope, keys))

    async def put(self, scope: str, rows: Mapping[str, str]) -> None:
        """Writes all rows or none; they outlive this process. Raises StoreError."""
        # A caller that is cancelled does not take back what is paid for and waits for its turn to be written.
        await asyncio.shield(self._run(lambda db: self._put(db, scope, rows)))

    async def aclose(self) -> None:
        """Closes the connection and ends the thread."""
        executor, self._executor = self._executor, None
        if executor is not None:
            await asyncio.get_running_loop().run_in_executor(executor, self._close)
            executor.shutdown()

    def _run(self, work: Callable[[Any], T]) -> asyncio.Future[T]:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="stratagem-store")
        return asyncio.get_running_loop().run_in_executor(self._executor, self._work, work)

    def _work(self, work: Callable[[Any], T]) -> T:
        try:
            if self._connection is None:
                self._connection = self._open()
            return work(self._connection)
        except self._errors() as error:
            raise StoreError(
                f"The store {self.name} cannot be used: {str(error).strip()}.", remedy=self._remedy
            ) from None

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    _remedy: ClassVar[str]

    @abstractmethod
    def _errors(self) -> tuple[type[Exception], ...]: ...

    @abstractmethod
    def _open(self) -> Any: ...

    @abstractmethod
    def _get(self, db: Any, scope: str, keys: Sequence[str]) -> dict[str, str]: ...

    @abstractmethod
    def _put(self, db: Any, scope: str, rows: Mapping[str, str]) -> None: ...


def database_at(where: str | Path) -> Database:
    """An SQLite file, or a PostgreSQL database by its DSN."""
    return Postgres(str(where)) if postgres.is_dsn(where) else Sqlite(where)


class Sqlite(Database):
    """A table in an SQLite file. The write-ahead log keeps a finished write across a killed process."""

    _remedy = "Check that the folder exists and is writable and that the file is one of Stratagem's."

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.name = str(path)

    def _errors(self) -> tuple[type[Exception], ...]:
        return (sqlite3.Error,)

    def _open(self) -> sqlite3.Connection:
        db = sqlite.connect(self.name, patience=_LOCKED_SECONDS)
        try:
            db.execute(_TABLE + " WITHOUT ROWID")
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _get(self, db: sqlite3.Connection, scope: str, keys: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for start in range(0, len(keys), _MOST_VARIABLES):
            part = keys[start : start + _MOST_VARIABLES]
            marks = ",".join("?" * len(part))
            query = f"SELECT key, value FROM stratagem_calls WHERE scope = ? AND key IN ({marks})"
            found.update(db.execute(query, (scope, *part)).fetchall())
        return found

    def _put(self, db: sqlite3.Connection, scope: str, rows: Mapping[str, str]) -> None:
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


class Postgres(Database):
    """The same table in a PostgreSQL database (extra ``postgres``)."""

    _remedy = "Check that the server runs, and user, password and database in its address."

    def __init__(self, dsn: str) -> None:
        super().__init__()
        self._dsn = dsn
        self.name = "in PostgreSQL"  # until its address has been read

    def _errors(self) -> tuple[type[Exception], ...]:
        return (_psycopg().Error,)

    def _open(self) -> Any:
        psycopg = _psycopg()
        self.name = postgres.shown(self._dsn, psycopg.conninfo.conninfo_to_dict, psycopg.ProgrammingError)
        db = psycopg.connect(self._dsn, autocommit=True, connect_timeout=round(_LOCKED_SECONDS))
        # Of processes that make the table at the same time all but one would fail.
        with db.transaction():
            db.execute("SELECT pg_advisory_xact_lock(7238)")
            db.execute(_TABLE)
        return db

    def _get(self, db: Any, scope: str, keys: Sequence[str]) -> dict[str, str]:
        query = "SELECT key, value FROM stratagem_calls WHERE scope = %s AND key = ANY(%s)"
        return dict(db.execute(query, (scope, list(keys))).fetchall())

    def _put(self, db: Any, scope: str, rows: Mapping[str, str]) -> None:
        with db.transaction(), db.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO stratagem_calls VALUES (%s, %s, %s)"
                " ON CONFLICT (scope, key) DO UPDATE SET value = excluded.value",
                [(scope, key, value) for key, value in rows.items()],
            )


def _psycopg() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise MissingExtraError("The PostgreSQL client", "postgres") from error
    return psycopg
