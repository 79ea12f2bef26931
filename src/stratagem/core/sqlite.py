"""SQLite files that several connections, also of several processes, open at the same time."""

from __future__ import annotations

import sqlite3
from pathlib import Path

_TRIES = 20


def connect(path: str | Path, *, patience: float) -> sqlite3.Connection:
    """A connection of no thread, in autocommit, with the file's write-ahead log on. It blocks.

    Args:
        path: the file, made if missing.
        patience: seconds to wait while another connection writes.

    Raises:
        sqlite3.Error: the file cannot be opened, or stays locked.
    """
    database = sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)
    try:
        for rest in reversed(range(_TRIES)):
            try:
                database.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or not rest:
                    raise
            # The switch does not wait for others that make the same one. A transaction waits for them.
            database.execute("BEGIN IMMEDIATE")
            database.execute("COMMIT")
        # Without a sync per write: the log survives the process, not a power cut, and stays whole in both.
        database.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        database.close()
        raise
    return database
