"""What the framework costs in wall time: strategies through it against raw asyncio calls to the same server.

    python benchmarks/scheduling.py [--problems 48] [--n 16] [--permits 32] [--rounds 3]

The simulated server runs in a process of its own and takes 10 ms for a token. Both sides ask the same: n samples of
each problem, with the same seeds, and for best-of-N a written grade of each as soon as it is there; all problems at
once, at most as many sequences at a time as there are permits. The raw side sends every sequence as one plain
request of the `openai` client under a semaphore: no order of the same calls under the same limit wastes less.
Printed per strategy is the median over rounds of the ratio of wall times (goal: at most 1.05), and the most
connections that the server saw at a time (goal: at most the permits). What the schedule alone costs, without the
time that this process computes, `tests/test_scheduling.py` finds exactly, in virtual time.

Exits with 1 if a goal is missed (--informative: with 0).
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from openai import AsyncOpenAI

from goals import Goals, parser
from stratagem.backends.openai import OpenAIBackend
from stratagem.core.backend import Message, Request, Stream
from stratagem.core.execute import execute
from stratagem.core.protocols import Strategy
from stratagem.core.run import Run
from stratagem.core.task import Task
from stratagem.core.usage import Meter
from stratagem.testing.server import SimSettings, SimulatedProcess
from stratagem.verifiers.judge import Judge

GOAL = 1.05
MAX_TOKENS = 512
GRADE = Judge(mode="grade", question="How good is this answer, from 0 to 10? End with the grade alone.")

Solve = Callable[[Task, int], Awaitable[object]]


class Noting(OpenAIBackend):
    """Remembers the seed of each conversation that is sampled, for the raw side to ask the same."""

    seeds: dict[tuple[Message, ...], int]

    @asynccontextmanager
    async def stream(
        self, request: Request, meter: Meter | None = None, *, deltas: bool = True
    ) -> AsyncIterator[Stream]:
        if request.n > 1:
            self.seeds[request.messages] = request.seed or 0
        async with super().stream(request, meter, deltas=deltas) as stream:
            yield stream


class Raw:
    """The same strategies by hand."""

    def __init__(self, url: str, permits: int, n: int, seeds: dict[tuple[Message, ...], int]) -> None:
        limits = httpx2.Limits(max_connections=permits, max_keepalive_connections=permits)
        self._client: Any = AsyncOpenAI(  # its overloads do not take options by name
            base_url=url,
            api_key="none",
            http_client=httpx2.AsyncClient(limits=limits, verify=False, timeout=600),
        )
        self._permits = asyncio.Semaphore(permits)
        self.n = n
        self._seeds = seeds

    async def _ask(self, messages: list[dict[str, str]], **options: object) -> str:
        async with self._permits:
            answer = await self._client.chat.completions.create(model="sim", messages=messages, **options)
        text: str = answer.choices[0].message.content
        return text

    async def sample(self, task: Task, index: int) -> tuple[list[dict[str, str]], str]:
        """The conversation and the completion that continues it."""
        prompt = task.ask("Think step by step.")
        messages = [{"role": m.role, "content": m.content} for m in prompt]
        return messages, await self._ask(messages, seed=self._seeds[prompt] + index, max_tokens=MAX_TOKENS)

    async def grade(self, messages: list[dict[str, str]], text: str) -> tuple[float, str]:
        """Of the sample ``text`` to ``messages``, with that text."""
        more = [{"role": "assistant", "content": text}, {"role": "user", "content": GRADE.question}]
        grade = await self._ask([*messages, *more], temperature=0.0, max_tokens=GRADE.max_tokens)
        return float(grade.rpartition("is ")[2].rstrip(".")), text

    async def vote(self, task: Task, _: int) -> object:
        """Self-consistency."""
        drawn = await asyncio.gather(*(self.sample(task, i) for i in range(self.n)))
        return statistics.mode(text.rpartition("is ")[2] for _, text in drawn)

    async def best(self, task: Task, _: int) -> object:
        """Best of n."""

        async def graded(index: int) -> tuple[float, str]:
            return await self.grade(*await self.sample(task, index))

        return max(await asyncio.gather(*(graded(i) for i in range(self.n))))

    async def aclose(self) -> None:
        await self._client.close()


async def timed(solve: Solve, tasks: list[Task]) -> tuple[float, float]:
    """Seconds of all tasks at once: by the loop's clock, which is the wall's unless it is virtual; and of CPU."""
    clock = asyncio.get_running_loop().time
    wall, cpu = clock(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for seed, task in enumerate(tasks):
            group.create_task(_await(solve(task, seed)))
    return clock() - wall, time.process_time() - cpu


async def _await(solving: Awaitable[object]) -> None:
    await solving


def framework(strategy: Strategy, backend: OpenAIBackend) -> Solve:
    """Solving through the framework."""

    async def solve(task: Task, seed: int) -> object:
        return await execute(strategy, task, Run({"policy": backend}, seed=seed))

    return solve


async def main() -> int:
    takes = parser(__doc__)
    takes.add_argument("--problems", type=int, default=48)
    takes.add_argument("--n", type=int, default=16)
    takes.add_argument("--permits", type=int, default=32)
    takes.add_argument("--rounds", type=int, default=3)
    takes.add_argument("--per-token", type=float, default=0.01, help="seconds")
    takes.add_argument("--goal", type=float, default=GOAL, help="most that wall times may differ by, a ratio")
    args = takes.parse_args()
    goals = Goals(informative=args.informative)

    tasks = [Task.of(f"What is {i} + {i}?") for i in range(args.problems)]
    strategies = {
        "self_consistency": Strategy.load({"kind": "self_consistency", "n": args.n}),
        "best_of_n": Strategy.load({"kind": "best_of_n", "n": args.n, "verifier": GRADE.dump()}),
    }
    settings = SimSettings(per_token=args.per_token)
    async with SimulatedProcess(settings) as mine, SimulatedProcess(settings) as theirs:
        backend = Noting(mine.url, permits=args.permits)
        backend.seeds = {}
        raw = Raw(theirs.url, args.permits, args.n, backend.seeds)
        by_hand = {"self_consistency": raw.vote, "best_of_n": raw.best}
        for name, strategy in strategies.items():
            solve = framework(strategy, backend)
            await timed(solve, tasks)  # warms up, and notes the seeds
            ratios, ours, hand = [], [], []
            for _ in range(args.rounds):
                hand.append(await timed(by_hand[name], tasks))
                ours.append(await timed(solve, tasks))
                ratios.append(ours[-1][0] / hand[-1][0])
            ratio = statistics.median(ratios)
            print(
                f"{name:<18} ratio {ratio:.3f} ({goals.at_most(ratio, args.goal)}), of "
                f"{', '.join(f'{r:.3f}' for r in ratios)}; median wall {median(ours, 0):.2f} s against "
                f"{median(hand, 0):.2f} s, CPU {median(ours, 1):.2f} s against {median(hand, 1):.2f} s",
                flush=True,
            )
        await backend.aclose()
        await raw.aclose()
        books, other = await mine.totals(), await theirs.totals()
    print(
        f"peak connections   {books.peak_connections} ({goals.at_most(books.peak_connections, args.permits)}), "
        f"raw {other.peak_connections}; opened {books.connections_opened}, raw {other.connections_opened}\n"
        f"peak sequences     {books.peak_sequences}, raw {other.peak_sequences}\n"
        f"requests           {books.requests}, raw {other.requests}; tokens decoded {books.decoded}, raw "
        f"{other.decoded}"
    )
    return goals.code


def median(rounds: list[tuple[float, float]], index: int) -> float:
    return statistics.median(seconds[index] for seconds in rounds)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
