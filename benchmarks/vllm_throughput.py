"""Tokens per second of strategies on a vLLM server, through the framework and by hand.

    python benchmarks/vllm_throughput.py [--problems 64] [--n 16] [--rounds 3] [--base-url URL] [--python FILE]

A real server: one with the shipped model and the profile `agent`, or the one that is named. All problems at once,
n samples each: self-consistency, and best-of-n by a judge that reads one token. By hand is plain asyncio with an
HTTP client: for a vote one request for the n samples of a problem, for best-of-n one for each sample, judged when
it has come, with the seeds of the framework and no limit but the server's own. Each round measures both, in turns;
tokens are the server's own count. Goal: the median ratio at least 0.97.

Exits with 1 if the goal is missed (--informative: with 0).
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

import httpx2

import stratagem as sg
from goals import Goals
from stratagem.backends.openai import OpenAIBackend
from stratagem.bench.gym import skill
from stratagem.core.backend import Message
from stratagem.core.prompts import STEP_BY_STEP
from stratagem.core.task import Task
from vllm_prefix import Noting, arguments, served

GOAL = 0.97
ATTEMPTS = 3
QUESTION = "Is this answer right? Answer yes or no."
Solve = Callable[[Task, int], Awaitable[object]]


class ByHand:
    """The strategies as one would write them for one server."""

    def __init__(self, url: str, model: str, n: int, seeds: dict[tuple[Message, ...], int]) -> None:
        # The server closes a connection that was idle for 5 s, by its own clock.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=4)
        self._client = httpx2.AsyncClient(timeout=None, limits=limits)
        self._url = url + "/chat/completions"
        self._model = model
        self._n = n
        self._seeds = seeds

    async def _ask(self, messages: Sequence[Message], **options: object) -> list[str]:
        body = {"model": self._model, "messages": [{"role": m.role, "content": m.content} for m in messages]}
        answer = await self._post(body | {"top_p": 1.0} | options)
        return [choice["message"]["content"] for choice in answer.raise_for_status().json()["choices"]]

    async def _post(self, body: Mapping[str, object]) -> httpx2.Response:
        """Again on another connection where the server was just closing the one that was idle."""
        for _ in range(ATTEMPTS - 1):
            with suppress(httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError):
                return await self._client.post(self._url, json=body)
        return await self._client.post(self._url, json=body)

    async def vote(self, task: Task, _: int) -> object:
        """Self-consistency."""
        prompt = task.ask(STEP_BY_STEP)
        texts = await self._ask(prompt, n=self._n, seed=self._seeds[prompt], max_tokens=512)
        return statistics.mode(text.rpartition("is ")[2] for text in texts)

    async def best(self, task: Task, _: int) -> object:
        """Best of n, by one token of a judge."""
        prompt = task.ask(STEP_BY_STEP)

        async def judged(index: int) -> tuple[str, str]:
            [text] = await self._ask(prompt, seed=self._seeds[prompt] + index, max_tokens=512)
            asked = (*prompt, Message("assistant", text), Message("user", QUESTION))
            return (await self._ask(asked, max_tokens=1, temperature=0, logprobs=True, top_logprobs=20))[
                0
            ], text

        return max(await asyncio.gather(*(judged(i) for i in range(self._n))))

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._client.aclose()


async def tokens_per_second(solve: Solve, tasks: Sequence[Task], server: OpenAIBackend) -> float:
    """Of all tasks at once, by the server's count of decoded tokens."""
    [before] = (await server.counts()).values()
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for seed, task in enumerate(tasks):
            group.create_task(_await(solve(task, seed)))
    spent = time.perf_counter() - began
    [after] = (await server.counts()).values()
    return after.since(before).generation_tokens / spent


async def _await(solving: Awaitable[object]) -> None:
    await solving


async def main() -> int:
    takes = arguments(__doc__)
    takes.add_argument("--rounds", type=int, default=3)
    takes.add_argument("--permits", type=int, default=128, help="as connect_vllm gives for the profile agent")
    args = takes.parse_args()
    goals = Goals(informative=args.informative)
    tasks = [Task.of(skill("words").problem("test", i).question) for i in range(args.problems)]
    async with served(args) as (url, model):
        backend = Noting(url, model, permits=args.permits)
        hand = ByHand(url, model, args.n, backend.seeds)
        judge = {"kind": "judge", "question": QUESTION}
        strategies: dict[str, tuple[sg.Strategy, Solve]] = {
            "self_consistency": (sg.SelfConsistency(n=args.n), hand.vote),
            "best_of_n": (sg.BestOfN(n=args.n, verifier=sg.Verifier.load(judge)), hand.best),
        }
        for name, (strategy, by_hand) in strategies.items():

            async def solve(task: Task, seed: int, strategy: sg.Strategy = strategy) -> object:
                return await sg.solve(task, strategy, llm=backend, seed=seed)

            await tokens_per_second(solve, tasks, backend)  # warms up, and notes the seeds
            ours: list[float] = []
            theirs: list[float] = []
            for number in range(args.rounds):
                turns = [(solve, ours), (by_hand, theirs)]
                for each, speeds in turns if number % 2 else turns[::-1]:
                    speeds.append(await tokens_per_second(each, tasks, backend))
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            ratio = statistics.median(ratios)
            print(
                f"{name:<18} ratio {ratio:.3f} ({goals.at_least(ratio, GOAL)}), of "
                f"{', '.join(f'{r:.3f}' for r in ratios)}; median {statistics.median(ours):,.0f} tokens/s "
                f"against {statistics.median(theirs):,.0f}",
                flush=True,
            )
        await backend.aclose()
        await hand.aclose()
    return goals.code


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
