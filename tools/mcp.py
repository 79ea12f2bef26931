"""Tools of MCP servers as ours, and ours on an MCP server, over stdio and HTTP.

Through the official library (``pip install 'stratagem[mcp]'``); see https://modelcontextprotocol.io. A server that
dies, hangs or talks nonsense is a failed call, and never a hang; the next call starts it or connects to it again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args
from uuid import uuid4

from stratagem.core.address import public
from stratagem.core.errors import ConfigurationError, MissingExtraError, root_cause
from stratagem.tools._checking import Checked
from stratagem.tools._schemas import written
from stratagem.tools.conduct import Approve, Conduct
from stratagem.tools.dag import Call
from stratagem.tools.schema_tool import schema_tool
from stratagem.tools.tool import Effect, Failed, Tool, toolbox

if TYPE_CHECKING:
    import httpx2
    import mcp.types as types
    from mcp import Client
    from mcp.server.lowlevel import Server

T = TypeVar("T")

_log = logging.getLogger(__name__)

_MOST_PAGES = 100  # of a list of tools
_CONNECT = 30.0  # seconds to connect, and to send
_PARTING = 3.0  # seconds that a server has to let go of a connection
_MARK = "STRATAGEM_MCP"  # in the environment of a server, and so of whatever it starts


@asynccontextmanager
async def mcp_tools(
    server: str | Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    auth: httpx2.Auth | None = None,
    prefix: str = "",
    effect: Effect | Literal["hinted"] | Mapping[str, Effect] = "destructive",
    timeout: float = 30.0,  # noqa: ASYNC109 - of each call later on
    connect_timeout: float = 30.0,
    secrets: Sequence[str] = (),
) -> AsyncIterator[list[Tool]]:
    """The tools of an MCP server, for as long as the block lasts.

    A tool whose schema nothing can be made of is left out, and the logger ``stratagem.tools.mcp`` warns of it. Of
    images, audio and other bytes in a result, kind, MIME type and size are given. Other limits than the time-out
    are set by :meth:`stratagem.tools.tool.Tool.replace`.

    Args:
        server: the URL of one, or the command that starts one, which then ends with the block: asked to end, and
            killed if it does not within seconds. On Linux all that it has started is killed too.
        env: further environment of that command, which else gets the few variables that are safe to pass on.
        headers: sent to a URL with each request, as ``{"Authorization": "Bearer ..."}``. Their values are masked as
            ``secrets`` are.
        auth: signs requests to a URL, as the OAuth providers of the library do.
        prefix: of all names, for servers whose tools have the same ones: ``weather_``.
        effect: what a second call of a tool does, of all or by the server's own names of them. A server's hints are
            its own word, on which the protocol says not to rely; so by default, and where a mapping says nothing,
            all are ``destructive``: asked for where there is anybody to ask, never retried, never shared.
            ``"hinted"`` trusts the server: ``readOnlyHint`` is ``read_only``, ``idempotentHint`` ``idempotent``.
        timeout: seconds of each call.
        connect_timeout: seconds until the server has told its tools.
        secrets: values, such as those of ``env``, to mask in results, failures and traces.

    Raises:
        MissingExtraError: the library is not installed.
        ConfigurationError: there is no such server, it does not answer or breaks the protocol; or ``effect`` has a
            value or names a tool that there is not.
    """
    effects = effect.values() if isinstance(effect, Mapping) else [effect]
    known = get_args(Effect) if isinstance(effect, Mapping) else (*get_args(Effect), "hinted")
    if unknown := [each for each in effects if each not in known]:
        raise ConfigurationError(
            f"MCP tools: effect {unknown[0]!r}.", remedy=f"Known are: {', '.join(known)}."
        )
    try:
        from mcp import Client, StdioServerParameters
    except ImportError as error:
        raise MissingExtraError("MCP servers", "mcp") from error
    where: Any = server
    mark = ""
    if not isinstance(server, str):
        if not server:
            raise ConfigurationError("The command of the MCP server is empty.")
        mark = uuid4().hex
        # Servers that this process's own server may have started bear its mark as well.
        environment = {**(env or {}), _MARK: os.environ.get(_MARK, "") + mark}
        where = StdioServerParameters(command=server[0], args=list(server[1:]), env=environment)
    elif not server.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"{public(server)!r} is no URL of an MCP server.", remedy="Give a URL, or a command as a list."
        )
    if headers or auth is not None:
        if not isinstance(server, str):
            raise ConfigurationError(
                "headers and auth are for the URL of an MCP server.",
                remedy="Give a command its secrets by env.",
            )
        secrets = (*secrets, *_parts(headers or {}))
    connected = _Server(
        lambda: Client(_over_http(server, headers, auth) if isinstance(server, str) else where),
        None if isinstance(server, str) else partial(_kill, mark.encode()),
    )
    try:
        try:
            async with asyncio.timeout(connect_timeout):
                listed = await connected.call(_listed)
        except TimeoutError as error:
            raise ConfigurationError(
                f"The MCP server {_shown(server)} did not answer within {connect_timeout:g} s."
            ) from error
        except Exception as error:  # what the library raises for it is not one tree
            why = _cause(root_cause(error), server, secrets)
            raise ConfigurationError(f"The MCP server {_shown(server)} cannot be used: {why}.") from error
        if isinstance(effect, Mapping) and (unnamed := sorted(effect.keys() - listed.keys())):
            raise ConfigurationError(
                f"The MCP server {_shown(server)} has no tool {unnamed[0]!r}.",
                remedy=f"effect= may name: {', '.join(listed) or 'none'}.",
            )
        names = written(prefix + each for each in listed)
        tools: list[Tool] = []
        for key, told in listed.items():
            try:
                tool = _of(connected, told, names[prefix + key], secrets)
            except ConfigurationError as error:
                _log.warning("Tool %r of the MCP server %s is left out. %s", key, _shown(server), error)
            else:
                tools.append(tool.replace(effect=_effect(told, effect), timeout=timeout))
        yield tools
    finally:
        await connected.leave()


@asynccontextmanager
async def _over_http(
    url: str, headers: Mapping[str, str] | None, auth: httpx2.Auth | None
) -> AsyncIterator[Any]:
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    # An answer may take as long as the call, which has a limit of its own.
    limits = httpx2.Timeout(_CONNECT, read=None)
    async with (
        httpx2.AsyncClient(headers=dict(headers or {}), auth=auth, timeout=limits) as client,
        streamable_http_client(url, http_client=client) as streams,
    ):
        yield streams


def _parts(headers: Mapping[str, str]) -> Iterator[str]:
    """What to mask of the headers: their values, and what stands after a scheme such as Bearer."""
    for value in headers.values():
        yield from (value, value.rpartition(" ")[2])


class _Server:
    """What calls go to: a connection, and another one after it has broken."""

    def __init__(self, client: Callable[[], Client], kill: Callable[[], None] | None) -> None:
        self._client = client
        self._kill = kill
        self._connection: _Connection | None = None
        self._opening = asyncio.Lock()
        self._left = False

    async def call(self, use: Callable[[Client], Awaitable[T]]) -> T:
        """Use a client. Cancelling this cancels the request on the server.

        A call during which the connection breaks is not made again: the server may have done it.

        Raises:
            ConnectionError: the server is gone, or the block has ended.
        """
        async with self._opening:
            if self._connection is not None and self._connection.broken:
                await self._connection.close()
                self._connection = None
            if self._left:
                raise ConnectionError("the block of mcp_tools has ended")
            if self._connection is None:
                self._connection = _Connection(self._client(), self._kill)
            connection = self._connection
        return await connection.call(use)

    async def leave(self) -> None:
        """Close the connection for good, which ends a server that it has started."""
        self._left = True
        if self._connection is not None:
            await self._connection.close()


class _Connection:
    """A client in a task of its own: a server that dies must not cancel whoever uses its tools."""

    def __init__(self, client: Client, kill: Callable[[], None] | None) -> None:
        self._client = client
        self._kill = kill
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._leave = asyncio.Event()
        self.broken = False
        self._holding = asyncio.create_task(self._hold())

    async def _hold(self) -> None:
        """Keep the connection until told to leave, or until it breaks."""
        try:
            async with self._client:
                # The library would look for a server's patterns in what it gives, which may take for ever;
                # :func:`_of` checks the rest.
                self._client.session.validate_tool_result = _unchecked  # type: ignore[method-assign]
                self._ready.set_result(None)
                await self._leave.wait()
        except Exception as error:
            if not self._ready.done():
                self._ready.set_exception(root_cause(error))
                self._ready.exception()  # whoever waited for it may have been cancelled
        finally:
            self.broken = True
            if not self._ready.done():  # left before it was connected
                self._ready.set_exception(ConnectionError("the block of mcp_tools has ended"))
                self._ready.exception()

    async def call(self, use: Callable[[Client], Awaitable[T]]) -> T:
        """Use the client, once it is connected.

        Raises:
            ConnectionError: the server is gone.
        """
        await asyncio.shield(self._ready)
        using = asyncio.ensure_future(use(self._client))
        try:
            either: set[asyncio.Future[Any]] = {using, self._holding}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not using.done():
                raise ConnectionError("the server is gone")
            return using.result()
        except Exception as error:
            self.broken = self.broken or _closed(error)
            raise
        finally:
            using.cancel()
            await asyncio.wait({using})

    async def close(self) -> None:
        """End it, whether it is connected or not yet, and whatever the server has started, even when cancelled."""
        self._leave.set()
        if not self._ready.done():
            self._holding.cancel()
        try:
            # Cancelled before it has ended a server, the library would leave it behind.
            for end in (self._kill, self._holding.cancel) if self._kill else (self._holding.cancel,):
                if (await asyncio.wait({self._holding}, timeout=_PARTING))[0]:
                    return
                end()
            await asyncio.wait({self._holding}, timeout=_PARTING)
        finally:
            if self._kill:
                self._kill()


def _kill(mark: bytes) -> None:
    """Kill all processes with a mark in their environment, where the system shows it (Linux). Unlike a process
    group it stays with children in sessions of their own, such as browsers."""
    killed: set[int] = set()
    while found := set(_marked(mark)) - killed:  # again: one may just have started another
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= found


def _marked(mark: bytes) -> Iterator[int]:
    for each in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is somebody else's
            if mark in each.read_bytes():
                yield int(each.parent.name)


def mcp_server(
    tools: Iterable[Tool], *, name: str = "stratagem", approve: Approve | None = None
) -> Server[Any]:
    """A server of the official library with these tools; :func:`serve_mcp` runs one, and explains ``approve``.

    Raises:
        MissingExtraError: the library is not installed.
        ConfigurationError: two tools have one name.
    """
    try:
        from mcp import types
        from mcp.server.lowlevel import Server
    except ImportError as error:
        raise MissingExtraError("MCP servers", "mcp") from error
    box = toolbox(*tools)
    conduct = Conduct(approve=approve)

    async def listing(_: Any, __: Any) -> types.ListToolsResult:
        return types.ListToolsResult(
            tools=[
                types.Tool(
                    name=each.name,
                    description=each.description,
                    input_schema=each.parameters,
                    annotations=types.ToolAnnotations(
                        read_only_hint=each.effect == "read_only",
                        idempotent_hint=each.effect != "destructive",
                        destructive_hint=each.effect == "destructive",
                    ),
                )
                for each in box.values()
            ]
        )

    async def calling(context: Any, asked: types.CallToolRequestParams) -> types.CallToolResult:
        if asked.name not in box:
            return _told(types, f"There is no tool {asked.name!r}.", None, failed=True)
        arguments = asked.arguments or {}
        # Not validated: data that looks like a reference is data here.
        call = Call.model_construct(id=str(context.request_id), tool=asked.name, arguments=arguments)
        outcome = await conduct.make(call, box[asked.name], arguments, {}, None)
        if isinstance(outcome, Failed):
            return _told(types, outcome.message, None, failed=True)
        return _told(
            types, json.dumps(outcome.data, ensure_ascii=False), {"result": outcome.data}, failed=False
        )

    return Server(name, on_list_tools=listing, on_call_tool=calling)


async def serve_mcp(
    tools: Iterable[Tool],
    *,
    name: str = "stratagem",
    port: int | None = None,
    host: str = "127.0.0.1",
    approve: Approve | None = None,
    started: Callable[[str], None] | None = None,
) -> None:
    """Serve tools until cancelled, or until the other side ends.

    Args:
        port: of HTTP (0: any that is free); ``None`` serves over this process's stdin and stdout.
        host: loopback, unless told otherwise. There is no log-in: whoever reaches it may call every tool that
            ``approve`` does not stand before.
        approve: asked before each call of a destructive tool, as :class:`~stratagem.tools.toolbox.Toolbox` asks; a
            call that is not allowed, or not yet, is an error that the other side reads. Without it none is asked.
        started: told the URL once it listens.

    Raises:
        ConfigurationError: the port is taken.
    """
    server = mcp_server(tools, name=name, approve=approve)
    if port is None:
        from mcp.server.stdio import stdio_server

        async with stdio_server() as (reading, writing):
            await server.run(reading, writing, server.create_initialization_options())
        return
    import uvicorn

    try:
        listening = socket.create_server((host, port))
    except OSError as error:
        raise ConfigurationError(f"Cannot listen on {host}:{port}: {error.strerror}.") from None
    with listening:
        if started is not None:
            started(f"http://{host}:{listening.getsockname()[1]}/mcp")
        app = server.streamable_http_app(host=host)
        await uvicorn.Server(uvicorn.Config(app, log_level="warning")).serve(sockets=[listening])


def _told(kinds: Any, text: str, structured: dict[str, Any] | None, *, failed: bool) -> types.CallToolResult:
    content = [kinds.TextContent(type="text", text=text)]
    result: types.CallToolResult = kinds.CallToolResult(
        content=content, structured_content=structured, is_error=failed
    )
    return result


async def _listed(client: Client) -> dict[str, types.Tool]:
    found: dict[str, types.Tool] = {}
    cursor: str | None = None
    for _ in range(_MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        found |= {each.name: each for each in page.tools}
        cursor = page.next_cursor
        if not cursor:
            break
    return found


class _ToolError(Exception):
    """A server says that a call has failed, or gives what it says it does not."""


async def _unchecked(name: str, result: types.CallToolResult) -> None:
    """In place of the library's check of results."""


def _of(server: _Server, told: types.Tool, name: str, secrets: Sequence[str]) -> Tool:
    try:
        results = None if told.output_schema is None else Checked(told.output_schema)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"Tool {name!r}: the schema of its results is none: {error}.") from None

    async def function(**arguments: Any) -> Any:
        result = await server.call(lambda client: client.call_tool(told.name, arguments))
        if result.is_error:
            parts = [part if isinstance(part, str) else json.dumps(part) for part in _contents(result)]
            raise _ToolError(" ".join(parts) or "no reason given")
        if results is not None:
            try:
                results.validate_python(result.structured_content)
            except ValueError as error:
                raise _ToolError(f"gave what its schema does not allow: {error}") from None
        return _data(result)

    return schema_tool(name, told.description or told.name, told.input_schema, function, secrets=secrets)


def _data(result: types.CallToolResult) -> Any:
    """What a call gave; text beside structured data says the same once more."""
    parts = _contents(result)
    data = result.structured_content
    if data is None:
        return parts[0] if len(parts) == 1 else parts
    if isinstance(data, dict) and data.keys() == {"result"}:
        data = data["result"]
    others = [part for part in parts if not isinstance(part, str)]
    return {"result": data, "content": others} if others else data


def _contents(result: types.CallToolResult) -> list[str | dict[str, Any]]:
    """Texts, and of anything else what it is: a model has no use for its bytes."""
    parts: list[str | dict[str, Any]] = []
    for each in result.content:
        if each.type == "text":
            parts.append(each.text)
            continue
        held: Any = each.resource if each.type == "resource" else each
        told = held.model_dump(mode="json", include={"uri", "name", "mime_type", "text", "description"})
        data = getattr(held, "data", getattr(held, "blob", None))
        told["bytes"] = (
            getattr(held, "size", None) if data is None else len(data) * 3 // 4 - data.count("=", -2)
        )
        parts.append({"type": each.type, **{key: value for key, value in told.items() if value is not None}})
    return parts


def _effect(told: types.Tool, effect: Effect | Literal["hinted"] | Mapping[str, Effect]) -> Effect:
    if isinstance(effect, Mapping):
        return effect.get(told.name, "destructive")
    if effect != "hinted":
        return effect
    hints = told.annotations
    if hints is not None and hints.read_only_hint:
        return "read_only"
    return "idempotent" if hints is not None and hints.idempotent_hint else "destructive"


def _closed(error: Exception) -> bool:
    """Whether the library says that the connection or the session is gone; servers use its codes for their own
    errors."""
    from mcp import MCPError
    from mcp.types import CONNECTION_CLOSED, INVALID_REQUEST

    gone = ((CONNECTION_CLOSED, "Connection closed"), (INVALID_REQUEST, "Session terminated"))
    return isinstance(error, MCPError) and (error.code, error.message) in gone


def _shown(server: str | Sequence[str]) -> str:
    return public(server) if isinstance(server, str) else repr(server[0])


def _cause(error: BaseException, server: str | Sequence[str], secrets: Sequence[str]) -> str:
    told = f"{type(error).__name__}: {error}".rstrip(".: ")
    if isinstance(server, str):
        told = told.replace(server, public(server))
    for secret in sorted(secrets, key=len, reverse=True):
        told = told.replace(secret, "***") if secret else told
    return told
