"""Addresses of PostgreSQL databases (DSN): what is one, and what of it may be shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stratagem.core.errors import StoreError

SCHEMES = ("postgresql", "postgres")


def is_dsn(where: str | Path) -> bool:
    """Whether a store's name is the address of a PostgreSQL database."""
    scheme, mark, _ = str(where).partition("://")
    return bool(mark) and scheme in SCHEMES


def shown(dsn: str, read: Callable[[str], Mapping[str, Any]], unreadable: type[Exception]) -> str:
    """``postgresql://host:port/database``, without user and password: for messages.

    Args:
        dsn: the address as libpq takes it.
        read: psycopg's ``conninfo_to_dict``; psycopg is optional, and whoever uses it has imported it.
        unreadable: what ``read`` raises.

    Raises:
        StoreError: it cannot be read; without the address, which holds the password.
    """
    try:
        parts = read(dsn)
    except unreadable:
        raise StoreError(
            "The address of the PostgreSQL store cannot be read.",
            remedy="Write it like postgresql://user:password@host:5432/database, special characters as %XX.",
        ) from None
    host, port = parts.get("host") or "localhost", parts.get("port") or 5432
    return f"postgresql://{host}:{port}/{parts.get('dbname') or ''}"
