"""Several models of one server, such as LoRA adapters, in several roles behind one client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

import stratagem as sg
from openai_kit import ASKED, connected, run
from stratagem.backends import openai as module
from stratagem.core.backend import Request
from stratagem.testing.server import SimSettings


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    module.forget()
    yield
    module.forget()


def test_roles_share_connections_and_permits() -> None:
    async def main() -> None:
        settings = SimSettings(model="base", adapters=("judge",), per_token=0.002, mean_tokens=20, spread=0)
        async with connected(settings, model="base", permits=3) as (server, backend):
            judge = backend.for_model("judge")
            assert (await judge.capabilities()).model == "judge"
            assert (await judge.capabilities()).context == (await backend.capabilities()).context
            assert judge.name != backend.name
            async with asyncio.TaskGroup() as group:
                for i in range(6):
                    group.create_task(backend.generate(Request(ASKED, max_tokens=10, seed=i)))
                    group.create_task(judge.generate(Request(ASKED, max_tokens=10, seed=i)))
            assert server.totals().peak_sequences <= 3
            assert server.totals().peak_requests <= 3

    run(main)


def test_a_run_judges_with_the_adapter() -> None:
    async def main() -> None:
        models: list[str] = []
        settings = SimSettings(model="base", adapters=("judge",))

        def note(request: object) -> None:
            models.append(request.body["model"])  # type: ignore[attr-defined]

        async with connected(settings, model="base", faults=note) as (_, backend):
            strategy = sg.BestOfN(n=2, verifier=sg.Judge(), max_tokens=10)
            await sg.solve("How many?", strategy, llm=backend, judge=backend.for_model("judge"))
        assert models.count("judge") >= 2
        assert models.count("base") >= 1

    run(main)


def test_one_that_is_not_there_is_named() -> None:
    async def main() -> None:
        async with connected(SimSettings(model="base", adapters=("judge",)), model="base") as (_, backend):
            with pytest.raises(sg.ConfigurationError, match=r"no model .poet.*There are: base, judge"):
                await backend.for_model("poet").capabilities()

    run(main)
