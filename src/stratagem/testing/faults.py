"""Backends that fail on purpose."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Self

from stratagem.core.backend import (
    Backend,
    Capabilities,
    Chunk,
    Generation,
    Message,
    Request,
    ScoreRequest,
    Scoring,
    Stream,
)
from stratagem.core.errors import BackendError
from stratagem.core.usage import Meter, Usage


def broken() -> BackendError:
    """The error that a :class:`Failing` backend raises unless told otherwise."""
    return BackendError("The model broke down.", remedy="A test asked it to.")


class Failing:
    """A backend whose calls number ``at`` (from 1) fail, generations after ``after`` chunks have come.

    What the backend inside decoded until then is billed, as it is when a connection drops.
    """

    def __init__(
        self,
        backend: Backend,
        at: Collection[int],
        *,
        after: int = 0,
        error: Callable[[], Exception] = broken,
    ) -> None:
        self._backend, self._at, self._after, self._error = backend, at, after, error
        self.calls = 0

    @property
    def name(self) -> str:
        """That of the backend inside."""
        return self._backend.name

    async def capabilities(self) -> Capabilities:
        """Those of the backend inside."""
        return await self._backend.capabilities()

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        """As the backend inside."""
        return await self._backend.count_tokens(messages)

    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        """As the backend inside, or the failure."""
        if self._fails():
            async with self._backend.stream(request, meter) as stream:
                async for _ in _Breaking(stream, self._after, self._error):
                    pass
        return await self._backend.generate(request, meter)

    @asynccontextmanager
    async def stream(
        self, request: Request, meter: Meter | None = None, *, deltas: bool = True
    ) -> AsyncIterator[Stream]:
        """As the backend inside, or the failure."""
        fails = self._fails()
        async with self._backend.stream(request, meter, deltas=deltas) as stream:
            yield _Breaking(stream, self._after, self._error) if fails else stream

    async def score(self, request: ScoreRequest, meter: Meter | None = None) -> Scoring:
        """As the backend inside, or the failure before anything is sent."""
        if self._fails():
            raise self._error()
        return await self._backend.score(request, meter)

    async def aclose(self) -> None:
        """Close the backend inside."""
        await self._backend.aclose()

    def _fails(self) -> bool:
        self.calls += 1
        return self.calls in self._at


class _Breaking:
    """A stream that fails after some chunks, or where it would have ended."""

    def __init__(self, stream: Stream, after: int, error: Callable[[], Exception]) -> None:
        self._stream, self._left, self._error = stream, after, error
        self._chunks = aiter(stream)

    @property
    def usage(self) -> Usage:
        return self._stream.usage

    @property
    def replayed(self) -> bool:
        return self._stream.replayed

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        chunk = await anext(self._chunks, None) if self._left > 0 else None
        if chunk is None:
            raise self._error()
        self._left -= 1
        return chunk
