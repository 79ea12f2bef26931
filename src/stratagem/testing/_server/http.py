"""HTTP/1.1 over asyncio, parsed by h11: keep-alive, chunked streaming, and a hang-up seen at once.

Each request is answered by a task; when the client hangs up the task is cancelled, so that a handler learns
of it at its next await.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import h11


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A whole request; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


Handler = Callable[["Exchange"], Awaitable[None]]


class Exchange:
    """One request and the answer to it: `send` a whole one, or `begin`, `write` and `end` a streamed one."""

    def __init__(self, connection: "HttpConnection", request: HttpRequest) -> None:
        self._connection = connection
        self.request = request

    def send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Sends a whole answer."""
        length = {"content-length": str(len(body))}
        self._connection.send(h11.Response(status_code=status, headers=list({**headers, **length}.items())))
        self._connection.send(h11.Data(data=body))
        self._connection.send(h11.EndOfMessage())

    def send_json(self, status: int, value: object, headers: Mapping[str, str] | None = None) -> None:
        """Sends a whole JSON answer."""
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        self.send(status, body, {"content-type": "application/json", **(headers or {})})

    def begin(self, headers: Mapping[str, str]) -> None:
        """Starts a streamed answer of unknown length (status 200)."""
        self._connection.send(h11.Response(status_code=200, headers=list(headers.items())))

    async def write(self, data: bytes) -> None:
        """Sends a piece of a streamed answer and waits while the client reads too slowly."""
        self._connection.send(h11.Data(data=data))
        await self._connection.drained()

    def end(self) -> None:
        """Ends a streamed answer."""
        self._connection.send(h11.EndOfMessage())

    def drop(self) -> None:
        """Resets the connection without a further byte."""
        self._connection.reset()


class HttpServer:
    """The listening socket, its connections and their tasks."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._live: set[HttpConnection] = set()
        self.opened = 0
        self.peak = 0
        self.error: BaseException | None = None

    @property
    def open(self) -> int:
        """Connections open now."""
        return len(self._live)

    async def start(self, host: str, port: int) -> int:
        """Listens; returns the port (a free one for port 0)."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: HttpConnection(self), host, port)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        """Stops listening, resets every connection and waits for all tasks to end."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._live):
            connection.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    def joined(self, connection: "HttpConnection") -> None:
        self._live.add(connection)
        self.opened += 1
        self.peak = max(self.peak, len(self._live))

    def left(self, connection: "HttpConnection") -> None:
        self._live.discard(connection)

    def answer(self, exchange: Exchange) -> asyncio.Task[None]:
        task = asyncio.ensure_future(self._answer(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _answer(self, exchange: Exchange) -> None:
        try:
            await self._handler(exchange)
        except Exception as error:
            # A broken responder or hook is the test's own error: the client sees the connection drop, and
            # whoever closes the server gets the exception.
            self.error = self.error or error
            exchange.drop()


class HttpConnection(asyncio.Protocol):
    """One client connection."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._parser = h11.Connection(h11.SERVER)
        self._head: h11.Request | None = None
        self._body = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.joined(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._writable.set()
        self._server.left(self)
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._parser.receive_data(data)
        self._advance()

    def send(self, event: h11.Event) -> None:
        data = self._parser.send(event)
        if self._transport is not None and not self._transport.is_closing() and data:
            self._transport.write(data)

    async def drained(self) -> None:
        await self._writable.wait()

    def reset(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _advance(self) -> None:
        """Reads on until a request is whole; the next one waits until this one is answered."""
        while self._task is None:
            try:
                event = self._parser.next_event()
            except h11.RemoteProtocolError:
                self._finish()
                return
            if isinstance(event, h11.Request):
                self._head = event
                self._body.clear()
                if self._parser.they_are_waiting_for_100_continue:
                    self.send(h11.InformationalResponse(status_code=100, headers=[]))
            elif isinstance(event, h11.Data):
                self._body += event.data
            elif isinstance(event, h11.EndOfMessage) and self._head is not None:
                request = HttpRequest(
                    self._head.method.decode("ascii"),
                    self._head.target.decode("ascii").partition("?")[0],
                    {name.decode("latin-1"): value.decode("latin-1") for name, value in self._head.headers},
                    bytes(self._body),
                )
                self._task = self._server.answer(Exchange(self, request))
                self._task.add_done_callback(self._answered)
            elif isinstance(event, h11.ConnectionClosed):
                self._finish()
                return
            else:
                return

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if self._transport is None:
            return
        if self._parser.our_state is h11.DONE and self._parser.their_state is h11.DONE:
            self._parser.start_next_cycle()
            self._advance()
        else:
            self._finish()

    def _finish(self) -> None:
        if self._transport is not None:
            self._transport.close()
