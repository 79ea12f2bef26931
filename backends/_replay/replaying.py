"""A backend that answers what it remembers from memory, and remembers what it had to ask."""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from stratagem.backends._arrivals import Arrivals, spans
from stratagem.backends._replay.codec import (
    dump_completion,
    dump_scores,
    load_completion,
    load_scores,
    minus,
)
from stratagem.backends._tasks import stopped
from stratagem.core.backend import (
    Backend,
    Capabilities,
    Chunk,
    Completion,
    Generation,
    Message,
    Request,
    ScoreRequest,
    Scoring,
    Stream,
)
from stratagem.core.counts import Counts, counts_of
from stratagem.core.usage import Meter, Usage

_Found = dict[int, tuple[Completion, Usage]]


@dataclass(frozen=True, slots=True)
class _Key:
    """Where a completion is remembered: by all of its request but `max_tokens`, unless that cut it short."""

    ended: str
    max_tokens: int

    @property
    def cut(self) -> str:
        return f"{self.ended}/{self.max_tokens}"

    def of(self, completion: Completion) -> str:
        return self.ended if completion.finish == "stop" else self.cut


class Replaying(ABC):
    """Remembers each completion by the content of its request, seed included, whatever its siblings are.

    A completion is remembered before it is handed on. What is replayed is metered with what it cost then, as it
    is handed on. A request that is drawn at random (no seed, temperature not 0) always goes to the backend. One
    that ended by itself is what any `max_tokens` that holds it would have given: a run that went short of budget
    finds it again under a larger one.
    """

    def __init__(self, inner: Backend) -> None:
        self.inner = inner

    @abstractmethod
    async def recall(self, keys: Sequence[str]) -> Mapping[str, str]:
        """The values of those keys that are remembered."""

    @abstractmethod
    async def remember(self, rows: Mapping[str, str]) -> None:
        """Keeps the rows: when this returns they are safe."""

    @property
    def name(self) -> str:
        """The wrapped backend's."""
        return self.inner.name

    async def capabilities(self) -> Capabilities:
        """The wrapped backend's; but what is not remembered may be asked for in several calls."""
        return replace(await self.inner.capabilities(), one_call=False)

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        """The wrapped backend's."""
        return await self.inner.count_tokens(messages)

    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        """All completions; only those that are not remembered are asked for."""
        if not _repeatable(request):
            return await self.inner.generate(request, meter)
        meter = meter or Meter()
        keys = await self._keys(request)
        found = await self._found(keys)
        if not found and request.n == 1:
            generation = await self.inner.generate(request, meter)
            done = generation.completions[0]
            await self.remember({keys[0].of(done): dump_completion(done, generation.usage)})
            return generation
        # As a stream, each completion is remembered when it has ended and not when its slowest sibling has.
        async with self._streaming(request, meter, keys, found, deltas=False) as stream:
            drawn = {c.index: c.completion async for c in stream if c.completion is not None}
        return Generation(tuple(drawn[i] for i in range(request.n)), stream.usage, stream.replayed)

    @asynccontextmanager
    async def stream(
        self, request: Request, meter: Meter | None = None, *, deltas: bool = True
    ) -> AsyncIterator[Stream]:
        """What is remembered comes first and whole, the rest as it is decoded."""
        if not _repeatable(request):
            async with self.inner.stream(request, meter, deltas=deltas) as stream:
                yield stream
            return
        keys = await self._keys(request)
        found = await self._found(keys)
        async with self._streaming(request, meter or Meter(), keys, found, deltas=deltas) as merged:
            yield merged

    async def score(self, request: ScoreRequest, meter: Meter | None = None) -> Scoring:
        """Remembered as a whole."""
        key = f"{await self._identity()}/{request.key()}"
        text = (await self.recall([key])).get(key)
        if text is not None:
            scores, usage = load_scores(text)
            if meter is not None:
                meter.add(usage)
            return Scoring(scores, usage, replayed=True)
        scoring = await self.inner.score(request, meter)
        await self.remember({key: dump_scores(scoring.scores, scoring.usage)})
        return scoring

    async def counts(self) -> dict[str, Counts]:
        """Of the servers behind the wrapped backend."""
        return await counts_of([self.inner])

    async def aclose(self) -> None:
        """Closes the wrapped backend."""
        await self.inner.aclose()

    async def _identity(self) -> str:
        """Of the model that answers: the endpoint may serve another one tomorrow."""
        model = (await self.capabilities()).model
        return hashlib.sha256(f"{self.name}\x00{model}".encode()).hexdigest()[:16]

    async def _keys(self, request: Request) -> list[_Key]:
        identity = await self._identity()
        shared = [replace(request.sibling(i), max_tokens=0).key() for i in range(request.n)]
        return [_Key(f"{identity}/{key}", request.max_tokens) for key in shared]

    async def _found(self, keys: Sequence[_Key]) -> _Found:
        texts = await self.recall([text for key in keys for text in (key.ended, key.cut)])
        found: _Found = {}
        for i, key in enumerate(keys):
            text = texts.get(key.cut, texts.get(key.ended))
            if text is not None:
                completion, usage = load_completion(text, i)
                if completion.token_count <= key.max_tokens:
                    found[i] = (completion, usage)
        return found

    @asynccontextmanager
    async def _streaming(
        self, request: Request, meter: Meter, keys: Sequence[_Key], found: _Found, *, deltas: bool
    ) -> AsyncIterator[_Merged]:
        merged = _Merged(request.n, found, meter)
        readers = [
            asyncio.ensure_future(
                self._read(merged, request, gap.start, keys[gap.start : gap.stop], meter, deltas)
            )
            for gap in spans(i for i in range(request.n) if i not in found)
        ]
        for reader in readers:
            reader.add_done_callback(merged.ended)
        try:
            yield merged
            if not merged.open and readers:
                await asyncio.wait(readers)
        finally:
            await stopped(*readers)

    async def _read(
        self,
        merged: _Merged,
        request: Request,
        start: int,
        keys: Sequence[_Key],
        meter: Meter,
        deltas: bool,
    ) -> None:
        """Asks for consecutive completions and hands them on, each finished one when it is remembered."""
        part = replace(request.sibling(start), n=len(keys))
        remembered = Usage()
        last: tuple[str, Completion, Usage] | None = None
        async with self.inner.stream(part, meter, deltas=deltas) as stream:
            merged.parts.append(stream)
            async for chunk in stream:
                index = start + chunk.index
                done = chunk.completion
                if done is not None:
                    done = replace(done, index=index)
                    # What has been spent since the last one, so that the rows sum up to the whole.
                    spent = minus(stream.usage, remembered)
                    remembered = remembered + spent
                    last = (keys[chunk.index].of(done), done, spent)
                    await self.remember({last[0]: dump_completion(done, spent)})
                merged.give(replace(chunk, index=index, completion=done))
        rest = minus(stream.usage, remembered)
        if last is not None and rest != Usage():
            key, done, spent = last
            await self.remember({key: dump_completion(done, spent + rest)})


class _Merged(Arrivals):
    """Remembered completions, then those of several streams as they come."""

    def __init__(self, n: int, found: _Found, meter: Meter) -> None:
        super().__init__(n)
        self.replayed = len(found) == n
        self._found = found
        self._meter = meter
        self._recalled = Usage()
        self.parts: list[Stream] = []
        for completion, _ in found.values():
            self.give(Chunk(completion.index, completion.text, completion.tokens, completion))

    @property
    def usage(self) -> Usage:
        return sum((part.usage for part in self.parts), self._recalled)

    def taken(self, chunk: Chunk) -> None:
        if chunk.index in self._found:
            usage = self._found[chunk.index][1]
            self._recalled = self._recalled + usage
            self._meter.add(usage)


def _repeatable(request: Request) -> bool:
    return request.seed is not None or request.temperature == 0
