"""Permits that go round: who asks for many does not starve who asks for few."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stratagem as sg
from stratagem.testing.loops import run
from stratagem.tools._threads import MOST
from stratagem.tools.dag import Plan
from stratagem.tools.executor import Execution
from stratagem.tools.fair import FairPermits
from stratagem.tools.tool import toolbox


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4), st.lists(st.integers(1, 12), min_size=1, max_size=5), st.randoms(use_true_random=False)
)
def test_permits_go_round_the_shares_that_wait(permits: int, sizes: list[int], rng: random.Random) -> None:
    """Between two turns of a share that waits, every other share that waits gets at most one."""

    async def main() -> None:
        fair = FairPermits(permits)
        order: list[int] = []
        held = 0

        async def one(owner: int, share: Any) -> None:
            nonlocal held
            async with share:
                held += 1
                assert held <= permits
                order.append(owner)
                await asyncio.sleep(1.0)
                held -= 1

        async with asyncio.TaskGroup() as group:
            for owner, size in enumerate(sizes):
                share = fair.share()
                for _ in range(size):
                    group.create_task(one(owner, share))
        assert Counter(order) == Counter(dict(enumerate(sizes)))
        left = Counter(dict(enumerate(sizes)))
        for owner in order[:permits]:
            left[owner] -= 1
        last: list[int] = []
        for owner in order[permits:]:
            waiting = {other for other, n in left.items() if n > 0}
            since = last[-(last[::-1].index(owner)) :] if owner in last and last[-1] != owner else []
            assert all(n == 1 for n in Counter(since).values())
            if owner in last and last[-1] == owner:
                assert waiting == {owner}
            left[owner] -= 1
            last.append(owner)
        async with fair.share():  # all are back
            pass

    run(main())


def test_an_agent_with_a_thousand_calls_does_not_starve_one_with_three() -> None:
    async def main() -> tuple[int, int]:
        fair = FairPermits(4)
        many, few = fair.share(), fair.share()
        done = [0, 0]

        async def one(owner: int, share: Any) -> None:
            async with share:
                await asyncio.sleep(1.0)
                done[owner] += 1

        async with asyncio.TaskGroup() as group:
            crowd = [group.create_task(one(0, many)) for _ in range(1000)]
            await asyncio.sleep(0.5)
            await asyncio.wait([group.create_task(one(1, few)) for _ in range(3)])
            before = done[0]
            for task in crowd:
                task.cancel()
        return before, done[1]

    before, few = run(main())
    assert few == 3
    assert before <= 16


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.randoms(use_true_random=False))
def test_permits_come_back_whoever_is_cancelled_when(permits: int, rng: random.Random) -> None:
    async def main() -> None:
        fair = FairPermits(permits)
        shares = [fair.share() for _ in range(3)]

        async def one(share: Any) -> None:
            async with share:
                await asyncio.sleep(rng.choice((0, 1, 2)))

        tasks = [asyncio.ensure_future(one(rng.choice(shares))) for _ in range(20)]
        for _ in range(10):
            await asyncio.sleep(rng.choice((0, 1)))
            rng.choice(tasks).cancel()
        await asyncio.wait(tasks)
        async with asyncio.timeout(1.0), fair.share():
            for _ in range(permits - 1):
                await fair.share().__aenter__()

    run(main())


def test_no_permit_is_refused() -> None:
    with pytest.raises(sg.ConfigurationError, match="at least one"):
        FairPermits(0)


@pytest.mark.parametrize("limit", [{"concurrency": 1}, {"rate": 1.0}])
def test_agents_are_let_into_a_tool_in_turn(limit: dict[str, Any]) -> None:
    """One that asks for ten does not hold up one that asks for two."""
    order: list[str] = []

    @sg.tool(effect="idempotent", **limit)
    async def serve(who: str) -> None:
        """Serve."""
        order.append(who)
        await asyncio.sleep(1.0)

    async def main() -> None:
        box = toolbox(serve)
        async with asyncio.TaskGroup() as group:
            for who, n in (("many", 10), ("few", 2)):
                calls = [{"id": f"c{i}", "tool": "serve", "arguments": {"who": who}} for i in range(n)]
                group.create_task(Execution(box).run(Plan.parse(calls, box)))

    run(main())
    assert Counter(order) == {"many": 10, "few": 2}
    assert order[:6].count("few") == 2, order


def test_agents_get_threads_in_turn() -> None:
    order: list[str] = []
    begun = threading.Semaphore(0)
    go_on = threading.Event()

    @sg.tool(effect="idempotent")
    def block(who: str, i: int) -> None:
        """Block."""
        order.append(who)
        begun.release()
        go_on.wait()

    async def main() -> None:
        box = toolbox(block)
        async with asyncio.TaskGroup() as group:
            for who, n in (("many", MOST + 20), ("few", 2)):
                calls = [
                    {"id": f"c{i}", "tool": "block", "arguments": {"who": who, "i": i}} for i in range(n)
                ]
                group.create_task(Execution(box).run(Plan.parse(calls, box)))
            await asyncio.to_thread(lambda: [begun.acquire() for _ in range(MOST)])
            assert order == ["many"] * MOST
            go_on.set()

    asyncio.run(main())
    assert "few" in order[MOST : MOST + 8]
