"""Several endpoints of one model behind one backend: least loaded first, siblings together, failover.

A conversation goes where its beginning went before, so that siblings, continued steps and judgements find their
prefix in that endpoint's cache, unless it is more than twice as busy as the idlest and has much to do. An endpoint
that failed rests, twice as long each time, and is tried again by the first call after that.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from stratagem.backends._arrivals import Arrivals, spans
from stratagem.backends._tasks import stopped
from stratagem.core.backend import (
    Backend,
    Capabilities,
    Generation,
    Message,
    Request,
    ScoreRequest,
    Scoring,
    Stream,
)
from stratagem.core.concurrency import task_group
from stratagem.core.counts import Counts, counts_of
from stratagem.core.errors import BackendError, BudgetExhausted, ConfigurationError, RejectedError
from stratagem.core.trace import Retried, emit
from stratagem.core.usage import Meter, Usage

T = TypeVar("T")

_REMEMBERED_HOMES = 4096
_LONGEST_REST = 60.0  # seconds
_DOUBLINGS = 60  # of a rest, which is longer than any by then
_MUCH = 8192  # tokens under way at an endpoint, below which moving away would gain nothing
_BYTES_PER_TOKEN = 4  # a rough measure of load, not of cost


@dataclass(slots=True)
class _Member:
    """An endpoint: what it is busy with, and how it has been."""

    backend: Backend
    tokens: int = 0  # asked of it and not yet finished, at most
    failures: int = 0  # in a row
    rested: float = 0.0  # when its rest was last set
    rests_until: float = 0.0
    caps: Capabilities | None = None

    @contextmanager
    def busy(self, tokens: int) -> Iterator[None]:
        self.tokens += tokens
        try:
            yield
        finally:
            self.tokens -= tokens

    def failed(self, rest: float, began: float) -> None:
        """A call that began at that time has failed: of those under way at the same time one counts."""
        if began < self.rested:
            return
        self.failures += 1
        self.rested = time.monotonic()
        self.rests_until = self.rested + min(_LONGEST_REST, rest * 2.0 ** min(self.failures - 1, _DOUBLINGS))
        self.caps = None  # what comes back may be another server

    def worked(self) -> None:
        self.failures, self.rests_until = 0, 0.0


class Pooled:
    """Endpoints that serve the same model.

    Each member limits its own concurrency and resends as it was made to; give members few `retries`, since
    another endpoint is the better second attempt. What a failed endpoint may have billed stays in the usage, and
    is sent elsewhere only if the budget holds it. A stream whose pieces were already given out is not begun anew.

    Args:
        backends: at least one; all must serve the same model.
        name: the identity of the model, which journals and caches remember. It does not name the endpoints, so
            that a run goes on with other ones.
        rest: seconds for which an endpoint is left alone after its first failure.

    Raises:
        ConfigurationError: no backends, or (at the first call) they serve different models.
    """

    def __init__(self, backends: Sequence[Backend], *, name: str, rest: float = 1.0) -> None:
        if not backends:
            raise ConfigurationError("A pool needs at least one backend.", remedy="Give the servers' URLs.")
        self._members = [_Member(backend) for backend in backends]
        self._name = name
        self._rest = rest
        self._homes: OrderedDict[tuple[Message, ...], _Member] = OrderedDict()

    @property
    def name(self) -> str:
        """The name that was given."""
        return self._name

    async def capabilities(self) -> Capabilities:
        """What all endpoints that answer can do.

        Raises:
            UnavailableError: none answers.
            ConfigurationError: they serve different models.
        """
        now = time.monotonic()
        asked = [m for m in self._members if m.caps is None and m.rests_until <= now]
        if asked or not any(m.caps for m in self._members):
            async with task_group() as group:
                results = [group.create_task(self._ask(member)) for member in asked or self._members]
            errors = [error for result in results if (error := result.result()) is not None]
            if errors and not any(m.caps for m in self._members):
                raise errors[0]
        return _common([m.caps for m in self._members if m.caps is not None])

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        """By the endpoint that this conversation goes to."""
        return await self._somewhere(
            tuple(messages), 0, lambda backend, _: backend.count_tokens(messages), _Bill(None)
        )

    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        """All completions, from one endpoint."""
        bill = _Bill(meter)
        generation = await self._somewhere(
            request.messages, _load(request), lambda backend, part: backend.generate(request, part), bill
        )
        return replace(generation, usage=bill.total)

    @asynccontextmanager
    async def stream(
        self, request: Request, meter: Meter | None = None, *, deltas: bool = True
    ) -> AsyncIterator[Stream]:
        """Completions as they are decoded; those of which nothing was given out move to another endpoint."""
        drawing = _Drawing(self._somewhere, request, _Bill(meter), deltas)
        driver = asyncio.ensure_future(drawing.draw(range(request.n)))
        driver.add_done_callback(drawing.ended)
        try:
            yield drawing
            if not drawing.open:
                await asyncio.wait([driver])  # the endpoint's last word, for which it has a limit itself
        finally:
            await stopped(driver)

    async def score(self, request: ScoreRequest, meter: Meter | None = None) -> Scoring:
        """Log-probabilities of the continuations, from one endpoint."""
        bill = _Bill(meter)
        load = len(request.continuations) * _length(request.messages)
        scoring = await self._somewhere(
            request.messages, load, lambda backend, part: backend.score(request, part), bill
        )
        return replace(scoring, usage=bill.total)

    async def counts(self) -> dict[str, Counts]:
        """Of the endpoints that tell."""
        return await counts_of(member.backend for member in self._members)

    async def aclose(self) -> None:
        """Closes all members."""
        async with task_group() as group:
            for member in self._members:
                group.create_task(member.backend.aclose())

    async def _ask(self, member: _Member) -> BackendError | None:
        began = time.monotonic()
        try:
            member.caps = await member.backend.capabilities()
        except BackendError as error:
            member.failed(self._rest, began)
            return error
        return None

    async def _somewhere(
        self,
        messages: tuple[Message, ...],
        load: int,
        call: Callable[[Backend, Meter], Awaitable[T]],
        bill: _Bill,
        moves: Callable[[], bool] = lambda: True,
    ) -> T:
        """`call` at the endpoint that suits best, or, if that fails and `moves`, at the next."""
        tried: list[_Member] = []
        while True:
            member = self._choose(messages, tried)
            tried.append(member)
            part, began = bill.part(), time.monotonic()
            try:
                with member.busy(load):
                    if member.caps is None:
                        member.caps = await member.backend.capabilities()
                        _common([m.caps for m in self._members if m.caps is not None])
                    result = await call(member.backend, part)
                member.worked()
                return result
            except RejectedError:
                raise  # any other would refuse it too
            except BackendError as error:
                member.failed(self._rest, began)
                if len(tried) == len(self._members) or not moves():
                    raise
                billed = bool(part.usage.calls or part.usage.uncertain_tokens)
                if billed and not part.again():
                    message = "The budget is exhausted: it does not hold a second attempt after:"
                    raise BudgetExhausted(f"{message} {error.message}") from error
                emit(Retried(error.message, len(tried), 0.0, billed))
            finally:
                bill.close(part)

    def _choose(self, messages: tuple[Message, ...], tried: Sequence[_Member]) -> _Member:
        now = time.monotonic()
        left = [member for member in self._members if member not in tried]
        awake = [member for member in left if member.rests_until <= now]
        if not awake:
            return min(left, key=lambda member: member.rests_until)
        least = min(awake, key=lambda member: member.tokens)
        start = _beginning(messages)
        home = self._homes.get(start)
        if home not in awake or home.tokens > 2 * least.tokens + _MUCH:
            home = self._homes[start] = least
        self._homes.move_to_end(start)
        if len(self._homes) > _REMEMBERED_HOMES:
            self._homes.popitem(last=False)
        return home


@dataclass(slots=True)
class _Bill:
    """What all attempts of one call have cost; each goes to the caller's meter once, when it has ended."""

    meter: Meter | None
    settled: Usage = field(default_factory=Usage)
    parts: list[Meter] = field(default_factory=list)

    @property
    def total(self) -> Usage:
        return sum((part.usage for part in self.parts), self.settled)

    def part(self) -> Meter:
        part = Meter(again=self.meter.again) if self.meter is not None else Meter()
        self.parts.append(part)
        return part

    def close(self, part: Meter) -> None:
        self.parts = [other for other in self.parts if other is not part]
        self.settled = self.settled + part.usage
        if self.meter is not None:
            self.meter.add(part.usage)


class _Drawing(Arrivals):
    """The completions of one streamed call, from as many endpoints as it takes."""

    replayed = False

    def __init__(
        self, somewhere: Callable[..., Awaitable[None]], request: Request, bill: _Bill, deltas: bool
    ) -> None:
        super().__init__(request.n)
        self._somewhere = somewhere
        self._request = request
        self._bill = bill
        self._deltas = deltas
        self._begun: set[int] = set()
        self._done: set[int] = set()
        self._live: list[Stream] = []

    @property
    def usage(self) -> Usage:
        return sum((stream.usage for stream in self._live), self._bill.settled)

    async def draw(self, indices: Iterable[int]) -> None:
        """Each unbroken range of indices in one request."""
        async with task_group() as group:
            for span in spans(indices):
                group.create_task(self._draw(span))

    async def _draw(self, span: range) -> None:
        async def once(backend: Backend, part: Meter) -> None:
            missing = [index for index in span if index not in self._done]
            async with task_group() as group:
                for rest in spans(missing):
                    group.create_task(self._stream(backend, part, rest))

        load = _load(replace(self._request, n=len(span)))
        await self._somewhere(
            self._request.messages, load, once, self._bill, lambda: self._begun.isdisjoint(span)
        )

    async def _stream(self, backend: Backend, part: Meter, span: range) -> None:
        request = replace(self._request.sibling(span.start), n=len(span))
        async with backend.stream(request, part, deltas=self._deltas) as stream:
            self._live.append(stream)
            try:
                async for chunk in stream:
                    index = chunk.index + span.start
                    whole = None if chunk.completion is None else replace(chunk.completion, index=index)
                    if whole is None:
                        self._begun.add(index)
                    else:
                        self._begun.discard(index)
                        self._done.add(index)
                    self.give(replace(chunk, index=index, completion=whole))
            finally:
                self._live.remove(stream)


def _beginning(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Up to the first user message: what siblings, continuations and judgements of a task share."""
    first = next((i for i, message in enumerate(messages) if message.role == "user"), len(messages) - 1)
    return messages[: first + 1]


def _length(messages: Iterable[Message]) -> int:
    return sum(len(message.content) for message in messages) // _BYTES_PER_TOKEN


def _load(request: Request) -> int:
    return _length(request.messages) + request.n * request.max_tokens


def _common(found: Sequence[Capabilities]) -> Capabilities:
    """What all can do. Raises ConfigurationError if they serve different models."""
    first = found[0]
    models = {caps.model for caps in found}
    if len(models) > 1:
        raise ConfigurationError(
            f"The endpoints serve different models: {', '.join(sorted(models))}.",
            remedy="Pool endpoints of one model.",
        )
    contexts = [caps.context for caps in found if caps.context is not None]
    return replace(
        first,
        context=min(contexts) if contexts else None,
        n=all(caps.n for caps in found),
        one_call=False,  # what is left of a request that moves may be in pieces
        seed=all(caps.seed for caps in found),
        logprobs=min(caps.logprobs for caps in found),
        prompt_logprobs=all(caps.prompt_logprobs for caps in found),
        reward=all(caps.reward for caps in found),
        constraints=frozenset.intersection(*(caps.constraints for caps in found)),
        continue_final=all(caps.continue_final for caps in found),
        exact_count=all(caps.exact_count for caps in found),
        exact_abort=all(caps.exact_abort for caps in found),
        tools=all(caps.tools for caps in found),
    )
