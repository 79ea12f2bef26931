"""The executor of plans against its bounds, on random plans, gold plans and large ones.

    python benchmarks/tools.py [--plans 1000] [--nodes 10000] [--nestful PATH] [--rounds 5]

In virtual time: the makespan over the critical path, of random plans (width 1-16, depth 1-8, one call in five ten
times as long) and of NESTFUL's gold plans where that file is (goal: at most 1.02); with four permits over the list
schedule of the same order (goal: at most 1.02). In real time, the best of some rounds: from ready to started, the
median over the calls of a random plan (goal: under 1 ms); a chain of 50 tools that do nothing (goal: under 10 ms);
a plan of many such tools, each with up to two inputs (goal: under 1 s for 10,000), beside the same calls made by
asyncio alone, one task each.

Exits with 1 if a goal is missed (--informative: with 0).
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import json
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import stratagem as sg
from goals import Goals, parser
from stratagem.testing.loops import run as virtual
from stratagem.tools.dag import Plan
from stratagem.tools.executor import Execution, Report
from stratagem.tools.tool import toolbox

Needs = Mapping[str, Sequence[str]]


@sg.tool(timeout=1e9, effect="idempotent")
async def work(name: str, seconds: float, inputs: list[Any]) -> str:
    """Takes so long."""
    if seconds:
        await asyncio.sleep(seconds)
    return name


TOOLS = toolbox(work)


def plan(needs: Needs, seconds: Mapping[str, float]) -> Plan:
    return Plan.parse(
        [
            {
                "id": name,
                "tool": "work",
                "arguments": {"name": name, "seconds": seconds[name], "inputs": [{"$ref": n} for n in lacks]},
            }
            for name, lacks in needs.items()
        ],
        TOOLS,
    )


def drawn(rng: random.Random) -> Needs:
    layers = [[f"{d}.{i}" for i in range(rng.randint(1, 16))] for d in range(rng.randint(1, 8))]
    needs: dict[str, Sequence[str]] = {}
    for depth, layer in enumerate(layers):
        earlier = [name for each in layers[:depth] for name in each]
        for name in layer:
            more = rng.sample(earlier, min(len(earlier), rng.randint(0, 3)))
            needs[name] = sorted({rng.choice(layers[depth - 1]), *more}) if depth else ()
    return needs


def skewed(rng: random.Random, needs: Needs) -> dict[str, float]:
    return {name: rng.uniform(0.5, 1.5) * (10 if rng.random() < 0.2 else 1) for name in needs}


def gold(path: Path) -> list[Needs]:
    """NESTFUL's plans; those with labels that stand twice are left out."""
    found: list[Needs] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        calls = json.loads(line)["output"]
        names = [call.get("label", f"end{i}") for i, call in enumerate(calls)]
        texts = [json.dumps(call["arguments"]) for call in calls]
        needs = {
            name: [n for n in names[:i] if f"${n}$" in text or f"${n}." in text]
            for i, (name, text) in enumerate(zip(names, texts, strict=True))
        }
        if len(needs) == len(names):
            found.append(needs)
    return found


def listed(needs: Needs, seconds: Mapping[str, float], permits: int) -> float:
    """The makespan of the list schedule: whenever a permit is free, the call that has been ready longest."""
    left = {name: len(lacks) for name, lacks in needs.items()}
    takers: dict[str, list[str]] = {name: [] for name in needs}
    for name, lacks in needs.items():
        for need in lacks:
            takers[need].append(name)
    ready = [name for name, n in left.items() if not n]
    running: list[tuple[float, int, str]] = []
    now, order = 0.0, 0
    while ready or running:
        while ready and len(running) < permits:
            name, order = ready.pop(0), order + 1
            heapq.heappush(running, (now + seconds[name], order, name))
        now, _, name = heapq.heappop(running)
        for taker in takers[name]:
            left[taker] -= 1
            if not left[taker]:
                ready.append(taker)
    return now


def makespan(made: Plan, permits: int | None) -> float:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        started = loop.time()
        limit = asyncio.Semaphore(permits) if permits else None
        report = await Execution(TOOLS, permits=limit).run(made)
        assert report.complete
        return loop.time() - started

    return virtual(main())


async def timed(made: Plan) -> tuple[float, Report]:
    started = time.perf_counter()
    report = await Execution(TOOLS).run(made)
    seconds = time.perf_counter() - started
    assert report.complete
    return seconds, report


async def bare(count: int) -> float:
    """As many calls by asyncio alone."""
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for i in range(count):
            group.create_task(work.function(name=str(i), seconds=0.0, inputs=[]))
    return time.perf_counter() - started


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--plans", type=int, default=1000)
    p.add_argument("--nodes", type=int, default=10_000)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--nestful", type=Path, help="nestful.jsonl")
    a = p.parse_args()
    goals, rng = Goals(informative=a.informative), random.Random(0)

    random_plans = [drawn(rng) for _ in range(a.plans)]
    sets = {"random plans": random_plans, **({"gold plans of NESTFUL": gold(a.nestful)} if a.nestful else {})}
    for title, plans in sets.items():
        ratios, limited = [], []
        for needs in plans:
            seconds = skewed(rng, needs)
            made = plan(needs, seconds)
            _, bound = made.critical_path(lambda call, s=seconds: s[call.id])  # type: ignore[misc]
            ratios.append(makespan(made, None) / bound)
            limited.append(makespan(made, 4) / listed(needs, seconds, 4))
        print(f"{title} ({len(plans)}): makespan over critical path, worst {max(ratios):.4f}", end=" ")
        print(goals.at_most(max(ratios), 1.02))
        print(f"  with 4 permits over the list schedule, worst {max(limited):.4f}", end=" ")
        print(goals.at_most(max(limited), 1.02))

    nothing: dict[str, float] = {}
    wide = drawn(random.Random(3))
    chain: Needs = {str(i): [str(i - 1)] if i else [] for i in range(50)}
    many: Needs = {str(i): sorted({str(rng.randrange(i)) for _ in range(min(i, 2))}) for i in range(a.nodes)}
    for needs in (wide, chain, many):
        nothing |= dict.fromkeys(needs, 0.0)
    gaps = []
    for _ in range(a.rounds):
        _, report = asyncio.run(timed(plan(wide, nothing)))
        gaps.append(
            statistics.median(t.started - t.ready for t in report.timings.values() if t.started is not None)
        )
    print(f"from ready to started, median {1e3 * min(gaps):.3f} ms {goals.at_most(1e3 * min(gaps), 1.0)}")
    best = min(asyncio.run(timed(plan(chain, nothing)))[0] for _ in range(a.rounds))
    print(f"a chain of 50 {1e3 * best:.2f} ms {goals.at_most(1e3 * best, 10.0)}")
    made = plan(many, nothing)
    best = min(asyncio.run(timed(made))[0] for _ in range(a.rounds))
    alone = min(asyncio.run(bare(a.nodes)) for _ in range(a.rounds))
    print(f"{a.nodes} calls {best:.3f} s, {best / alone:.1f} times asyncio alone", end=" ")
    print(goals.at_most(best / a.nodes * 10_000, 1.0))
    # What the collector passes over again and again is all that the process holds, not these calls alone.
    gc.collect()
    gc.freeze()
    frozen = min(asyncio.run(timed(made))[0] for _ in range(a.rounds))
    gc.unfreeze()
    print(f"  {frozen:.3f} s where what was there before is kept from the garbage collector (gc.freeze)")
    return goals.code


if __name__ == "__main__":
    sys.exit(main())
