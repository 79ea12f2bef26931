"""Addresses of PostgreSQL stores: which are some, and that messages name them alike and without the password."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from stratagem.backends._replay.database import database_at
from stratagem.core.errors import StoreError
from stratagem.core.postgres import is_dsn, shown
from stratagem.graphs.stores import open_store

psycopg = pytest.importorskip("psycopg")


def test_which_are_some() -> None:
    assert is_dsn("postgresql://host/db")
    assert is_dsn("postgres://")
    for other in (
        "runs.sqlite",
        Path("postgresql"),
        "postgresql:/host",
        "mysql://host/db",
        "my/postgresql://",
    ):
        assert not is_dsn(other)


@pytest.mark.parametrize(
    ("dsn", "name"),
    [
        ("postgresql://me:secret@db.example:6543/runs", "postgresql://db.example:6543/runs"),
        ("postgres://me:secret@db.example/runs", "postgresql://db.example:5432/runs"),
        ("postgresql:///runs?password=secret", "postgresql://localhost:5432/runs"),
        ("postgresql://", "postgresql://localhost:5432/"),
        ("postgresql://db.example/runs?user=me&password=secret", "postgresql://db.example:5432/runs"),
    ],
)
def test_what_is_shown(dsn: str, name: str) -> None:
    assert shown(dsn, psycopg.conninfo.conninfo_to_dict, psycopg.ProgrammingError) == name


async def _journal(dsn: str) -> None:
    database = database_at(dsn)
    try:
        await database.get("run", ["key"])
    finally:
        await database.aclose()


async def _checkpoints(dsn: str) -> None:
    async with open_store(dsn, patience=2.0):
        pass


@pytest.mark.parametrize("opened", [_journal, _checkpoints])
@pytest.mark.parametrize(
    ("dsn", "said"),
    [
        ("postgresql://me:secret@127.0.0.1:1/db", "postgresql://127.0.0.1:1/db"),
        ("postgresql://me:secret@127.0.0.1/db?color=red", "address of the PostgreSQL store cannot be read"),
    ],
)
def test_both_stores_of_a_run_say_the_same(
    opened: Callable[[str], Coroutine[Any, Any, None]], dsn: str, said: str
) -> None:
    with pytest.raises(StoreError) as caught:
        asyncio.run(opened(dsn))
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
