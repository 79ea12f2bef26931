"""One server as seen from one event loop: the client, its permits, its rate and its pauses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self, cast

import httpx2
import openai
from asyncio_throttle.throttler import Throttler
from openai import AsyncOpenAI, AsyncStream

from stratagem.backends._openai.failure import FirstTokenLate, Malformed
from stratagem.backends._openai.permits import Permits

# Servers of this kind (uvicorn) close an idle connection after 5 s; ours must be given up earlier, or a request
# may be written into a connection that is being closed and count as possibly billed.
_KEEPALIVE_SECONDS = 4.0
_CONNECT_SECONDS = 10.0
_ASK_SECONDS = 10.0
# What a model decodes before its answer counts too: it may think for longer than the first token may take.
_DECODED = ("content", "reasoning", "reasoning_content", "tool_calls")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server is spoken to. Times in seconds."""

    base_url: str
    api_key: str
    permits: int
    rate: float | None
    timeout: float
    first_token_timeout: float | None

    @property
    def root(self) -> str:
        """The URL that vLLM's own paths (/version, /tokenize) start from."""
        return self.base_url.removesuffix("/v1")


@dataclass(slots=True)
class Attempt:
    """One try at a request. `sent`: its first bytes may have left this machine; `leaving` is called then."""

    sent: bool = False
    leaving: Callable[[], object] | None = None


_attempt: ContextVar[Attempt | None] = ContextVar("stratagem_openai_attempt", default=None)


async def _watch(request: httpx2.Request) -> None:
    """Makes the transport tell the current attempt when it begins to send."""
    attempt = _attempt.get()
    if attempt is None:
        return

    async def trace(event: str, _info: Mapping[str, Any]) -> None:
        if event.endswith("send_request_headers.started"):
            attempt.sent = True
            if attempt.leaving is not None:
                attempt.leaving()

    request.extensions["trace"] = trace


class Endpoint:
    """Sends requests. Belongs to one event loop; the connections are at most the permits, whatever is sent.

    Closed with the loop, if not before: a script may run many (`asyncio.run`), and each would leave its sockets.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self.permits = Permits(settings.permits)
        self.schedules = True  # by priority, until it says that it does not
        self._paused_until = 0.0
        self._resume: asyncio.TimerHandle | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._turn = asyncio.Lock()
        self._throttle = _throttler(settings.rate)
        limits = httpx2.Limits(
            max_connections=settings.permits,
            max_keepalive_connections=settings.permits,
            keepalive_expiry=_KEEPALIVE_SECONDS,
        )
        # The time limits below are of whole requests; the transport's own would count pauses between tokens.
        timeout = httpx2.Timeout(None, connect=_CONNECT_SECONDS)
        http_client = httpx2.AsyncClient(
            limits=limits,
            timeout=timeout,
            event_hooks={"request": [_watch]},
            follow_redirects=False,
            # Loading the certificates takes longer than a hundred calls.
            verify=settings.base_url.startswith("https"),
        )
        self._client = AsyncOpenAI(
            base_url=settings.base_url,
            api_key=settings.api_key,
            max_retries=0,
            timeout=timeout,
            http_client=http_client,
        )

        self._lifetime = self._until_closed()

    @classmethod
    async def opened(cls, settings: Settings) -> Self:
        """An endpoint of the running loop."""
        endpoint = cls(settings)
        await anext(endpoint._lifetime)
        return endpoint

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._lifetime.aclose()

    async def _until_closed(self) -> AsyncGenerator[None]:
        """Suspended while the endpoint is used. A loop that ends closes the generators that it has left."""
        try:
            yield
        finally:
            if self._resume is not None:
                self._resume.cancel()
            self._open.set()
            await self._client.close()

    def pause(self, seconds: float) -> None:
        """Sends nothing more for so long: the server has asked for it."""
        until = self._loop.time() + seconds
        if until > self._paused_until:
            if self._resume is not None:
                self._resume.cancel()
            self._open.clear()
            self._paused_until = until
            self._resume = self._loop.call_at(until, self._open.set)

    async def admitted(self) -> None:
        """Returns when the server's pauses and the rate admit one more request, in order of asking."""
        await self._open.wait()
        if self._throttle is not None:
            async with self._turn:
                await self._throttle.acquire()  # type: ignore[no-untyped-call]
            await self._open.wait()

    async def get(self, url: str, attempt: Attempt) -> Any:
        """The JSON answer to a GET. Raises one of `failure.CAUGHT`."""
        _attempt.set(attempt)
        async with asyncio.timeout(min(_ASK_SECONDS, self._settings.timeout)):
            return _json(await self._client.get(url, cast_to=httpx2.Response))

    async def page(self, url: str, attempt: Attempt) -> str:
        """The answer to a GET as text. Raises one of `failure.CAUGHT`."""
        _attempt.set(attempt)
        async with asyncio.timeout(min(_ASK_SECONDS, self._settings.timeout)):
            return (await self._client.get(url, cast_to=httpx2.Response)).text

    async def post(self, url: str, body: Mapping[str, Any], attempt: Attempt) -> Any:
        """The JSON answer to a POST. Raises one of `failure.CAUGHT`."""
        _attempt.set(attempt)
        async with asyncio.timeout(self._settings.timeout):
            return _json(await self._client.post(url, body=body, cast_to=httpx2.Response))

    @asynccontextmanager
    async def events(
        self, url: str, body: Mapping[str, Any], attempt: Attempt
    ) -> AsyncIterator[AsyncIterator[object]]:
        """The events of a streamed answer; leaving the block before its end closes the connection.

        Raises one of `failure.CAUGHT`.
        """
        _attempt.set(attempt)
        first = self._settings.first_token_timeout
        async with asyncio.timeout(self._settings.timeout), _until_started(first, attempt) as timer:
            # Asked for as a Response, a streamed answer comes as that, unread, whatever the stub says.
            opened: object = await self._client.post(
                url, body=body, cast_to=httpx2.Response, stream=True, stream_cls=AsyncStream[object]
            )
            response = cast(httpx2.Response, opened)
            try:
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    raise Malformed("it is no event stream")
                async with aclosing(_chunks(response, timer)) as chunks:
                    yield chunks
            finally:
                await response.aclose()


@asynccontextmanager
async def _until_started(limit: float | None, attempt: Attempt) -> AsyncIterator[asyncio.Timeout]:
    """A time limit, from when the request is sent, that is to be lifted when the first token comes.

    What was counted before (/tokenize) takes connections without permits, so a request may wait for one, and that
    is not the server's time.
    """
    timer = asyncio.timeout(None)
    if limit is not None:
        clock = asyncio.get_running_loop().time
        attempt.leaving = lambda: timer.reschedule(clock() + limit)
    try:
        async with timer:
            yield timer
    except TimeoutError as error:
        if timer.expired():
            raise FirstTokenLate from error
        raise


async def _chunks(response: httpx2.Response, timer: asyncio.Timeout) -> AsyncGenerator[object]:
    """The data of each server-sent event up to `[DONE]`; lifts the time limit at the first token."""
    waiting = timer.when() is not None
    lines = response.aiter_lines()
    try:
        async for line in lines:
            # vLLM and OpenAI write one line of data per event; comments and other fields are none.
            data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
            if not data or data == "[DONE]":
                continue
            chunk = json.loads(data)
            error = chunk.get("error") if isinstance(chunk, dict) else None
            if error:
                message = error.get("message") if isinstance(error, dict) else error
                raise openai.APIError(str(message), response.request, body=error)
            if waiting and _has_token(chunk):
                timer.reschedule(None)
                waiting = False
            yield chunk
    finally:
        # The client nests generators. Left halfway they would be ended by tasks of the event loop, some time
        # after the call; reading on in what is closed ends them here.
        await response.aclose()
        with suppress(httpx2.HTTPError, httpx2.StreamError):
            async for _ in lines:
                pass


def _has_token(chunk: object) -> bool:
    """Whether a chunk shows that decoding has begun (vLLM opens with chunks that only name the role)."""
    if not isinstance(chunk, dict):
        return False
    usage = chunk.get("usage")
    if isinstance(usage, dict) and usage.get("completion_tokens"):
        return True
    choices = chunk.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            delta = choice.get("delta")
            if choice.get("finish_reason"):
                return True
            if isinstance(delta, dict) and any(delta.get(key) for key in _DECODED):
                return True
    return False


def _json(response: httpx2.Response) -> Any:
    try:
        return json.loads(response.content)
    except UnicodeDecodeError as error:
        raise Malformed("it is no UTF-8") from error


def _throttler(rate: float | None) -> Throttler | None:
    if rate is None:
        return None
    # Whole requests per window: at least one, and windows of a second or of one request.
    count = max(1, round(rate))
    return Throttler(rate_limit=count, period=count / rate, retry_interval=min(0.01, 0.1 / rate))
