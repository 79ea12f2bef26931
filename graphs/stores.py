"""Where runs are kept: in memory, in an SQLite file, or in PostgreSQL, as LangGraph checkpoints.

A store holds plain data. What is read back is never more than that: no pickle, no class that the checkpoint
names.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiosqlite
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from stratagem.core import postgres, sqlite
from stratagem.core.errors import ConfigurationError, MissingExtraError, StoreError


@dataclass(frozen=True, slots=True)
class Store:
    """An open store of checkpoints.

    ``path`` is the SQLite file and ``dsn`` the address of the PostgreSQL database, for whoever keeps more
    about the same runs there; both are ``None`` in memory. ``name`` is fit for messages: it has no password.
    """

    saver: BaseCheckpointSaver[Any]
    name: str
    errors: tuple[type[Exception], ...] = ()
    path: Path | None = None
    dsn: str | None = None

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turn what the database raises inside into one :class:`StoreError`."""
        try:
            yield
        except self.errors as error:
            raise _failed(self.name, error) from None


@asynccontextmanager
async def open_store(store: str | Path | None, *, patience: float = 30.0) -> AsyncIterator[Store]:
    """Open a store for the time of the block.

    Args:
        store: ``None`` for memory, the path of an SQLite file (made if missing), or ``postgresql://...``.
        patience: seconds to wait for a server, or for a file that another process has locked.

    Raises:
        StoreError: it cannot be reached, read or written.
        ConfigurationError: an address of another sort.
    """
    if store is None:
        yield Store(InMemorySaver(serde=_PlainData("in memory")), "in memory")
        return
    scheme, mark, _ = str(store).partition("://")
    if postgres.is_dsn(store):
        async with _postgres(str(store), patience) as opened:
            yield opened
    elif not mark:
        async with _sqlite(Path(store), patience) as opened:
            yield opened
    else:
        raise ConfigurationError(
            f"A store at {scheme}:// is not known.",
            remedy="Give the path of an SQLite file, or postgresql://user@host/database.",
        )


class _PlainData(JsonPlusSerializer):
    """LangGraph's serialiser without its ways to call what the data names."""

    def __init__(self, store: str) -> None:
        super().__init__(pickle_fallback=False, allowed_json_modules=None, allowed_msgpack_modules=None)
        self._store = store

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        if data[0] not in ("null", "bytes", "msgpack"):
            raise StoreError(
                f"The store {self._store} holds {data[0]!r} data, which is not read.",
                remedy="Stratagem did not write it: use another store.",
            )
        try:
            return super().loads_typed(data)
        except ValueError as error:
            raise damaged(self._store, str(error)) from None


def damaged(name: str, why: str) -> StoreError:
    """The error for a checkpoint that cannot be read as what it should be."""
    return StoreError(
        f"A checkpoint in the store {name} is damaged: {why}.",
        remedy="Restore the store from a copy, or use another one.",
    )


@asynccontextmanager
async def _sqlite(path: Path, patience: float) -> AsyncIterator[Store]:
    try:
        # aiosqlite's own way to open leaves, where that fails, a thread that outlives the event loop.
        opened = await asyncio.to_thread(sqlite.connect, path, patience=patience)
        opened.isolation_level = "DEFERRED"  # the saver commits what it writes itself
        async with aiosqlite.Connection(lambda: opened, iter_chunk_size=64) as connection:
            saver = AsyncSqliteSaver(connection, serde=_PlainData(str(path)))
            await saver.setup()
            yield Store(saver, str(path), (sqlite3.Error,), path=path)
    except sqlite3.Error as error:
        raise _failed(str(path), error) from None


@asynccontextmanager
async def _postgres(dsn: str, patience: float) -> AsyncIterator[Store]:
    try:
        import psycopg
        from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
        from psycopg.conninfo import conninfo_to_dict
        from psycopg.rows import DictRow, dict_row
    except ImportError as error:
        raise MissingExtraError("The PostgreSQL client", "postgres") from error
    name = postgres.shown(dsn, conninfo_to_dict, psycopg.ProgrammingError)
    try:
        async with await psycopg.AsyncConnection[DictRow].connect(
            dsn,
            autocommit=True,
            prepare_threshold=0,
            row_factory=dict_row,
            connect_timeout=max(2, round(patience)),
        ) as connection:
            saver = AsyncPostgresSaver(connection, serde=_PlainData(name))
            await _make_tables(saver, psycopg.Error)
            yield Store(saver, name, (psycopg.Error,), dsn=dsn)
    except psycopg.Error as error:
        raise _failed(name, error) from None


async def _make_tables(saver: Any, failure: type[Exception]) -> None:
    """Make what is missing; of processes that do so at the same time one may fail, and then finds it made."""
    try:
        await saver.setup()
    except failure:
        await saver.setup()


def _failed(name: str, error: Exception) -> StoreError:
    what = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if isinstance(error, sqlite3.Error):
        if "locked" in what:
            remedy = "Another process is writing there: wait for it, or use another file."
        elif "not a database" in what or "malformed" in what:
            remedy = "Restore the file from a copy, or use another one."
        else:
            remedy = "Check that its folder exists, its rights, and the space on the disk."
    else:
        remedy = "Check that the server runs, and user, password and database in the address."
    return StoreError(f"The store {name} failed: {what}.", remedy=remedy)
