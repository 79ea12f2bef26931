"""Any OpenAI-compatible server, through the `openai` client: one kept-alive client, exact usage, safe resends.

What is billed and what is not (see `stratagem.core.usage.Usage`):

- A request that the server refuses unheard (429, 503, no connection, 4xx) costs nothing and is resent freely.
- One that broke after its first bytes had left (time-out, dropped connection, 5xx, malformed answer) may have
  been worked on. What is known of it is counted; the most that is not known is `uncertain_tokens`. It is
  resent only if the caller's meter agrees, and the trace says so.
- A cancelled or abandoned request is stopped in the engine by closing its connection. vLLM tells with every
  chunk what has been decoded, so a stream's cost is known but for what is decoded before the server notices.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from copy import copy
from dataclasses import replace
from random import Random
from typing import Any

from stratagem.backends._arrivals import Arrivals
from stratagem.backends._openai import scoring
from stratagem.backends._openai.address import checked_key, checked_url
from stratagem.backends._openai.call import CHAT, Call, Plan
from stratagem.backends._openai.endpoint import Attempt, Endpoint, Settings
from stratagem.backends._openai.negotiate import negotiate
from stratagem.backends._openai.sender import Sender, Tally
from stratagem.backends._openai.single import SingleFlight
from stratagem.backends._openai.wire import Dialect, chat, priced
from stratagem.backends._tasks import stopped
from stratagem.backends.vllm.metrics import Snapshot
from stratagem.core.address import public
from stratagem.core.backend import (
    Capabilities,
    Chunk,
    Completion,
    Generation,
    Message,
    Request,
    ScoreRequest,
    Scoring,
    Stream,
    TokenLogprob,
)
from stratagem.core.concurrency import task_group
from stratagem.core.errors import (
    BackendTimeoutError,
    ConfigurationError,
    ContextLengthError,
    ProtocolError,
    RejectedError,
    UnavailableError,
    UnsupportedError,
)
from stratagem.core.usage import Meter, Prices, Usage

_Key = tuple[str, str, str | None]

# Negotiated once per endpoint, key and model, and remembered in the process.
_DIALECTS: dict[_Key, Dialect] = {}
_NEGOTIATING: SingleFlight[_Key, Dialect] = SingleFlight()


def forget() -> None:
    """Forgets what was negotiated: for a server that was replaced by another one at the same address."""
    _DIALECTS.clear()


_REMEMBERED_PROMPTS = 4096
_LAST_WORD_SECONDS = 1.0
_TEMPLATE_TOKENS = 64  # more than chat templates add to a conversation, and to each message
_MESSAGE_TOKENS = 16


class OpenAIBackend:
    """A model behind an OpenAI-compatible HTTP server.

    Args:
        base_url: with its version, as `http://localhost:8000/v1`.
        model: its name there; may be left out where there is only one.
        api_key: default: the environment variable `OPENAI_API_KEY`.
        permits: sequences decoded at the same time, and the most connections.
        rate: requests per second; default: no limit.
        timeout: seconds for one request.
        first_token_timeout: seconds from sending a request until its stream shows its first token.
        retries: how often a failed request is sent again.
        prices: for `Usage.money`.
        abort_slack: what a vLLM server decodes at most, in tokens per completion, before it sees that a client has
            left: the `uncertain_tokens` of a stream that was left. It looks before every step, so that 32 is
            generous. Where nobody reads the pieces it is asked to tell only after each 32, and as many more are
            uncertain. A server that does not say what it has decoded is charged all that was asked for.
        jitter_seed: of the delays between attempts; default: from the system, so that processes differ.

    Raises:
        ConfigurationError: a value makes no sense.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        *,
        permits: int = 32,
        rate: float | None = None,
        timeout: float = 600.0,
        first_token_timeout: float | None = None,
        retries: int = 4,
        prices: Prices | None = None,
        abort_slack: int = 32,
        jitter_seed: int | None = None,
    ) -> None:
        counts = {"permits": (permits, 1), "retries": (retries, 0), "abort_slack": (abort_slack, 0)}
        for key, (value, least) in counts.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigurationError(f"{key}={value!r} makes no sense.", remedy=f"Give at least {least}.")
        limits = {"rate": rate, "timeout": timeout, "first_token_timeout": first_token_timeout}
        for key, limit in limits.items():
            if limit is not None and not (isinstance(limit, int | float) and limit > 0):  # which a NaN is not
                raise ConfigurationError(f"{key}={limit!r} makes no sense.", remedy="Give more than 0.")
        key = checked_key(api_key or "") or checked_key(os.environ.get("OPENAI_API_KEY", "")) or "none"
        url = checked_url(base_url)
        self._settings = Settings(url, key, permits, rate, timeout, first_token_timeout)
        self._model = model
        self._retries = retries
        self._prices = prices or Prices()
        self._abort_slack = abort_slack
        self._rng = Random(jitter_seed)
        self._where = public(url)
        self._endpoints: dict[asyncio.AbstractEventLoop, Endpoint] = {}
        self._counts: OrderedDict[tuple[Message, ...], int] = OrderedDict()
        self._tokenizing: SingleFlight[tuple[Message, ...], tuple[int, ...]] = SingleFlight()

    def for_model(self, model: str) -> OpenAIBackend:
        """Another model of the same server, such as a LoRA adapter, for another role: ``models={"judge":
        llm.for_model("judge")}``. Both share connections, permits and rate; closing one closes them."""
        other = copy(self)
        other._model = model
        other._counts = OrderedDict()
        other._tokenizing = SingleFlight()
        return other

    @property
    def name(self) -> str:
        """The endpoint and, where it was given, the model."""
        return f"{self._where}#{self._model or ''}"

    async def capabilities(self) -> Capabilities:
        """Negotiated at the first call and remembered in the process.

        Raises:
            UnavailableError: nobody answers there.
            ProtocolError: whoever answers there is no OpenAI-compatible server.
            ConfigurationError: the key or the model is wrong.
        """
        return replace((await self._dialect()).caps, prices=self._prices)

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        """By the server's own tokenizer where it offers that or has told; else the most it can be."""
        dialect = await self._dialect()
        key = tuple(messages)
        if dialect.tokenize and key not in self._counts:
            await self._tokenize(key, dialect)
        return self._prompt_bound(key)

    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        """All completions, when the last has ended."""
        done: dict[int, Completion] = {}

        def arrived(chunk: Chunk) -> None:
            if chunk.completion is not None:
                done[chunk.index] = chunk.completion

        with self._forgetting():
            dialect = await self._dialect()
            request = await self._fitted(request, dialect)
            call = await self._call(dialect, request, Tally(meter), arrived, stream=False, deltas=False)
            await call.draw(range(request.n))
        return Generation(tuple(done[i] for i in range(request.n)), call.tally.total)

    @asynccontextmanager
    async def stream(
        self, request: Request, meter: Meter | None = None, *, deltas: bool = True
    ) -> AsyncIterator[Stream]:
        """Completions as they are decoded; leaving the block closes the connections, so that decoding stops."""
        dialect = await self._dialect()
        request = await self._fitted(request, dialect)
        arrivals = Arrivals(request.n)
        call = await self._call(dialect, request, Tally(meter), arrivals.give, stream=True, deltas=deltas)
        # Reading goes on while the consumer is busy, so that permits come back when sequences end.
        driver = asyncio.ensure_future(call.draw(range(request.n)))
        driver.add_done_callback(arrivals.ended)
        try:
            with self._forgetting():
                yield _ServerStream(call, arrivals)
            if not arrivals.open:
                # All completions have come; the usage and the end of the answer are on their way, and reading
                # them keeps the connection.
                await asyncio.wait([driver], timeout=_LAST_WORD_SECONDS)
        finally:
            await stopped(driver)

    async def score(self, request: ScoreRequest, meter: Meter | None = None) -> Scoring:
        """Log-probabilities of the continuations, by vLLM's prompt log-probabilities; one request for each.

        Raises UnsupportedError on a server that is not vLLM.
        """
        dialect = await self._dialect()
        if not dialect.caps.prompt_logprobs:
            raise UnsupportedError(f"{self._where} cannot score given continuations.", remedy="vLLM can.")
        prefix = await self._tokenize(request.messages, dialect) if dialect.tokenize else None
        tally = Tally(meter)
        with self._forgetting():
            async with task_group() as group:
                tasks = [
                    group.create_task(self._score(request.messages, text, prefix, dialect, tally))
                    for text in request.continuations
                ]
        return Scoring(tuple(task.result() for task in tasks), tally.total)

    async def counts(self) -> dict[str, Snapshot]:
        """What a vLLM server has counted, under its address; empty on any other server.

        Raises:
            UnavailableError: nobody answers there.
            ProtocolError: it shows none (vLLM with `--disable-log-stats`, or behind a proxy).
        """
        dialect = await self._dialect()
        if not dialect.vllm:
            return {}
        try:
            page = await (await self._sender()).page(self._settings.root + "/metrics")
        except RejectedError as error:
            raise ProtocolError(
                f"{self._where} shows no metrics.", remedy="Ask vLLM itself, at its own port."
            ) from error
        return {self._where: Snapshot.of(page, dialect.caps.version)}

    async def configuration(self) -> Mapping[str, Any] | None:
        """A vLLM server's own, where it shows it in time: only if it was started with `VLLM_SERVER_DEV_MODE=1`."""
        try:
            told = await (await self._sender()).ask(self._settings.root + "/server_info?config_format=json")
        except (RejectedError, ProtocolError, BackendTimeoutError):
            return None  # it looks its machine over before it answers, which may take long
        config = told.get("vllm_config") if isinstance(told, dict) else None
        return config if isinstance(config, dict) else None

    async def aclose(self) -> None:
        """Closes the connections of this event loop."""
        endpoint = self._endpoints.pop(asyncio.get_running_loop(), None)
        if endpoint is not None:
            await endpoint.aclose()

    async def _sender(self) -> Sender:
        loop = asyncio.get_running_loop()
        endpoint = self._endpoints.get(loop)
        if endpoint is None:
            for ended in [other for other in list(self._endpoints) if other.is_closed()]:
                self._endpoints.pop(ended, None)
            endpoint = self._endpoints[loop] = await Endpoint.opened(self._settings)
        return Sender(endpoint, self._where, self._retries, self._rng, self._settings.timeout)

    async def _dialect(self) -> Dialect:
        key = (self._settings.base_url, self._settings.api_key, self._model)
        found = _DIALECTS.get(key)
        if found is None:
            sender = await self._sender()
            found = await _NEGOTIATING.do(key, lambda: negotiate(sender, self._settings, self._model))
            _DIALECTS[key] = found
        return found

    @contextmanager
    def _forgetting(self) -> Iterator[None]:
        """Where nobody answers any more, whoever comes back may be another server: it is asked anew."""
        try:
            yield
        except UnavailableError:
            _DIALECTS.pop((self._settings.base_url, self._settings.api_key, self._model), None)
            self._counts.clear()
            raise

    def _without_logprobs(self, dialect: Dialect) -> None:
        """What only an answer shows: the server leaves log-probabilities out. It is asked for none again."""
        key = (self._settings.base_url, self._settings.api_key, self._model)
        _DIALECTS[key] = replace(dialect, caps=replace(dialect.caps, logprobs=-1))

    async def _fitted(self, request: Request, dialect: Dialect) -> Request:
        """The request with as many tokens as the context has room for. Raises ContextLengthError for none."""
        context = dialect.caps.context
        if context is None or self._prompt_bound(request.messages) + request.max_tokens <= context:
            return request
        prompt = await self.count_tokens(request.messages)
        if not dialect.tokenize:  # only a bound: the server itself must say whether it fits
            return request
        if prompt >= context:
            raise ContextLengthError(
                f"The prompt has {prompt} tokens and {dialect.caps.model} takes {context} in all.",
                remedy="Shorten the question or use a model with a longer context.",
            )
        return replace(request, max_tokens=min(request.max_tokens, context - prompt))

    async def _call(
        self,
        dialect: Dialect,
        request: Request,
        tally: Tally,
        arrived: Callable[[Chunk], None],
        *,
        stream: bool,
        deltas: bool,
    ) -> Call:
        plan = Plan(
            request,
            dialect,
            self._prices,
            prompt_bound=lambda: self._prompt_bound(request.messages),
            learned=lambda count: self._learn(request.messages, count),
            without_logprobs=lambda: self._without_logprobs(dialect),
            stream=stream,
            deltas=deltas,
            abort_slack=self._abort_slack,
        )
        return Call(plan, await self._sender(), tally, arrived)

    async def _score(
        self,
        messages: tuple[Message, ...],
        text: str,
        prefix: Sequence[int] | None,
        dialect: Dialect,
        tally: Tally,
    ) -> tuple[TokenLogprob, ...]:
        if not text:
            return ()
        sender = await self._sender()
        body = scoring.body(messages, text, dialect)

        async def once(attempt: Attempt) -> tuple[tuple[TokenLogprob, ...], Usage]:
            answer = await sender.endpoint.post(CHAT, body, attempt)
            tokens, usage = scoring.read(answer, prefix, text, dialect.caps.model)
            return tokens, priced(usage, self._prices)

        def lost() -> Usage:
            prompt = self._prompt_bound(messages) + len(text.encode(errors="surrogatepass"))
            return priced(Usage(uncertain_tokens=prompt + 1, calls=1), self._prices, uncertain_prompt=prompt)

        return await sender.whole(once, model=dialect.caps.model, tally=tally, lost=lost)

    async def _tokenize(self, messages: tuple[Message, ...], dialect: Dialect) -> tuple[int, ...]:
        async def ask() -> tuple[int, ...]:
            sender = await self._sender()
            answer = await sender.ask(self._settings.root + "/tokenize", chat(messages, dialect))
            ids = answer.get("tokens") if isinstance(answer, dict) else None
            if not isinstance(ids, list):
                raise ProtocolError(f"{self._where}/tokenize gives no tokens.")
            self._learn(messages, len(ids))
            return tuple(ids)

        return await self._tokenizing.do(messages, ask)

    def _learn(self, messages: tuple[Message, ...], count: int) -> None:
        self._counts[messages] = count
        if len(self._counts) > _REMEMBERED_PROMPTS:
            self._counts.popitem(last=False)

    def _prompt_bound(self, messages: tuple[Message, ...]) -> int:
        """The prompt's tokens where the server has told them, else the most they can be: one per byte."""
        known = self._counts.get(messages)
        if known is not None:
            return known
        return _TEMPLATE_TOKENS + sum(
            len(m.content.encode(errors="surrogatepass")) + _MESSAGE_TOKENS for m in messages
        )


class _ServerStream:
    """The completions of one call, as they come."""

    replayed = False

    def __init__(self, call: Call, arrivals: Arrivals) -> None:
        self._call = call
        self._arrivals = arrivals

    @property
    def usage(self) -> Usage:
        return self._call.usage

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self._arrivals
