"""How the embedded engine's throughput grows with concurrency, as ratios measured in one run.

    python benchmarks/embedded.py [--model FOLDER] [--rounds 5] [--threads N]

Each round measures every setting, so that whatever else the machine does falls on all of them alike; printed
are the medians over rounds of the ratio to one request at a time. Goal: 8 concurrent requests give at least twice
the throughput of one, or batching is not worth its code; the other figures have none.

Exits with 1 if the goal is missed (--informative: with 0).
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from goals import Goals, parser
from stratagem.backends.embedded.backend import MINI
from stratagem.backends.embedded.engine import Engine
from stratagem.backends.embedded.sampling import Sampling

QUESTION = (
    "Ben has 12 apples. Cal has 7 more apples than Ben. Dee has twice as many apples as Cal. "
    "How many apples does {} have?\nThink step by step."
)
NEW_TOKENS = 128
CONCURRENT = (1, 8, 32)
BESIDE = (1, 32)  # concurrent requests beside a busy thread
INTERVALS = (0.005, 0.0005)  # seconds; the first is Python's own
GOALS = {8: 2.0}  # times the throughput of one


async def throughput(engine: Engine, concurrent: int, seed: int) -> float:
    """Decoded tokens per second of ``concurrent`` requests with prompts of their own."""
    prompts = [engine.tokenizer.render([("user", QUESTION.format(f"{seed}-{i}"))]) for i in range(concurrent)]
    start = time.perf_counter()
    sampling = Sampling(max_tokens=NEW_TOKENS, seed=seed, ignore_end=True)
    handles = [engine.submit(prompt, sampling) for prompt in prompts]
    results = [await handle.result() for handle in handles]
    return sum(r.spent.decoded for r in results) / (time.perf_counter() - start)


async def score_latency(engine: Engine, seed: int) -> float:
    """Seconds for the probabilities of two one-token continuations after a known prompt."""
    prompt = engine.tokenizer.render([("user", QUESTION.format(seed)), ("assistant", "The answer is")])
    continuations = [engine.tokenizer.encode(word) for word in ("yes", "no")]
    await engine.score(prompt, continuations).result()
    times = []
    for _ in range(20):
        start = time.perf_counter()
        await engine.score(prompt, continuations).result()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@contextmanager
def busy_thread(interval: float) -> Iterator[None]:
    """A thread of pure Python that never waits, and the interpreter's switch interval in seconds."""
    over = threading.Event()

    def spin() -> None:
        while not over.is_set():
            pass

    before = sys.getswitchinterval()
    sys.setswitchinterval(interval)
    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(before)


async def measure(engine: Engine, rounds: int, goals: Goals) -> None:
    """Print the ratios."""
    await throughput(engine, max(CONCURRENT), -1)
    speeds: dict[int, list[float]] = {n: [] for n in CONCURRENT}
    scores: list[float] = []
    shares: dict[tuple[int, float], list[float]] = {(n, i): [] for n in BESIDE for i in INTERVALS}
    for seed in range(rounds):
        for n in CONCURRENT:
            speeds[n].append(await throughput(engine, n, seed))
        scores.append(await score_latency(engine, seed) * speeds[1][-1])
        for (n, interval), found in shares.items():
            with busy_thread(interval):
                found.append(await throughput(engine, n, seed) / speeds[n][-1])
    print(f"{NEW_TOKENS} new tokens a request, {rounds} rounds, median (least .. most)")
    for n in CONCURRENT:
        ratios = [many / one for many, one in zip(speeds[n], speeds[1], strict=True)]
        spread = f"({min(ratios):.2f} .. {max(ratios):.2f})"
        ratio = statistics.median(ratios)
        verdict = f", {goals.at_least(ratio, GOALS[n])}" if n in GOALS else ""
        print(f"  throughput at {n:2} concurrent: {ratio:.2f} times that at 1 {spread}{verdict}")
    spread = f"({min(scores):.2f} .. {max(scores):.2f})"
    print(f"  one-token score: {statistics.median(scores):.2f} times a token decoded alone {spread}")
    for (n, interval), found in shares.items():
        spread = f"({min(found):.2f} .. {max(found):.2f})"
        print(
            f"  beside a busy Python thread, switch interval {1000 * interval:g} ms: "
            f"{statistics.median(found):.2f} times the throughput at {n:2} {spread}"
        )


def main() -> int:
    """Parse the arguments and measure."""
    takes = parser(__doc__)
    takes.add_argument("--model", type=Path, default=MINI)
    takes.add_argument("--rounds", type=int, default=5)
    takes.add_argument("--threads", type=int, default=None)
    arguments = takes.parse_args()
    engine = Engine(arguments.model, threads=arguments.threads)
    goals = Goals(informative=arguments.informative)
    asyncio.run(measure(engine, arguments.rounds, goals))
    engine.close()
    return goals.code


if __name__ == "__main__":
    sys.exit(main())
