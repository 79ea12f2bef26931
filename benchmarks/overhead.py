"""What the framework itself costs: CPU per model call, import time, and many runs in one process.

    python benchmarks/overhead.py

Goals: at most 0.5 ms of CPU per model call (no checkpoint); the imports in at most 0.3 s of wall time beyond an
empty interpreter's start, which is measured in turn with them; of 1,000 concurrent runs nothing is left behind.

Exits with 1 if a goal is missed (--informative: with 0).
"""

from __future__ import annotations

import asyncio
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from goals import Goals, parser
from stratagem.core.asking import POLICY, Sampling
from stratagem.core.backend import Request
from stratagem.core.budget import Budget, Ledger
from stratagem.core.execute import execute
from stratagem.core.protocols import Strategy
from stratagem.core.run import Run
from stratagem.core.task import Task
from stratagem.testing.toy import ToyModel

TASK = Task.of("How many apples are left?")
CALLS = 2000
TABLE = {"": {"yes": 0.75, "no": 0.25}}
CALL_MS, IMPORT_SECONDS = 0.5, 0.3


def cpu_per_call(repeats: int = 5) -> float:
    """Seconds of CPU that ``Run.sample`` adds to a call of the backend: the median of paired differences."""

    async def bare(toy: ToyModel) -> None:
        for seed in range(CALLS):
            await toy.generate(Request(TASK.messages, max_tokens=8, seed=seed))

    async def framed(toy: ToyModel) -> None:
        run = Run({POLICY: toy}, ledger=Ledger(Budget(tokens=10**9)))
        for _ in range(CALLS):
            await run.sample(TASK, sampling=Sampling(max_tokens=8), task=TASK)

    return statistics.median((_cpu(framed) - _cpu(bare)) / CALLS for _ in range(repeats))


def _cpu(work: Callable[[ToyModel], Awaitable[None]]) -> float:
    async def main() -> float:
        toy = ToyModel(TABLE)
        started = time.process_time()
        await work(toy)
        return time.process_time() - started

    return asyncio.run(main())


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds that one start of an interpreter took."""

    wall: float
    cpu: float


def started(code: str) -> Start:
    """``python -c code`` from its start to its end."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Start(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def import_time(code: str, repeats: int = 7) -> tuple[Start, Start]:
    """The least that ``code`` and that nothing takes, in turns, so that other load falls on both alike."""
    started(code)  # compiled and in the file cache
    pairs = [(started(code), started("pass")) for _ in range(repeats)]
    return least([full for full, _ in pairs]), least([empty for _, empty in pairs])


def least(starts: Sequence[Start]) -> Start:
    """Of each figure the one that the rest of the machine has disturbed least."""
    return Start(min(s.wall for s in starts), min(s.cpu for s in starts))


def concurrent_runs(runs: int = 1000) -> tuple[float, int, int]:
    """CPU seconds of many runs of self-consistency at the same time, their calls, and what was left behind."""

    async def main() -> tuple[float, int, int]:
        toy = ToyModel(permits=64)
        strategy = Strategy.load({"kind": "self_consistency", "n": 4, "max_tokens": 20})
        ledgers = [Ledger(Budget(tokens=1000)) for _ in range(runs)]
        started = time.process_time()
        async with asyncio.TaskGroup() as group:
            for seed, ledger in enumerate(ledgers):
                group.create_task(execute(strategy, TASK, Run({POLICY: toy}, ledger=ledger, seed=seed)))
        seconds = time.process_time() - started
        left = toy.books.in_flight + toy.books.permits + sum(not ledger.idle for ledger in ledgers)
        return seconds, toy.books.usage.calls, left

    return asyncio.run(main())


def main() -> int:
    """Print the figures."""
    goals = Goals(informative=parser(__doc__).parse_args().informative)
    call = cpu_per_call() * 1e3
    print(f"framework, per model call: {call:.3f} ms CPU ({goals.at_most(call, CALL_MS)})")
    # Alone, and with what a script goes on to use: the names are imported when they are first asked for.
    for code in ("import stratagem", "from stratagem import BestOfN, Run, connect, solve"):
        full, empty = import_time(code)
        wall = full.wall - empty.wall
        verdict = goals.at_most(wall, IMPORT_SECONDS)
        print(
            f"{code}: {wall:.3f} s wall ({verdict}), {full.cpu - empty.cpu:.3f} s CPU; with the interpreter "
            f"{full.wall / empty.wall:.1f} times an empty one's {empty.wall:.3f} s wall, "
            f"{full.cpu / empty.cpu:.1f} times its {empty.cpu:.3f} s CPU"
        )
    seconds, calls, left = concurrent_runs()
    held = goals.check(left == 0, "none")
    print(f"1,000 runs at once: {calls} calls, {seconds:.1f} s CPU, {left} things left behind ({held})")
    return goals.code


if __name__ == "__main__":
    sys.exit(main())
