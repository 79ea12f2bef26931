"""What the servers behind backends count themselves: optional, for reports and for ``stratagem doctor``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, Self, runtime_checkable

from stratagem.core.backend import Backend
from stratagem.core.concurrency import task_group
from stratagem.core.errors import BackendError


class Counts(Protocol):
    """A server's counters at one time, of all its clients together."""

    def since(self, earlier: Self, /) -> Self:
        """What was counted after ``earlier``."""
        ...

    def figures(self) -> Mapping[str, float]:
        """For people: each figure by its name with its unit, without those that are not known."""
        ...


@runtime_checkable
class Counting(Protocol):
    """A backend that can tell what its servers have counted."""

    async def counts(self) -> Mapping[str, Counts]:
        """By the server's address, without what may be secret in it; empty where there is no server that counts.

        Raises:
            BackendError: a server that should tell does not.
        """
        ...


async def counts_of(backends: Iterable[Backend]) -> dict[str, Counts]:
    """Of all servers behind these backends; those that do not tell are left out."""
    async with task_group() as group:
        tasks = [group.create_task(_told(each)) for each in backends if isinstance(each, Counting)]
    return {where: counts for task in tasks for where, counts in task.result().items()}


async def _told(backend: Counting) -> Mapping[str, Counts]:
    try:
        return await backend.counts()
    except BackendError:
        return {}
