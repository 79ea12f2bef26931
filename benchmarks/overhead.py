"""What the framework itself costs: CPU per model call, import time, and many runs in one process.

    python benchmarks/overhead.py

Targets: under 0.5 ms of CPU per model call (no checkpoint), import under 0.3 s, 1,000 concurrent runs hold.
"""

from __future__ import annotations

import asyncio
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

from stratagem.core.backend import Request
from stratagem.core.budget import Budget, Ledger
from stratagem.core.execute import execute
from stratagem.core.protocols import Strategy
from stratagem.core.run import POLICY, Run, Sampling
from stratagem.core.task import Task
from stratagem.testing.toy import ToyModel

TASK = Task.of("How many apples are left?")
CALLS = 2000
TABLE = {"": {"yes": 0.75, "no": 0.25}}


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


def import_time(code: str, repeats: int = 5) -> tuple[float, float]:
    """CPU seconds of ``python -c code`` beyond those of ``pass``, and the ratio of the two; least of several."""

    def child(code: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    child(code)  # compiled and in the file cache
    full = min(child(code) for _ in range(repeats))
    empty = min(child("pass") for _ in range(repeats))
    return full - empty, full / empty


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


def main() -> None:
    """Print the figures."""
    print(f"framework, per model call: {cpu_per_call() * 1e3:.3f} ms CPU (target < 0.5)")
    for code in ("import stratagem", "from stratagem import BestOfN, Run, connect, solve"):
        seconds, ratio = import_time(code)
        print(f"{code}: {seconds:.3f} s CPU (target < 0.3), {ratio:.1f} times an empty interpreter's")
    seconds, calls, left = concurrent_runs()
    print(f"1,000 runs at once: {calls} calls, {seconds:.1f} s CPU, {left} things left behind")


if __name__ == "__main__":
    main()
