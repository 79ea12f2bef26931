"""Counting prompts at the server takes connections without permits: their number holds all the same."""

from __future__ import annotations

import asyncio
import random

import stratagem as sg
from openai_kit import connected, run
from stratagem.backends._openai.call import CHAT
from stratagem.backends._openai.endpoint import Attempt, Endpoint, Settings
from stratagem.testing.server import Fault, SimRequest, SimSettings, SimulatedServer

PERMITS = 3


def test_connections_stay_within_the_permits_when_prompts_are_counted_and_runs_cancelled() -> None:
    rng = random.Random(4)

    async def main() -> None:
        async with connected(SimSettings(mean_tokens=10), permits=PERMITS) as (server, backend):
            await backend.capabilities()
            begun = server.totals()

            async def solve(i: int) -> None:
                question = f"What is {i} + 3?"
                # Each candidate is judged by a prompt of its own, which is counted before.
                await sg.solve(question, sg.BestOfN(n=3), llm=backend, budget="tokens=100000")

            tasks = [asyncio.create_task(solve(i)) for i in range(40)]
            await server.until(lambda totals: totals.finished >= 20)
            for task in rng.sample(tasks, 20):
                task.cancel()
            await asyncio.wait(tasks)
            assert all(task.cancelled() or task.exception() is None for task in tasks)
            assert any(task.cancelled() for task in tasks)
            totals = server.totals()
            assert totals.other_requests - begun.other_requests > 40
            assert totals.peak_connections == PERMITS

    run(main)


def test_waiting_for_a_connection_is_not_waiting_for_the_first_token() -> None:
    def slow_first(request: SimRequest) -> Fault | None:
        return Fault("slow", delay=4.0) if request.number == 0 else None

    async def main() -> None:
        async with SimulatedServer(SimSettings(), faults=slow_first) as server:
            endpoint = await Endpoint.opened(Settings(server.url, "none", 1, None, 60.0, 2.0))
            body = {"model": server.settings.model, "messages": [{"role": "user", "content": "Hm?"}]}
            holding = asyncio.create_task(endpoint.post(CHAT, body, Attempt()))
            await server.until(lambda totals: totals.in_flight == 1)
            attempt = Attempt()
            async with endpoint.events(CHAT, {**body, "stream": True}, attempt) as chunks:
                assert holding.done()  # the only connection was its own until now
                assert [chunk async for chunk in chunks]
            assert attempt.sent
            await holding
            assert server.totals().peak_connections == 1
            await endpoint.aclose()

    run(main)
