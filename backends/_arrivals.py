"""Completions that others draw, as one stream."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Self

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

    def __aiter__(self) -> Self:
        # No generator: one that is left halfway would be ended some turns of the loop later.
        return self

    async def __anext__(self) -> Chunk:
        if not self.open:
            raise StopAsyncIteration
        item = await self._queue.get()
        if isinstance(item, BaseException):
            raise item
        self.open -= item.completion is not None
        self.taken(item)
        return item


def spans(indices: Iterable[int]) -> list[range]:
    """Ascending numbers as unbroken ranges."""
    found: list[range] = []
    for index in indices:
        if found and found[-1].stop == index:
            found[-1] = range(found[-1].start, index + 1)
        else:
            found.append(range(index, index + 1))
    return found
