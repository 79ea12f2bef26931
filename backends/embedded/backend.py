"""The embedded engine as a backend: the shipped model, or any folder of its family, in this process."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import ClassVar, Literal, ParamSpec, Self, TypeVar

from stratagem.backends.embedded.constraints import Grammar
from stratagem.backends.embedded.engine import Engine, EngineStats
from stratagem.backends.embedded.requests import Delta, Handle, Result, Sample, Spent, Token, Want
from stratagem.backends.embedded.sampling import Sampling
from stratagem.backends.embedded.tokenizer import LONG
from stratagem.core.backend import (
    Capabilities,
    Chunk,
    Completion,
    Constraint,
    Generation,
    Message,
    Request,
    ScoreRequest,
    Scoring,
    TokenLogprob,
)
from stratagem.core.errors import (
    BackendError,
    ConfigurationError,
    RejectedError,
    StratagemError,
    UnavailableError,
    UnsupportedError,
)
from stratagem.core.usage import Meter, Usage

P = ParamSpec("P")
T = TypeVar("T")

MINI = Path(__file__).parent / "mini"
GRAMMARS = 256  # compiled ones to remember
FILES = ("config.json", "model.safetensors", "tokenizer.json")


def _digest(folder: Path) -> str:
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in FILES)).hexdigest()[:12]


class _Shared:
    """One engine per model folder and process, for all backends on that folder."""

    _open: ClassVar[dict[Path, _Shared]] = {}
    _lock: ClassVar = threading.RLock()  # a finaliser may run inside acquire()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.users = 0
        self.engine = Engine(folder)
        self._rendered = lru_cache(1024)(self._render)  # a prompt is counted before it is sent
        self._grammars: dict[Constraint, Grammar] = {}

    @classmethod
    def acquire(cls, folder: Path) -> _Shared:
        """Blocks while the model is being read."""
        with cls._lock:
            shared = cls._open.get(folder)
            if shared is None:
                shared = cls._open[folder] = cls(folder)
            shared.users += 1
            return shared

    async def render(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        """Tokens of a conversation."""
        return await _timely(sum(len(m.content) for m in messages), self._rendered, messages)

    async def encode(self, texts: tuple[str, ...]) -> list[list[int]]:
        """Tokens of each text."""

        def encode() -> list[list[int]]:
            return [self.engine.tokenizer.encode(text) for text in texts]

        return await _timely(sum(map(len, texts)), encode)

    def _render(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        return tuple(self.engine.tokenizer.render([(m.role, m.content) for m in messages]))

    async def grammar(self, constraint: Constraint) -> Grammar:
        """Compiled in a thread, and remembered."""
        grammar = self._grammars.get(constraint)
        if grammar is None:
            value = constraint.decoded() if constraint.type == "choice" else constraint.value
            grammar = await asyncio.to_thread(self.engine.grammar, constraint.type, value)
            if len(self._grammars) >= GRAMMARS:
                del self._grammars[next(iter(self._grammars))]
            self._grammars[constraint] = grammar
        return grammar

    def release(self) -> None:
        """The last user ends the engine; blocks for at most a step."""
        with self._lock:
            self.users -= 1
            if self.users:
                return
            del self._open[self.folder]
        self.engine.close()


class EmbeddedBackend:
    """Runs a model folder (config.json, model.safetensors, tokenizer.json) with numpy in this process.

    The model is read when it is first used, in a thread. Backends on the same folder share one engine, so that
    their requests are decoded in one batch; a backend may be used from several event loops.

    Args:
        folder: the model; the shipped ``stratagem-mini`` by default.

    Raises:
        ConfigurationError: the folder lacks a file (at once), or holds a model of another kind (when used).
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = Path(folder or MINI).resolve()
        missing = [name for name in FILES if not (self.folder / name).is_file()]
        if missing:
            raise ConfigurationError(
                f"The model folder {self.folder} lacks {', '.join(missing)}.",
                remedy="Give a folder in the Hugging Face layout, or none for the shipped model.",
            )
        self._model = "stratagem-mini" if self.folder == MINI.resolve() else self.folder.name
        self._opening = threading.Lock()
        self._shared: _Shared | None = None
        self._release: weakref.finalize[..., EmbeddedBackend] | None = None
        self._digest = cache(partial(_digest, self.folder))

    @property
    def name(self) -> str:
        """Model name and a digest of its files."""
        return f"embedded:{self._model}:{self._digest()}"

    def stats(self) -> EngineStats:
        """Counters of the shared engine; zeros while it is not loaded."""
        return self._shared.engine.stats() if self._shared else EngineStats()

    async def capabilities(self) -> Capabilities:
        """All there is; log-probabilities of the whole vocabulary, if asked for."""
        config = (await self._opened()).engine.model.config
        return Capabilities(
            model=self._model,
            context=config.context,
            n=True,
            one_call=True,
            seed=True,
            logprobs=config.vocabulary,
            prompt_logprobs=True,
            constraints=frozenset({"choice", "regex", "json", "grammar"}),
            continue_final=True,
            exact_count=True,
            exact_abort=True,
            temperature=config.temperature if config.temperature is not None else 1.0,
            version=self._digest(),
        )

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        """Exact."""
        return len(await (await self._opened()).render(tuple(messages)))

    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        """All completions of ``request``, when the last has ended; cancelling stops the engine."""
        shared = await self._opened()
        handle = await self._submit(shared, request, "result")
        result = await _finished(handle, meter)
        completions = tuple(_completion(shared.engine, sample) for sample in result.samples)
        return Generation(completions, _usage(result.spent))

    @asynccontextmanager
    async def stream(
        self, request: Request, meter: Meter | None = None, *, deltas: bool = True
    ) -> AsyncIterator[EmbeddedStream]:
        """Completions as they are decoded; leaving the block stops the engine within a step."""
        shared = await self._opened()
        stream = EmbeddedStream(
            shared.engine, await self._submit(shared, request, "deltas" if deltas else "samples")
        )
        try:
            yield stream
        finally:
            await _aborted(stream.handle, meter)

    async def score(self, request: ScoreRequest, meter: Meter | None = None) -> Scoring:
        """Log-probabilities of each continuation; the prompt is computed, and charged, once."""
        shared = await self._opened()
        engine = shared.engine
        prompt = await shared.render(request.messages)
        continuations = await shared.encode(request.continuations)
        result = await _finished(engine.score(prompt, continuations), meter)
        scores = tuple(_logprobs(engine, tokens) for tokens in result.scores)
        return Scoring(scores, _usage(result.spent))

    async def aclose(self) -> None:
        """Let go of the engine; its last user ends the thread."""
        await asyncio.to_thread(self._let_go)

    async def _opened(self) -> _Shared:
        if self._shared is not None:
            return self._shared
        return await asyncio.to_thread(self._acquire)

    def _acquire(self) -> _Shared:
        # Entered here, and not by who waits for the thread: a waiter that is cancelled would leave no owner.
        self._digest()
        with self._opening:
            shared = self._shared
            if shared is None:
                shared = self._shared = _Shared.acquire(self.folder)
                self._release = weakref.finalize(self, shared.release)
            return shared

    def _let_go(self) -> None:
        with self._opening:
            release, self._release, self._shared = self._release, None, None
        if release is not None:
            release()

    async def _submit(self, shared: _Shared, request: Request, want: Want) -> Handle:
        engine = shared.engine
        vocabulary = engine.model.config.vocabulary
        if request.logprobs is not None and request.logprobs > vocabulary:
            raise UnsupportedError(f"{self.name} gives at most {vocabulary} top log-probabilities.")
        if request.tools:
            raise UnsupportedError(
                f"{self.name} has no native calls of tools.", remedy="Use the plan notation (format='lines')."
            )
        if request.processors:
            raise UnsupportedError(f"{self.name} has no logits processors to ask for.", remedy="vLLM has.")
        default = engine.model.config.temperature
        temperature = request.temperature if request.temperature is not None else default
        try:
            sampling = Sampling(
                max_tokens=request.max_tokens,
                temperature=1.0 if temperature is None else temperature,
                top_p=request.top_p,
                seed=random.getrandbits(63) if request.seed is None else request.seed,
                stop=request.stop,
                logprobs=request.logprobs,
                grammar=await shared.grammar(request.constraint) if request.constraint else None,
            )
            prompt = await shared.render(request.messages)
            return engine.submit(prompt, sampling, request.n, want, request.priority)
        except ValueError as error:
            raise RejectedError(f"{self.name}: {error}.") from error


class EmbeddedStream:
    """Completions of one request as they are decoded."""

    replayed = False

    def __init__(self, engine: Engine, handle: Handle) -> None:
        self.handle = handle
        self._engine = engine

    @property
    def usage(self) -> Usage:
        """As of the last step; final once the block has been left."""
        return _usage(self.handle.job.spent)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        if (delta := await self.handle.event()) is not None:
            return _chunk(self._engine, delta)
        _raise_failure(await self.handle.result())
        raise StopAsyncIteration


async def _timely(characters: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What ``work`` on so many characters gives; in a thread if it would hold up the event loop."""
    if characters < LONG:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


async def _finished(handle: Handle, meter: Meter | None) -> Result:
    """The result; when cancelled meanwhile, the engine is stopped and what it spent counted."""
    try:
        result = await handle.result()
    except asyncio.CancelledError:
        await _aborted(handle, meter)
        raise
    if meter is not None:
        meter.add(_usage(result.spent))
    _raise_failure(result)
    return result


async def _aborted(handle: Handle, meter: Meter | None) -> Result:
    """Stop what still runs and count what was spent. Outlasts cancellation: the engine answers within a step."""
    handle.abort()
    cancelled = False
    while True:
        try:
            result = await handle.result()
            break
        except asyncio.CancelledError:
            cancelled = True
    if meter is not None:
        meter.add(_usage(result.spent))
    if cancelled:
        raise asyncio.CancelledError
    return result


def _raise_failure(result: Result) -> None:
    if isinstance(result.error, StratagemError):
        raise result.error
    if result.error is not None:
        what = f"{type(result.error).__name__}: {result.error}"
        raise BackendError(f"The embedded engine failed: {what}") from result.error
    if result.aborted:
        raise UnavailableError("The embedded engine was closed while the request ran.")


def _usage(spent: Spent) -> Usage:
    return Usage(
        prompt_tokens=spent.prefilled + spent.cached,
        completion_tokens=spent.decoded,
        cached_tokens=spent.cached,
        calls=1,
    )


def _logprobs(engine: Engine, tokens: Sequence[Token]) -> tuple[TokenLogprob, ...]:
    def text(token: int) -> str:
        return engine.tokenizer.decode([token])

    return tuple(TokenLogprob(text(t.id), t.logprob, tuple((text(i), p) for i, p in t.top)) for t in tokens)


def _completion(engine: Engine, sample: Sample) -> Completion:
    finish: Literal["stop", "length"] = "stop" if sample.finish == "stop" else "length"
    return Completion(
        sample.index, sample.text, finish, len(sample.tokens), _logprobs(engine, sample.logprobs)
    )


def _chunk(engine: Engine, delta: Delta) -> Chunk:
    completion = _completion(engine, delta.sample) if delta.sample else None
    return Chunk(delta.index, delta.text, _logprobs(engine, delta.logprobs), completion)
