"""A stream that tells of what ends in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from stratagem.core.backend import Chunk, Completion, Stream
from stratagem.core.usage import Usage


class Told:
    """The same stream; ``arrived`` hears of each completion before who reads the stream gets it."""

    def __init__(self, stream: Stream, arrived: Callable[[Completion], None]) -> None:
        self._stream = stream
        self._arrived = arrived

    @property
    def usage(self) -> Usage:
        """Spent so far."""
        return self._stream.usage

    @property
    def replayed(self) -> bool:
        """Whether a journal or cache answers."""
        return self._stream.replayed

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        async for chunk in self._stream:
            if chunk.completion is not None:
                self._arrived(chunk.completion)
            yield chunk
