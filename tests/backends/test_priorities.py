"""Judges first: what other work waits for does not stand in line behind samples."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import stratagem as sg
from openai_kit import ASKED, connected, run
from stratagem.backends import openai as module
from stratagem.core.asking import JUDGE
from stratagem.core.backend import Request
from stratagem.testing.server import SimSettings
from stratagem.testing.toy import ToyModel


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    module.forget()
    yield
    module.forget()


def test_what_judges_are_asked_is_urgent_and_the_same() -> None:
    seen: list[Request] = []
    toy = ToyModel()

    async def main() -> None:
        runs = sg.Run({"policy": toy})
        seen.append(runs.request("How many?", 2))
        seen.append(runs.request("How many?", 2, role=JUDGE))

    asyncio.run(main())
    sample, judgement = seen
    assert (sample.priority, judgement.priority) == (0, -1)
    assert sample.key() == replace(judgement, seed=sample.seed).key()


@pytest.mark.parametrize("flavour", ["vllm", "openai"])
def test_the_server_is_told_where_it_may_be(flavour: Any) -> None:
    async def main() -> None:
        async with connected(SimSettings(flavour=flavour)) as (server, backend):
            await backend.generate(Request(ASKED, max_tokens=5))
            await backend.generate(Request(ASKED, max_tokens=5, priority=-1))
            assert server.totals().refused == 0
            priorities = [record.priority for record in server.records]
            assert priorities == ([0, -1] if flavour == "vllm" else [0, 0])

    run(main)


def test_a_server_without_priorities_refuses_once() -> None:
    async def main() -> None:
        async with connected(SimSettings(priorities=False)) as (server, backend):
            request = Request(ASKED, n=3, max_tokens=9, seed=4, priority=-1)
            first = await backend.generate(request)
            again = await backend.generate(request)
            assert first.completions == again.completions
            assert [record.outcome for record in server.records] == ["refused", "finished", "finished"]
            assert first.usage == again.usage, "what is refused unheard costs nothing"
            async with backend.stream(request) as stream:
                done = [c.completion async for c in stream if c.completion is not None]
            assert {d.text for d in done} == {c.text for c in first.completions}
            assert server.totals().refused == 1

    run(main)
