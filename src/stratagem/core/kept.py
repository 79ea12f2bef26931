"""Where a run keeps what it has finished; the stores are in ``stratagem.backends``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class Kept(Protocol):
    """Texts by key, of one run."""

    async def recall(self, keys: Sequence[str]) -> Mapping[str, str]:
        """Those that are there. Raises StoreError."""
        ...

    async def remember(self, rows: Mapping[str, str]) -> None:
        """Write all or none, in place of what was there; they outlive this process. Raises StoreError."""
        ...


class InMemory:
    """Keeps what a process needs again before it ends."""

    def __init__(self) -> None:
        self._rows: dict[str, str] = {}

    async def recall(self, keys: Sequence[str]) -> Mapping[str, str]:
        """Those that are there."""
        return {key: self._rows[key] for key in keys if key in self._rows}

    async def remember(self, rows: Mapping[str, str]) -> None:
        """In place of what was there."""
        self._rows |= rows
