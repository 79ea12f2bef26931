"""Tools of LangChain and of MCP servers as ours, and ours as theirs, with real servers in processes of their
own."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from langchain_core.tools import BaseTool
from langchain_core.tools import tool as langchain_tool
from langgraph.graph import MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

import stratagem as sg
from stratagem.testing.language import END, Distribution
from stratagem.testing.toy import ToyModel
from stratagem.tools.langchain import from_langchain, to_langchain
from stratagem.tools.mcp import mcp_tools, serve_mcp
from stratagem.tools.notation import signature
from stratagem.tools.schema_tool import schema_tool
from stratagem.tools.tool import Failed, Tool, Value

CHILD = [sys.executable, str(Path(__file__).with_name("mcp_child.py"))]


# -- LangChain ---------------------------------------------------------------------------------------------


@langchain_tool
async def price(item: str, day: int = 1) -> float:
    """Price of an item."""
    if item == "moon":
        raise ValueError("not for sale")
    return len(item) * day / 2


def test_a_tool_of_langchain_is_called_with_its_schema_checked() -> None:
    ours = from_langchain(price, effect="read_only")
    assert signature(ours) == "price(item: string, day: integer = 1): Price of an item."

    async def main() -> None:
        assert await ours(item="pens", day=3) == Value(6.0)
        assert await ours(item="pens") == Value(2.0)
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"item": 3}, "not of type 'string'"),
            ({}, "needs 'item'"),
            ({"item": "a", "x": 1}, "no parameter 'x'"),
        ]
        for arguments, words in wrong:
            failed = await ours(**arguments)
            assert isinstance(failed, Failed)
            assert (failed.why, words in failed.message) == ("arguments", True), failed
        failed = await ours(item="moon")
        assert isinstance(failed, Failed)
        assert "not for sale" in failed.message

    asyncio.run(main())


def test_sync_tools_of_langchain_that_hang_hold_up_neither_others_nor_the_end() -> None:
    go_on, returned = threading.Event(), list[int]()

    @langchain_tool
    def hangs(i: int) -> None:
        """Takes long."""
        go_on.wait(20)
        returned.append(i)

    @langchain_tool
    def quick(i: int) -> int:
        """Returns at once."""
        return i

    async def main() -> tuple[Value | Failed, Value | Failed]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        hung = await from_langchain(hangs, timeout=0.2)(i=1)
        return hung, await from_langchain(quick, timeout=10)(i=2)

    hung, done = asyncio.run(main())
    assert returned == []
    go_on.set()
    assert isinstance(hung, Failed)
    assert hung.why == "timeout"
    assert done == Value(2)


@pytest.mark.parametrize("blocks", [True, False])
def test_a_tool_of_langchain_runs_where_its_kind_belongs(blocks: bool) -> None:
    """A coroutine of its own in the event loop, a plain function not."""

    class Own(BaseTool):
        name: str = "own"
        description: str = "Where it runs."

        def _run(self) -> bool:
            return threading.current_thread() is threading.main_thread()

        if not blocks:

            async def _arun(self) -> bool:
                return self._run()

    assert asyncio.run(from_langchain(Own())()) == Value(not blocks)


def test_our_tools_work_in_langgraphs_tool_node() -> None:
    @sg.tool
    async def double(n: int) -> int:
        """Twice n."""
        if n > 100:
            raise ValueError("too large")
        return 2 * n

    async def main() -> list[str]:
        graph = StateGraph(MessagesState)
        graph.add_node("tools", ToolNode([to_langchain(double)]))
        graph.set_entry_point("tools")
        calls = [
            {"name": "double", "args": {"n": n}, "id": str(n), "type": "tool_call"} for n in (4, 101, "x")
        ]
        message: Any = {"role": "assistant", "content": "", "tool_calls": calls}
        given: Any = {"messages": [message]}
        state = await graph.compile().ainvoke(given)
        return [m.content for m in state["messages"][1:]]

    good, failed, wrong = asyncio.run(main())
    assert good == "8"
    assert "too large" in failed
    assert "valid integer" in wrong


def test_what_is_no_tool_or_no_schema_is_refused() -> None:
    async def nothing() -> None:
        """Nothing."""

    with pytest.raises(sg.ConfigurationError, match="no tool of LangChain's"):
        from_langchain(nothing)  # type: ignore[arg-type]
    with pytest.raises(sg.ConfigurationError, match="its schema is none"):
        schema_tool("x", "X.", {"properties": {"a": {"type": "strange"}}}, nothing)
    with pytest.raises(sg.ConfigurationError, match="not of an object"):
        schema_tool("x", "X.", {"type": "array"}, nothing)
    assert schema_tool("read-file.v2", "R.", {}, nothing).name == "read_file_v2"
    assert schema_tool("2nd", "R.", {}, nothing).name == "_2nd"


def test_arguments_are_checked_by_all_of_a_schema_but_nothing_is_fetched() -> None:
    """References within the schema are followed; one to elsewhere (which may be an address inside our network) is
    not."""

    async def echo(**arguments: Any) -> Any:
        return arguments

    asked: list[str] = []

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append((await reader.readline()).decode())
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            schema = {
                "$defs": {"day": {"type": "integer", "minimum": 1}},
                "properties": {
                    "first": {"$ref": "#/$defs/day"},
                    "last": {"$ref": "#/properties/first"},
                    "other": {"$ref": f"http://127.0.0.1:{port}/schema.json"},
                },
            }
            tool = schema_tool("x", "X.", schema, echo)
            assert await tool(first=1, last=2) == Value({"first": 1, "last": 2})
            for wrong in ({"first": 0}, {"last": 0}, {"other": 1}):
                failed = await asyncio.to_thread(tool.check, wrong)
                assert isinstance(failed, Failed)
                assert failed.why == "arguments"

    asyncio.run(main())
    assert asked == []


# -- MCP ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def over(transport: str, limit: float = 20.0) -> AsyncIterator[dict[str, Tool]]:
    """The tools of the child, over stdio or HTTP."""
    if transport == "stdio":
        async with mcp_tools([*CHILD, "stdio"], timeout=limit, effect="hinted") as tools:
            yield {each.name: each for each in tools}
        return
    child = await asyncio.create_subprocess_exec(*CHILD, "http", stdout=asyncio.subprocess.PIPE)
    try:
        assert child.stdout is not None
        url = (await child.stdout.readline()).decode().strip()
        async with mcp_tools(url, timeout=limit, effect="hinted") as tools:
            yield {each.name: each for each in tools}
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def until(note: Path, text: str) -> None:
    async with asyncio.timeout(20):
        while not note.exists() or note.read_text() != text:  # noqa: ASYNC110, ASYNC240 - another process writes it
            await asyncio.sleep(0.05)


@pytest.fixture(params=["stdio", "http"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_tools_of_a_server(transport: str) -> None:
    async def main() -> None:
        async with over(transport) as tools:
            assert {name: each.effect for name, each in tools.items()} == {
                "add": "read_only", "record": "idempotent", "fail": "destructive", "hang": "destructive",
                "die": "destructive",
            }  # fmt: skip
            assert signature(tools["add"]) == "add(a: integer, b: integer = 1): a and b together."
            both = await asyncio.gather(tools["add"](a=2, b=3), tools["record"](n=3))
            assert list(both) == [Value(5), Value({"below": [0, 1, 2]})]
            failed = await tools["fail"](why="because")
            assert isinstance(failed, Failed)
            assert "ValueError: because" in failed.message
            wrong = await tools["add"](a="x")
            assert isinstance(wrong, Failed)
            assert wrong.why == "arguments"

    asyncio.run(main())


def test_an_agent_calls_tools_of_a_server() -> None:
    def says(messages: tuple[sg.Message, ...], tokens: tuple[str, ...]) -> Distribution:
        plan = "a = record(3)\nb = add(a.below[2], 5)"
        return {END: 1.0} if tokens else {plan if len(messages) == 2 else "The answer is 7.": 1.0}

    async def main() -> sg.Answer:
        async with over("stdio") as tools:
            return await sg.solve("What?", sg.DivideThenAggregate(), llm=ToyModel(says), tools=tools.values())

    answer = asyncio.run(main())
    assert [call.result for call in answer.calls] == [{"below": [0, 1, 2]}, 7]


def test_a_server_that_dies_fails_all_calls_that_it_has(transport: str, tmp_path: Path) -> None:
    """At once, not when their time is up; a server that we have started is started again by the next call."""

    async def main() -> None:
        async with over(transport) as tools:
            notes = [tmp_path / str(i) for i in range(3)]
            calls = [asyncio.ensure_future(tools["hang"](note=str(note))) for note in notes]
            for note in notes:
                await until(note, "begun")
            for outcome in [await tools["die"](), *await asyncio.gather(*calls)]:
                assert isinstance(outcome, Failed)
                assert outcome.why == "error"
            after = await tools["add"](a=1)
            assert after == Value(2) if transport == "stdio" else isinstance(after, Failed)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_server_that_is_back_is_used_again() -> None:
    async def child(port: str) -> tuple[asyncio.subprocess.Process, str]:
        made = await asyncio.create_subprocess_exec(*CHILD, "http", port, stdout=asyncio.subprocess.PIPE)
        assert made.stdout is not None
        return made, (await made.stdout.readline()).decode().strip()

    async def main() -> None:
        first, url = await child("0")
        async with mcp_tools(url) as listed:
            tools = {each.name: each for each in listed}
            first.kill()
            await first.wait()
            assert isinstance(await tools["add"](a=1), Failed)
            second, _ = await child(url.rpartition(":")[2].partition("/")[0])
            assert await tools["add"](a=1) == Value(2)
            second.kill()
            await second.wait()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_call_that_takes_too_long_is_cancelled_on_the_server(transport: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with over(transport, limit=2.0) as tools:
            outcome = await tools["hang"](note=str(tmp_path / "note"))
            assert isinstance(outcome, Failed)
            assert outcome.why == "timeout"
            await until(tmp_path / "note", "cancelled")
            assert await tools["add"](a=1) == Value(2)

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize(
    ("kind", "why", "words"),
    [
        ("noise", None, ""),
        ("malformed", "error", "ValidationError"),
        ("refusal", "error", "no way"),
        ("half", "timeout", "longer than 1 s"),
        ("deaf", "error", "Connection closed"),
        ("huge", "too_large", "3000002 bytes"),
    ],
)
def test_a_server_that_answers_badly_is_a_failed_call(kind: str, why: str | None, words: str) -> None:
    async def main() -> Value | Failed:
        async with mcp_tools([*CHILD, "raw", kind], timeout=1.0) as [tool]:
            return await tool()

    outcome = asyncio.run(asyncio.wait_for(main(), 60))
    if isinstance(outcome, Value):
        assert (why, outcome.data) == (None, "fine")
    else:
        assert (outcome.why, words in outcome.message) == (why, True), outcome


@asynccontextmanager
async def keeping_sessions(kind: str) -> AsyncIterator[str]:
    child = await asyncio.create_subprocess_exec(*CHILD, "sessions", kind, stdout=asyncio.subprocess.PIPE)
    try:
        assert child.stdout is not None
        yield (await child.stdout.readline()).decode().strip()
    finally:
        child.kill()
        await child.wait()


def test_a_session_that_the_server_lost_is_begun_anew_by_the_next_call() -> None:
    async def main() -> list[Value | Failed]:
        async with keeping_sessions("") as url, mcp_tools(url, timeout=10.0) as [forget]:
            return [await forget() for _ in range(3)]

    first, lost, again = asyncio.run(asyncio.wait_for(main(), 60))
    assert first == again == Value("forgotten")
    assert isinstance(lost, Failed)
    assert lost.why == "error"


def test_a_server_that_does_not_let_go_does_not_hold_up_the_end() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        async with keeping_sessions("hang") as url:
            async with mcp_tools(url, timeout=10.0) as [forget]:
                await forget()
                ending = loop.time()
            return loop.time() - ending

    assert asyncio.run(asyncio.wait_for(main(), 60)) < 30  # the library alone waits for minutes


def test_a_password_in_a_url_is_in_no_error() -> None:
    async def main(url: str) -> None:
        async with mcp_tools(url, connect_timeout=10.0):
            pass

    for url in ("http://me:hunter2@127.0.0.1:9/mcp?key=hunter2", "ftp://me:hunter2@127.0.0.1/mcp"):
        with pytest.raises(sg.ConfigurationError) as caught:
            asyncio.run(main(url))
        assert "hunter2" not in str(caught.value)
        assert "127.0.0.1" in str(caught.value)


def test_after_its_block_a_tool_starts_no_server() -> None:
    async def main() -> Value | Failed:
        async with over("stdio") as tools:
            pass
        return await tools["add"](a=1)

    outcome = asyncio.run(main())
    assert isinstance(outcome, Failed)
    assert "block of mcp_tools has ended" in outcome.message


def test_secrets_of_a_servers_tools_are_masked() -> None:
    async def main() -> list[Value | Failed]:
        async with mcp_tools([*CHILD, "stdio"], secrets=["hunter2"]) as listed:
            tools = {each.name: each for each in listed}
            return [await tools["fail"](why="401 for hunter2")]

    [outcome] = asyncio.run(main())
    assert isinstance(outcome, Failed)
    assert outcome.message.endswith("401 for ***")


def test_cancelling_a_call_reaches_the_server(transport: str, tmp_path: Path) -> None:
    note = tmp_path / "note"

    async def main() -> None:
        async with over(transport) as tools:
            call = asyncio.ensure_future(tools["hang"](note=str(note)))
            await until(note, "begun")
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await until(note, "cancelled")
            assert await tools["add"](a=1) == Value(2)  # the connection lives

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["garbage", "silent", "gone"])
def test_a_server_that_talks_nonsense_is_one_clear_error(kind: str) -> None:
    async def main() -> None:
        async with mcp_tools([*CHILD, kind], connect_timeout=4.0):
            pass

    with pytest.raises(sg.ConfigurationError, match=r"The MCP server .* (cannot be used|did not answer)"):
        asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ("localhost:1", "no URL"),
        ([], "is empty"),
        (["/no/such/program"], "cannot be used"),
        ("http://127.0.0.1:9/mcp", "cannot be used"),
    ],
)
def test_no_server_is_one_clear_error(server: Any, words: str) -> None:
    async def main() -> None:
        async with mcp_tools(server, connect_timeout=10.0):
            pass

    with pytest.raises(sg.ConfigurationError, match=words):
        asyncio.run(main())


def test_a_taken_port_is_one_clear_error() -> None:
    async def main() -> None:
        async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
            await serve_mcp([], port=server.sockets[0].getsockname()[1])

    with pytest.raises(sg.ConfigurationError, match="Cannot listen"):
        asyncio.run(main())
