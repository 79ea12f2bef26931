"""A language model small enough to enumerate: every probability that a strategy estimates is known exactly.

    toy = ToyModel({"": {"yes": 0.75, "no": 0.25}})
    toy.enumerate("Is it?")                    # {"yes": 0.75, "no": 0.25}
    toy.enumerate("Is it?", temperature=0.5)   # {"yes": 0.9, "no": 0.1}

It keeps exact books of what it decoded, stops at any token when it is left, and lets a test pace each token.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Self

from stratagem.core.asking import Prompt, as_messages
from stratagem.core.backend import (
    Capabilities,
    Chunk,
    Constraint,
    Generation,
    Message,
    Request,
    ScoreRequest,
    Scoring,
    TokenLogprob,
)
from stratagem.core.errors import ContextLengthError, UnsupportedError
from stratagem.core.usage import Meter, Usage
from stratagem.testing import _decoding as decoding
from stratagem.testing.language import Distribution, Language, arithmetic, table

Pace = Callable[[Request | ScoreRequest], Awaitable[object]]

CAPABLE = Capabilities(
    model="toy",
    n=True,
    one_call=True,
    seed=True,
    logprobs=20,
    prompt_logprobs=True,
    constraints=frozenset({"choice"}),
    continue_final=True,
    exact_count=True,
    exact_abort=True,
    temperature=1.0,
)


@dataclass(slots=True)
class Books:
    """What a backend has done since it was made, and does now."""

    usage: Usage = field(default_factory=Usage)
    in_flight: int = 0  # requests being answered now, with those that wait for a permit
    permits: int = 0  # taken now
    peak: int = 0  # most permits taken at one time
    aborted: int = 0  # completions left before they had ended


async def _next_turn(_: Request | ScoreRequest) -> None:
    await asyncio.sleep(0)


def jittered(seed: int, most: int = 5) -> Pace:
    """A pace of 0 to ``most`` turns of the event loop before each token: shuffles the order of endings."""
    rng = random.Random(seed)

    async def pace(_: Request | ScoreRequest) -> None:
        for _turn in range(rng.randint(0, most)):
            await asyncio.sleep(0)

    return pace


class ToyModel:
    """A backend whose distribution is given.

    Args:
        language: next-token probabilities, as a function of the conversation and the tokens so far, or as a
            table {text so far: {token: probability}}; the token ``""`` ends.
        capabilities: what it admits to; what is taken away it refuses.
        permits: how many requests it answers at one time; ``None`` is no limit.
        pace: awaited before every decoding step of a request (one token of each of its completions). Under
            :class:`~stratagem.testing.loops.VirtualLoop`, ``lambda _: asyncio.sleep(0.01)`` models 10 ms a token.

    A prompt counts one token per word, one per message and one for the turn of the answer. The end is a decoded
    token like any other, so the log-probabilities of a completion that was not cut sum to that of its text.
    """

    def __init__(
        self,
        language: Language | Mapping[str, Distribution] = arithmetic,
        *,
        capabilities: Capabilities = CAPABLE,
        permits: int | None = None,
        pace: Pace = _next_turn,
    ) -> None:
        self._language = table(language) if isinstance(language, Mapping) else language
        self._capabilities = capabilities
        self._pace = pace
        self._permits = permits
        self._queue: deque[asyncio.Future[None]] = deque()
        self.books = Books()

    @property
    def name(self) -> str:
        """Its model name."""
        return f"toy:{self._capabilities.model}"

    async def capabilities(self) -> Capabilities:
        """As given."""
        return self._capabilities

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        """Exact."""
        return self.prompt_tokens(messages)

    def prompt_tokens(self, prompt: Prompt) -> int:
        """Tokens of a prompt (see the class)."""
        messages = as_messages(prompt)
        open_turn = messages[-1].role != "assistant"
        return sum(1 + len(m.content.split()) for m in messages) + open_turn

    def distribution(self, messages: tuple[Message, ...], tokens: tuple[str, ...] = ()) -> Distribution:
        """p(next token) at temperature 1. A trailing assistant message counts as tokens already said."""
        if messages[-1].role == "assistant":
            said = self._tokenize(messages[:-1], messages[-1].content)
            messages, tokens = messages[:-1], (*said, *tokens)
        return self._language(messages, tokens)

    def enumerate(
        self,
        prompt: Prompt,
        temperature: float | None = None,
        *,
        top_p: float = 1.0,
        max_tokens: int = 64,
        stop: tuple[str, ...] = (),
        constraint: Constraint | None = None,
    ) -> dict[str, float]:
        """Probability of every text that such a request can give, the likeliest first; they sum to 1."""
        request = Request(
            as_messages(prompt),
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            stop=stop,
            constraint=constraint,
        )
        found: dict[str, float] = {}
        pending = [(self._sequence(request), 1.0)]
        while pending:
            sequence, probability = pending.pop()
            if sequence.finish is not None:
                found[sequence.text] = found.get(sequence.text, 0.0) + probability
                continue
            for token, p in sequence.choices().items():
                if p > 0:
                    branch = sequence.copy()
                    branch.append(token)
                    pending.append((branch, probability * p))
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        """All completions. Siblings advance together, one token a step."""
        async with self.stream(request, meter, deltas=False) as stream:
            chunks = [chunk async for chunk in stream]
        completions = {c.index: c.completion for c in chunks if c.completion is not None}
        return Generation(tuple(completions[i] for i in range(request.n)), stream.usage)

    @asynccontextmanager
    async def stream(
        self, request: Request, meter: Meter | None = None, *, deltas: bool = True
    ) -> AsyncIterator[ToyStream]:
        """A chunk per token, or one per completion."""
        self._check(request)
        request = self._fitted(request)
        async with self._permit():
            siblings = [request.sibling(i) for i in range(request.n)]
            stream = ToyStream(
                self, request, [(self._sequence(r), random.Random(r.seed)) for r in siblings], deltas
            )
            try:
                yield stream
            finally:
                self.books.aborted += stream.close()
                self._bill(stream.usage, meter)

    async def score(self, request: ScoreRequest, meter: Meter | None = None) -> Scoring:
        """Log-probabilities of the tokens of each continuation; -inf for what it would never say."""
        if not self._capabilities.prompt_logprobs:
            raise UnsupportedError(f"{self.name} cannot score given continuations.")
        messages, prompt = request.messages, self.prompt_tokens(request.messages)
        async with self._permit():
            scores: list[tuple[TokenLogprob, ...]] = []
            usage = Usage(calls=1)
            try:
                for text in request.continuations:
                    await self._pace(request)
                    tokens = self._tokenize(messages, text)
                    before = [self.distribution(messages, tokens[:i]) for i in range(len(tokens))]
                    logs = [decoding.log(p.get(t, 0.0)) for t, p in zip(tokens, before, strict=True)]
                    scores.append(tuple(map(TokenLogprob, tokens, logs)))
                    usage = self.priced(usage + Usage(prompt_tokens=prompt + len(tokens)))
            finally:
                self._bill(usage, meter)
        return Scoring(tuple(scores), usage)

    async def aclose(self) -> None:
        """There is nothing to give back."""

    # -- inside ----------------------------------------------------------------------------------------

    def priced(self, usage: Usage) -> Usage:
        """With the money that it costs."""
        money = self._capabilities.prices.of(usage.prompt_tokens, usage.completion_tokens)
        return replace(usage, money=money)

    async def paced(self, request: Request) -> None:
        """Wait for the next decoding step."""
        await self._pace(request)

    def _sequence(self, request: Request) -> decoding.Sequence:
        default = 1.0 if self._capabilities.temperature is None else self._capabilities.temperature
        return decoding.Sequence(
            self.distribution, request, default if request.temperature is None else request.temperature
        )

    def _tokenize(self, messages: tuple[Message, ...], text: str) -> tuple[str, ...]:
        """The longest token that fits, again and again; what no token begins is one token."""
        tokens: tuple[str, ...] = ()
        while text:
            known = self.distribution(messages, tokens)
            token = max((t for t in known if t and text.startswith(t)), key=len, default=text)
            tokens += (token,)
            text = text[len(token) :]
        return tokens

    def _check(self, request: Request) -> None:
        able = self._capabilities
        if request.logprobs is not None and request.logprobs > able.logprobs:
            raise UnsupportedError(f"{self.name} gives at most {able.logprobs} top log-probabilities.")
        if request.constraint is not None and request.constraint.type not in able.constraints:
            raise UnsupportedError(f"{self.name} cannot decode under a {request.constraint.type} constraint.")

    def _fitted(self, request: Request) -> Request:
        """With no more tokens than the context holds."""
        if (context := self._capabilities.context) is None:
            return request
        prompt = self.prompt_tokens(request.messages)
        if prompt >= context:
            raise ContextLengthError(f"A prompt of {prompt} tokens does not fit the context of {context}.")
        return replace(request, max_tokens=min(request.max_tokens, context - prompt))

    def _bill(self, usage: Usage, meter: Meter | None) -> None:
        self.books.usage += usage
        if meter is not None:
            meter.add(usage)

    @asynccontextmanager
    async def _permit(self) -> AsyncIterator[None]:
        books = self.books
        books.in_flight += 1
        try:
            if self._permits is not None and books.permits >= self._permits:
                await self._queued()  # is handed a permit that stays counted
            else:
                books.permits += 1
            books.peak = max(books.peak, books.permits)
            try:
                yield
            finally:
                self._hand_on()
        finally:
            books.in_flight -= 1

    async def _queued(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._queue.remove(turn)
            else:  # handed the permit and cancelled in the same turn
                self._hand_on()
            raise

    def _hand_on(self) -> None:
        turn = next((t for t in self._queue if not t.done()), None)
        if turn is None:
            self.books.permits -= 1
        else:
            self._queue.remove(turn)
            turn.set_result(None)


class ToyStream:
    """Completions of one request as they are decoded (the ``Stream`` of :meth:`ToyModel.stream`)."""

    replayed = False

    def __init__(
        self,
        model: ToyModel,
        request: Request,
        sequences: list[tuple[decoding.Sequence, random.Random]],
        deltas: bool,
    ) -> None:
        self._model, self._request, self._deltas = model, request, deltas
        self._live = dict(enumerate(sequences))
        self._prompt, self._decoded = model.prompt_tokens(request.messages), 0
        self._ready: deque[Chunk] = deque()

    @property
    def usage(self) -> Usage:
        """Read and decoded so far."""
        return self._model.priced(Usage(self._prompt, self._decoded, calls=1))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        while not self._ready:
            if not self._live:
                raise StopAsyncIteration
            await self._model.paced(self._request)
            for index in tuple(self._live):
                self._step(index)
        return self._ready.popleft()

    def _step(self, index: int) -> None:
        sequence, rng = self._live[index]
        sequence.append(decoding.draw(sequence.choices(), rng))
        self._decoded += 1
        if sequence.finish is not None:
            del self._live[index]
        if self._deltas or sequence.finish is not None:
            self._ready.append(sequence.chunk(index))

    def close(self) -> int:
        """Stop decoding. Returns how many completions had not ended."""
        left = len(self._live)
        self._live.clear()
        self._ready.clear()
        return left
