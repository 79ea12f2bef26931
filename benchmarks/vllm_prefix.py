"""How much of the prompts a vLLM server's prefix cache answers, against the most that it could.

    python benchmarks/vllm_prefix.py [--problems 64] [--n 16] [--strategies beam_search dta] [--first 0]
                                     [--base-url URL] [--python .venv-vllm/bin/python]

Each strategy answers problems of its own, all at once, on a real server: one with the shipped model and the profile
`agent`, or the one that is named. Samples are n, or as many as the strategy itself draws if those are fewer; steps
are the root of n at a depth. Agents answer questions about worlds of tools, with their tools.

The rate is the server's own count. The ideal is computed from what was asked: of each prompt, in the order of
asking, the leading whole blocks that an earlier prompt, or an earlier prompt with what was decoded or scored after
it until then, has begun with; the last token of a prompt is computed always, the last token of a completion never.
Goal: at least 0.95 of the ideal.

Given continuations (`run.score`, and `run.choose` where the likeliest tokens tell no choice) are scored by prompt
log-probabilities. For those vLLM computes the prompt anew, so that it counts them in no rate, and no more does the
ideal: they only leave their blocks to others. How many tokens they had, for each that was looked up, stands beside.

Exits with 1 if the goal is missed (--informative: with 0).
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

import stratagem as sg
from goals import Goals, parser
from stratagem.backends.embedded.backend import MINI
from stratagem.backends.openai import OpenAIBackend
from stratagem.backends.vllm.plan import plan
from stratagem.backends.vllm.server import VLLMServer
from stratagem.bench.gym import skill
from stratagem.bench.gym.base import Problem
from stratagem.bench.gym.toolworld import ToolWorld
from stratagem.core.backend import (
    Chunk,
    Completion,
    Generation,
    Message,
    Request,
    ScoreRequest,
    Scoring,
    Stream,
)
from stratagem.core.protocols import Spreading
from stratagem.core.usage import Meter, Usage
from stratagem.strategies._agent import Agent
from stratagem.tools.toolbox import Toolbox, read_only

GOAL = 0.95
STRATEGIES = tuple(sorted(sg.Strategy.kinds()))
FLAGS = ["--kv-cache-memory-bytes", str(2**30)]
Tokenize = Callable[[tuple[Message, ...]], Awaitable[Sequence[int]]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt that was asked for, or with ``text`` what went into the cache unasked, in order of time."""

    messages: tuple[Message, ...]
    n: int = 1
    text: str | None = None  # the assistant's: decoded until then, or scored
    cut: bool = False  # it ends with the last token decoded, which no step has taken in


class Noting(OpenAIBackend):
    """Notes what it is asked and what comes back."""

    def __init__(self, base_url: str, model: str | None = None, *, permits: int = 32) -> None:
        super().__init__(base_url, model, permits=permits)
        self.noted: list[Asked] = []
        self.seeds: dict[tuple[Message, ...], int] = {}  # of prompts that several samples are drawn of
        self._growing: dict[tuple[Message, ...], list[_Noted]] = {}

    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        """As the backend's own."""
        self._note(request)
        generation = await super().generate(request, meter)
        self.noted.extend(_ended(request.messages, each) for each in generation.completions)
        return generation

    @asynccontextmanager
    async def stream(
        self, request: Request, meter: Meter | None = None, *, deltas: bool = True
    ) -> AsyncIterator[Stream]:
        """As the backend's own."""
        self._note(request)
        async with super().stream(request, meter, deltas=deltas) as stream:
            noting = _Noted(stream, request.messages, self.noted)
            beside = self._growing.setdefault(noting.before, [])
            beside.append(noting)
            try:
                yield noting
            finally:
                beside.remove(noting)
                self.noted.extend(noting.unfinished())

    async def score(self, request: ScoreRequest, meter: Meter | None = None) -> Scoring:
        """As the backend's own, which looks nothing up."""
        scoring = await super().score(request, meter)
        before, begun = _begun(request.messages)
        self.noted.extend(Asked(before, text=begun + each) for each in request.continuations if each)
        return scoring

    def _note(self, request: Request) -> None:
        for place, message in enumerate(request.messages):
            before = request.messages[:place]
            if any(each.has_said(message) for each in self._growing.get(before, ())):
                self.noted.append(Asked(before, text=message.content, cut=True))
        self.noted.append(Asked(request.messages, request.n))
        if request.n > 1 and request.seed is not None:
            self.seeds[request.messages] = request.seed


def _ended(messages: tuple[Message, ...], completion: Completion) -> Asked:
    before, begun = _begun(messages)
    return Asked(before, text=begun + completion.text, cut=completion.finish == "length")


def _begun(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], str]:
    """What came before the message that is decoded, and what stands there of it."""
    if messages[-1].role == "assistant":
        return messages[:-1], messages[-1].content
    return messages, ""


class _Noted:
    """A stream whose completions are noted as they end; those that grow can be looked at."""

    replayed = False

    def __init__(self, stream: Stream, messages: tuple[Message, ...], noted: list[Asked]) -> None:
        self._stream = stream
        self._chunks = aiter(stream)
        self._messages = messages
        self._noted = noted
        self.before, self._begun = _begun(messages)
        self._texts: dict[int, str] = {}

    @property
    def usage(self) -> Usage:
        return self._stream.usage

    def has_said(self, message: Message) -> bool:
        """Whether a completion begins with that."""
        return message.role == "assistant" and any(
            text.startswith(message.content) for text in self._texts.values()
        )

    def unfinished(self) -> list[Asked]:
        """What has been said of completions that have not ended."""
        return [Asked(self.before, text=text, cut=True) for text in self._texts.values()]

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        chunk = await anext(self._chunks)
        self._texts[chunk.index] = self._texts.get(chunk.index, self._begun) + chunk.text
        if chunk.completion is not None:
            del self._texts[chunk.index]
            self._noted.append(_ended(self._messages, chunk.completion))
        return chunk


async def ideal(noted: Iterable[Asked], block: int, tokens_of: Tokenize, known: set[int]) -> tuple[int, int]:
    """Of all prompts the tokens that a cache of blocks without limit would have had, and how many there are.

    ``known`` is that cache: of whole blocks with all that is before them, by hash.
    """
    hits = size = 0
    for asked in noted:
        if asked.text is not None:
            whole = await tokens_of((*asked.messages, Message("assistant", asked.text)))
            known.update(_chain(whole[:-1] if asked.cut else whole, block))
            continue
        tokens = await tokens_of(asked.messages)
        chain = _chain(tokens, block)
        for _ in range(asked.n):
            usable = chain[: (len(tokens) - 1) // block]
            hits += block * next((i for i, link in enumerate(usable) if link not in known), len(usable))
            size += len(tokens)
            known.update(chain)
    return hits, size


def _chain(tokens: Sequence[int], block: int) -> list[int]:
    """For each whole block a hash of it and of all before it."""
    links: list[int] = []
    for end in range(block, len(tokens) + 1, block):
        links.append(hash((links[-1] if links else 0, *tokens[end - block : end])))
    return links


@asynccontextmanager
async def tokenizer(base_url: str, model: str) -> AsyncIterator[Tokenize]:
    """The server's own; a conversation that an assistant has ended is one that goes on."""
    known: dict[tuple[Message, ...], list[int]] = {}
    async with httpx2.AsyncClient(timeout=60) as client:

        async def tokens_of(messages: tuple[Message, ...]) -> Sequence[int]:
            if messages not in known:
                begun = messages[-1].role == "assistant"
                body = {
                    "model": model,
                    "messages": [{"role": m.role, "content": m.content} for m in messages],
                    "add_generation_prompt": not begun,
                    "continue_final_message": begun,
                }
                answer = await client.post(base_url.removesuffix("/v1") + "/tokenize", json=body)
                known[messages] = answer.raise_for_status().json()["tokens"]
            return known[messages]

        yield tokens_of


@dataclass(frozen=True, slots=True)
class Rates:
    """Shares of the prompt tokens that were looked up: what the server found in its prefix cache, the most that it
    could have, and how many more it scored, and so computed anew."""

    found: float
    ideal: float
    anew: float

    @property
    def ratio(self) -> float:
        """1 where there was nothing to find."""
        return self.found / self.ideal if self.ideal else 1.0


def narrowed(kind: str, n: int) -> sg.Strategy:
    """That strategy with at most n samples; of steps the root of n at a depth."""
    plain = sg.Strategy.load({"kind": kind})
    most = {"n": n, "warmup": n // 2} | dict.fromkeys(("beams", "trees", "width"), math.isqrt(n))
    settings = {
        key: min(getattr(plain, key), value) for key, value in most.items() if key in type(plain).model_fields
    }
    return sg.Strategy.load({"kind": kind, **settings})


def problems_for(strategy: sg.Strategy, first: int, count: int) -> list[Problem]:
    """As many problems of the kind that it is for."""
    about = ToolWorld() if isinstance(strategy, Agent) else skill("words")
    return [about.problem("test", first + i) for i in range(count)]


def tools_for(strategy: sg.Strategy, problem: Problem) -> Toolbox | None:
    """The problem's, where the strategy calls any."""
    return read_only(ToolWorld().functions(problem)) if isinstance(strategy, Agent) else None


async def measured(
    base_url: str, model: str, strategy: sg.Strategy, problems: Sequence[Problem], known: set[int]
) -> Rates:
    """A strategy on these problems, all at once, on a server that does nothing else meanwhile. ``known``: what it
    has been asked before."""
    backend = Noting(base_url, model, permits=64)

    async def solved(problem: Problem, seed: int) -> None:
        tools = tools_for(strategy, problem)
        await sg.solve(problem.question, strategy, llm=backend, tools=tools, seed=seed)

    try:
        [before] = (await backend.counts()).values()
        if isinstance(strategy, Spreading):
            await sg.solve_all([problem.question for problem in problems], strategy, llm=backend)
        else:
            async with asyncio.TaskGroup() as group:
                for seed, problem in enumerate(problems):
                    group.create_task(solved(problem, seed))
        [after] = (await backend.counts()).values()
        assert after.block_size is not None
        async with tokenizer(base_url, model) as tokens_of:
            hits, size = await ideal(backend.noted, after.block_size, tokens_of, known)
    finally:
        await backend.aclose()
    between = after.since(before)
    return Rates(between.prefix_hit_rate, hits / size, between.prompt_tokens / between.prefix_queries - 1)


async def compare(base_url: str, model: str, args: argparse.Namespace, goals: Goals) -> None:
    """Print a line for each strategy, each with problems of its own."""
    known: set[int] = set()
    for number, kind in enumerate(args.strategies):
        strategy = narrowed(kind, args.n)
        problems = problems_for(strategy, args.first + number * args.problems, args.problems)
        rates = await measured(base_url, model, strategy, problems, known)
        print(
            f"{kind:<26} {rates.found:6.1%} of the prompt tokens from the cache, ideal {rates.ideal:6.1%}, ratio "
            f"{rates.ratio:.3f} ({goals.at_least(rates.ratio, GOAL)}); scored anew {rates.anew:.1%}",
            flush=True,
        )


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Those of a benchmark on a real server, without those that are its own."""
    takes = parser(description)
    takes.add_argument("--problems", type=int, default=64)
    takes.add_argument("--n", type=int, default=16)
    takes.add_argument("--base-url", help="a vLLM server that does nothing else (default: one is started)")
    takes.add_argument("--model", help="its name on that server (default: the only one)")
    takes.add_argument("--python", type=Path, help="the interpreter of an environment with vLLM")
    return takes


@asynccontextmanager
async def served(args: argparse.Namespace) -> AsyncIterator[tuple[str, str]]:
    """Address and model of the server that is named, or of one with the shipped model by the profile `agent`."""
    if args.base_url:
        llm = OpenAIBackend(args.base_url, args.model)
        model = (await llm.capabilities()).model
        await llm.aclose()
        yield args.base_url, model
        return
    planned = await asyncio.to_thread(plan, "agent", FLAGS, python=args.python)
    async with VLLMServer(MINI, planned.arguments, python=args.python) as server:
        yield server.url, server.name


async def main() -> int:
    takes = arguments(__doc__)
    takes.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    takes.add_argument("--first", type=int, default=0, help="problem: one that the server has not been asked")
    args = takes.parse_args()
    goals = Goals(informative=args.informative)
    async with served(args) as (url, model):
        await compare(url, model, args, goals)
    return goals.code


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
