"""What an MCP server may send that is legal but rare, who believes it, and who is asked before a call of ours."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import stratagem as sg
from stratagem.tools.dag import Call
from stratagem.tools.notation import signature
from stratagem.tools.tool import Failed, Value

pytest.importorskip("mcp")
from mcp import Client

from stratagem.tools.mcp import mcp_server, mcp_tools, serve_mcp

CHILD = [sys.executable, str(Path(__file__).with_name("mcp_child.py"))]
PLAIN = {"type": "object"}


def listing(*tools: dict[str, Any]) -> list[str]:
    """The command of a server that has these tools, and tells what they were called with."""
    return [*CHILD, "raw", "tools", json.dumps([{"inputSchema": PLAIN, **each} for each in tools])]


# -- what it lists -----------------------------------------------------------------------------------------


def test_one_tool_that_cannot_be_used_takes_no_other_with_it(caplog: pytest.LogCaptureFixture) -> None:
    free = {"type": "object", "properties": {"a-b": True}, "additionalProperties": {"type": "integer"}}
    server = listing(
        {"name": "broken", "inputSchema": {"type": "object", "properties": {"a": {"type": "strange"}}}},
        {"name": "get-it", "description": "Gets.", "inputSchema": free},
    )

    async def main() -> Value | Failed:
        async with mcp_tools(server) as tools:
            assert [signature(each) for each in tools] == ["get_it(a_b?: any, **others: integer): Gets."]
            assert isinstance(await tools[0](more="x"), Failed)
            return await tools[0](a_b=None, more=7)

    with caplog.at_level(logging.WARNING, "stratagem.tools.mcp"):
        done = asyncio.run(main())
    assert isinstance(done, Value)
    told = json.loads(done.data)
    assert (told["name"], told["arguments"]) == ("get-it", {"a-b": None, "more": 7})
    [record] = [each for each in caplog.records if each.name == "stratagem.tools.mcp"]
    assert "'broken'" in record.getMessage()
    assert "its schema is none" in record.getMessage()


def test_names_that_would_be_the_same_are_kept_apart() -> None:
    async def main() -> None:
        server = listing({"name": "a-b"}, {"name": "a.b"})
        async with mcp_tools(server, prefix="one_") as one, mcp_tools(server, prefix="two_") as two:
            tools = {each.name: each for each in (*one, *two)}
            assert list(tools) == ["one_a_b", "one_a_b_", "two_a_b", "two_a_b_"]
            sg.Toolbox(tools.values())
            for name, own in (("one_a_b", "a-b"), ("two_a_b_", "a.b")):
                done = await tools[name]()
                assert isinstance(done, Value)
                assert json.loads(done.data)["name"] == own

    asyncio.run(main())


HINTED: list[dict[str, Any]] = [
    {"name": "look", "annotations": {"readOnlyHint": True}},
    {"name": "put", "annotations": {"idempotentHint": True}},
    {"name": "send"},
]


@pytest.mark.parametrize(
    ("effect", "effects"),
    [
        (None, ["destructive"] * 3),
        ("hinted", ["read_only", "idempotent", "destructive"]),
        ("idempotent", ["idempotent"] * 3),
        ({"send": "read_only"}, ["destructive", "destructive", "read_only"]),
    ],
)
def test_a_server_is_believed_only_by_who_says_so(effect: Any, effects: list[str]) -> None:
    async def main() -> list[str]:
        given = {} if effect is None else {"effect": effect}
        async with mcp_tools(listing(*HINTED), **given) as tools:
            return [each.effect for each in tools]

    assert asyncio.run(main()) == effects


def test_a_tool_that_nobody_vouches_for_is_asked_for() -> None:
    asked: list[str] = []

    async def ask(call: Call, arguments: Mapping[str, Any]) -> bool:
        asked.append(call.tool)
        return False

    async def main() -> sg.Answer:
        from stratagem.testing.language import END
        from stratagem.testing.toy import ToyModel

        def says(messages: tuple[sg.Message, ...], tokens: tuple[str, ...]) -> dict[str, float]:
            return {END: 1.0} if tokens else {"a = look()" if len(messages) == 2 else "The answer is 7.": 1.0}

        async with mcp_tools(listing(*HINTED)) as tools:
            box = sg.Toolbox(tools, approve=ask)
            return await sg.solve("What?", sg.DivideThenAggregate(), llm=ToyModel(says), tools=box)

    answer = asyncio.run(main())
    assert asked == ["look"]
    assert "not allowed" in answer.calls[0].error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"effect": "harmless"}, "Known are: read_only"),
        ({"effect": {"send": "hinted"}}, "Known are: read_only"),
        ({"effect": {"sned": "read_only"}}, "has no tool 'sned'"),
        ({"timeout": 0}, "greater than 0"),
    ],
)
def test_what_cannot_be_said_of_tools_is_refused(options: Any, words: str) -> None:
    async def main() -> None:
        async with mcp_tools(listing(*HINTED), **options):
            pass

    with pytest.raises(sg.ConfigurationError, match=words):
        asyncio.run(main())


# -- what its calls give -----------------------------------------------------------------------------------

TEXT = {"type": "text", "text": "a"}
IMAGE = {"type": "image", "mimeType": "image/png", "data": base64.b64encode(b"12345").decode()}
AUDIO = {"type": "audio", "mimeType": "audio/wav", "data": base64.b64encode(b"123456").decode()}
NOTE = {"type": "resource", "resource": {"uri": "file:///n", "mimeType": "text/plain", "text": "note"}}
BLOB = {"type": "resource", "resource": {"uri": "file:///b", "blob": base64.b64encode(b"1234").decode()}}
LINK = {"type": "resource_link", "uri": "file:///l", "name": "l", "size": 9}
PICTURE = {"type": "image", "mime_type": "image/png", "bytes": 5}


@pytest.mark.parametrize(
    ("result", "data"),
    [
        ({"content": [TEXT]}, "a"),
        ({"content": [TEXT, TEXT]}, ["a", "a"]),
        ({"content": []}, []),
        ({"content": [IMAGE]}, PICTURE),
        (
            {"content": [TEXT, AUDIO, LINK]},
            [
                "a",
                {"type": "audio", "mime_type": "audio/wav", "bytes": 6},
                {"type": "resource_link", "uri": "file:///l", "name": "l", "bytes": 9},
            ],
        ),
        (
            {"content": [NOTE, BLOB]},
            [
                {"type": "resource", "uri": "file:///n", "mime_type": "text/plain", "text": "note"},
                {"type": "resource", "uri": "file:///b", "bytes": 4},
            ],
        ),
        ({"content": [TEXT], "structuredContent": {"result": [1]}}, [1]),
        ({"content": [TEXT], "structuredContent": {"a": 1}}, {"a": 1}),
        (
            {"content": [TEXT, IMAGE], "structuredContent": {"a": 1}},
            {"result": {"a": 1}, "content": [PICTURE]},
        ),
    ],
)
def test_whatever_a_call_gives_is_told(result: dict[str, Any], data: Any) -> None:
    async def main() -> Value | Failed:
        async with mcp_tools([*CHILD, "raw", "result", json.dumps(result)]) as [tool]:
            return await tool()

    assert asyncio.run(main()) == Value(data)


def test_what_is_told_of_a_result_is_bounded_too() -> None:
    long = {"type": "resource", "resource": {"uri": "file:///n", "text": "x" * 2000}}

    async def main() -> list[Value | Failed]:
        bytes_ = {**IMAGE, "data": "A" * 40_000}
        found: list[Value | Failed] = []
        for part in (long, bytes_):
            async with mcp_tools([*CHILD, "raw", "result", json.dumps({"content": [part]})]) as [tool]:
                found.append(await tool.replace(max_bytes=1000)())
        return found

    text, image = asyncio.run(main())
    assert isinstance(text, Failed)
    assert text.why == "too_large"
    assert image == Value({**PICTURE, "bytes": 30_000})


def test_an_error_without_text_says_what_came() -> None:
    async def main() -> Value | Failed:
        result = json.dumps({"content": [IMAGE], "isError": True})
        async with mcp_tools([*CHILD, "raw", "result", result]) as [tool]:
            return await tool()

    failed = asyncio.run(main())
    assert isinstance(failed, Failed)
    assert "image/png" in failed.message


# -- its end -----------------------------------------------------------------------------------------------


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(
    sys.platform != "linux", reason="children in sessions of their own are found on Linux only"
)
@pytest.mark.parametrize(
    ("kind", "cancelled"), [("gentle", 0), ("stubborn", 0), ("stubborn", 1), ("stubborn", 2), ("stopped", 0)]
)
def test_nothing_of_a_server_outlives_its_block(kind: str, cancelled: int) -> None:
    """Also of one that ignores SIGTERM or is stopped, and when the block is cancelled, or cancelled once more while
    it ends."""

    async def main() -> list[int]:
        told: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()

        async def use() -> None:
            async with mcp_tools([*CHILD, "family", kind]) as [tool]:
                done = await tool()
                assert isinstance(done, Value)
                pids = json.loads(done.data)
                assert all(map(alive, pids))
                if kind == "stopped":
                    os.kill(pids[0], signal.SIGSTOP)
                told.set_result(pids)
                if cancelled:
                    await asyncio.Event().wait()

        using = asyncio.create_task(use())
        either: set[asyncio.Future[Any]] = {using, told}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        for _ in range(cancelled):
            using.cancel()
            await asyncio.sleep(0.1)  # it is on its way out
        await asyncio.wait({using})
        assert using.cancelled() == bool(cancelled)
        return told.result()

    pids = asyncio.run(asyncio.wait_for(main(), 60))
    try:
        soon = time.monotonic() + 5
        while any(map(alive, pids)):  # what is killed still takes a moment to be gone
            assert time.monotonic() < soon
            time.sleep(0.01)
    finally:
        for pid in filter(alive, pids):
            os.kill(pid, signal.SIGKILL)


# -- our own server ----------------------------------------------------------------------------------------


async def called(approve: Any, name: str, arguments: dict[str, Any]) -> tuple[bool, str, list[int]]:
    """Whether the call has failed, in what words, and what was ordered."""
    ordered: list[int] = []

    @sg.tool
    async def order(n: int) -> int:
        """Orders."""
        ordered.append(n)
        return n

    @sg.tool(effect="read_only")
    async def look(n: int) -> int:
        """Looks."""
        return n

    async with Client(mcp_server([order, look], approve=approve)) as client:
        result = await client.call_tool(name, arguments)
        [part] = result.content
        assert part.type == "text"
        return result.is_error, part.text, ordered


@pytest.mark.parametrize(
    ("says", "failed", "words", "ordered"),
    [
        (True, False, "3", [3]),
        (False, True, "not allowed", []),
        (None, True, "waits to be allowed", []),
        ({"n": 1}, False, "1", [1]),
        ({"n": "x"}, True, "do not fit", []),
    ],
)
def test_before_a_destructive_call_somebody_is_asked(
    says: Any, failed: bool, words: str, ordered: list[int]
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    async def approve(call: Call, arguments: Mapping[str, Any]) -> Any:
        asked.append((call.tool, dict(arguments)))
        return says

    error, text, done = asyncio.run(called(approve, "order", {"n": 3}))
    assert (error, words in text, done) == (failed, True, ordered), text
    assert asked == [("order", {"n": 3})]
    assert asyncio.run(called(approve, "look", {"n": 3})) == (False, "3", [])
    assert len(asked) == 1
    assert asyncio.run(called(None, "order", {"n": 3})) == (False, "3", [3])


def test_arguments_that_do_not_fit_are_asked_for_by_nobody() -> None:
    async def approve(call: Call, arguments: Mapping[str, Any]) -> bool:
        raise AssertionError

    error, text, _ = asyncio.run(called(approve, "order", {"n": "x"}))
    assert error
    assert "order: n:" in text


def test_over_http_somebody_is_asked_too_and_a_question_that_fails_is_no_consent() -> None:
    ordered: list[int] = []

    @sg.tool
    async def order(n: int) -> int:
        """Orders."""
        ordered.append(n)
        return n

    async def approve(call: Call, arguments: Mapping[str, Any]) -> bool:
        if arguments["n"] == 1:
            raise RuntimeError("nobody there")
        return bool(arguments["n"] == 2)

    async def main() -> list[Value | Failed]:
        url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve_mcp([order], port=0, approve=approve, started=url.set_result))
        try:
            async with mcp_tools(await url) as [tool]:
                return [await tool(n=n) for n in (1, 2, 3)]
        finally:
            serving.cancel()
            await asyncio.wait({serving})

    failed, done, refused = asyncio.run(asyncio.wait_for(main(), 60))
    assert isinstance(failed, Failed)
    assert done == Value(2)
    assert isinstance(refused, Failed)
    assert "not allowed" in refused.message
    assert ordered == [2]
