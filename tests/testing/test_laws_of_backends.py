"""Every law of backends can be broken: one offender for each, caught by the law that names it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from laws_kit import broken
from stratagem.core.backend import (
    Capabilities,
    Completion,
    Generation,
    Request,
    ScoreRequest,
    Scoring,
)
from stratagem.core.usage import Meter, Usage
from stratagem.testing import laws
from stratagem.testing.toy import Books, ToyModel, ToyStream

_numbers = itertools.count()


# -- backends ------------------------------------------------------------------------------------------


def check_backend(make: Callable[[], ToyModel]) -> None:
    def idle(backend: Any) -> bool:
        books: Books = backend.books
        return books.in_flight == 0 and books.permits == 0

    def usage(backend: Any) -> Usage:
        books: Books = backend.books
        return books.usage

    laws.backend(make, idle=idle, usage=usage)


def test_lawful_backends_pass() -> None:
    check_backend(ToyModel)
    check_backend(lambda: ToyModel(permits=1))
    laws.backend(ToyModel)


class _Changed(ToyModel):
    """Changes what generate gives."""

    def change(self, completions: tuple[Completion, ...]) -> tuple[Completion, ...]:
        raise NotImplementedError

    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        generation = await super().generate(request, meter)
        return replace(generation, completions=self.change(generation.completions))


class Reversed(_Changed):
    def change(self, completions: tuple[Completion, ...]) -> tuple[Completion, ...]:
        return completions[::-1]


class Shouting(_Changed):
    def change(self, completions: tuple[Completion, ...]) -> tuple[Completion, ...]:
        return tuple(replace(c, text=c.text.upper()) for c in completions)


class Optimistic(_Changed):
    def change(self, completions: tuple[Completion, ...]) -> tuple[Completion, ...]:
        return tuple(
            replace(c, tokens=tuple(replace(t, logprob=t.logprob + 1) for t in c.tokens)) for c in completions
        )


class SameSeed(ToyModel):
    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        meter = meter or Meter()
        parts = [await super(SameSeed, self).generate(request.sibling(0), meter) for _ in range(request.n)]
        found = tuple(replace(p.completions[0], index=i) for i, p in enumerate(parts))
        return Generation(found, meter.usage)


class SendsEach(ToyModel):
    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        meter = meter or Meter()
        parts = [await super(SendsEach, self).generate(request.sibling(i), meter) for i in range(request.n)]
        found = tuple(replace(p.completions[0], index=i) for i, p in enumerate(parts))
        return Generation(found, meter.usage)


class Unseeded(ToyModel):
    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        return await super().generate(replace(request, seed=None), meter)


class BillsTwice(ToyModel):
    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        generation = await super().generate(request, meter)
        if meter is not None:
            meter.add(generation.usage)
        return generation


class ForgetsTheCancelled(ToyModel):
    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        generation = await super().generate(request)
        if meter is not None:
            meter.add(generation.usage)
        return generation


class GoesOn(ToyModel):
    @asynccontextmanager
    async def stream(
        self, request: Request, meter: Meter | None = None, *, deltas: bool = True
    ) -> AsyncIterator[ToyStream]:
        async with super().stream(request, meter, deltas=deltas) as stream:
            yield stream
            async for _ in stream:
                pass


class KeepsPermits(ToyModel):
    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        try:
            return await super().generate(request, meter)
        except asyncio.CancelledError:
            self.books.permits += 1
            raise


class LosesADelta(ToyModel):
    @asynccontextmanager
    async def stream(
        self, request: Request, meter: Meter | None = None, *, deltas: bool = True
    ) -> AsyncIterator[ToyStream]:
        async with super().stream(request, meter, deltas=deltas) as stream:
            if deltas:
                await anext(stream)
            yield stream


class IgnoresStops(ToyModel):
    @asynccontextmanager
    async def stream(
        self, request: Request, meter: Meter | None = None, *, deltas: bool = True
    ) -> AsyncIterator[ToyStream]:
        async with super().stream(replace(request, stop=()), meter, deltas=deltas) as stream:
            yield stream


class IgnoresConstraints(ToyModel):
    @asynccontextmanager
    async def stream(
        self, request: Request, meter: Meter | None = None, *, deltas: bool = True
    ) -> AsyncIterator[ToyStream]:
        async with super().stream(replace(request, constraint=None), meter, deltas=deltas) as stream:
            yield stream


class ScoresByLength(ToyModel):
    async def score(self, request: ScoreRequest, meter: Meter | None = None) -> Scoring:
        scoring = await super().score(request, meter)
        return replace(
            scoring,
            scores=tuple(tuple(replace(t, logprob=-float(len(t.token))) for t in s) for s in scoring.scores),
        )


class Miscounts(ToyModel):
    def prompt_tokens(self, prompt: Any) -> int:
        return super().prompt_tokens(prompt) + next(_numbers)


class Forgetful(ToyModel):
    async def capabilities(self) -> Capabilities:
        return replace(await super().capabilities(), version=str(next(_numbers)))


class OneLoop(ToyModel):
    _loop: asyncio.AbstractEventLoop | None = None

    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        self._loop = self._loop or asyncio.get_running_loop()
        if self._loop is not asyncio.get_running_loop():
            request = replace(request, seed=next(_numbers))
        return await super().generate(request, meter)


class OneAtATime(ToyModel):
    """Answers wrongly when it is asked several things at once."""

    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        if self.books.in_flight > 3:
            request = replace(request, seed=0)
        return await super().generate(request, meter)


@pytest.mark.parametrize(
    ("law", "kind"),
    [
        ("it knows its name and what it can do", Forgetful),
        ("prompts are counted", Miscounts),
        ("n completions, in order of index", Reversed),
        ("completion i is drawn with seed + i", SameSeed),
        ("one call is one call", SendsEach),
        ("completion i is drawn with seed + i", Unseeded),
        ("what is spent is metered exactly once", BillsTwice),
        ("a stream gives what generate gives", Shouting),
        ("deltas join to the text", LosesADelta),
        ("max_tokens and stop strings are kept", IgnoresStops),
        ("log-probabilities are the model's, best first", Optimistic),
        ("scores are the log-probabilities of generation", ScoresByLength),
        ("a constraint is kept", IgnoresConstraints),
        ("leaving the block stops decoding", GoesOn),
        ("at the same time as one by one", OneAtATime),
        ("what is spent is metered exactly once", ForgetsTheCancelled),
        ("leaves nothing behind", KeepsPermits),
        ("used from a second event loop", OneLoop),
    ],
)
def test_a_backend_that_breaks(law: str, kind: type[ToyModel]) -> None:
    broken(law, lambda: check_backend(kind))
