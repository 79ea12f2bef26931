"""Completions that others draw, as one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from stratagem.core.backend import Chunk
from stratagem.core.errors import root_cause


class Arrivals:
    """The chunks of n completions in the order in which they are handed on, until the last has ended."""

    def __init__(self, n: int) -> None:
        self._queue: asyncio.Queue[Chunk | BaseException] = asyncio.Queue()
        self.open = n  # completions whose last chunk has not been taken

    def give(self, chunk: Chunk) -> None:
        """Hands on a chunk."""
        self._queue.put_nowait(chunk)

    def ended(self, drawing: asyncio.Future[None]) -> None:
        """A done-callback for whoever draws: its error is raised where the chunks are taken."""
        if not drawing.cancelled() and (error := drawing.exception()) is not None:
            self._queue.put_nowait(root_cause(error))

    def taken(self, chunk: Chunk) -> None:
        """Is called with each chunk right before it is given away."""

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        while self.open:
            item = await self._queue.get()
            if isinstance(item, BaseException):
                raise item
            self.open -= item.completion is not None
            self.taken(item)
            yield item


def spans(indices: Iterable[int]) -> list[range]:
    """Ascending numbers as unbroken ranges."""
    found: list[range] = []
    for index in indices:
        if found and found[-1].stop == index:
            found[-1] = range(found[-1].start, index + 1)
        else:
            found.append(range(index, index + 1))
    return found
