"""How much of the prompts a vLLM server's prefix cache answers, against the most that it could.

    python benchmarks/vllm_prefix.py [--problems 64] [--n 16] [--base-url URL] [--python .venv-vllm/bin/python]

Each strategy answers problems of its own, all at once, on a real server: one with the shipped model and the profile
`agent`, or the one that is named. The rate is the server's own count. The ideal is computed from what was asked: of
each prompt, in the order of asking, the leading whole blocks that an earlier prompt, or an earlier prompt with its
completion, has begun with; the last token of a prompt is computed always. Goal: at least 0.95 of the ideal.

Exits with 1 if the goal is missed (--informative: with 0).
"""

from __future__ import annotations

import argparse
import asyncio
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
from stratagem.core.backend import Chunk, Generation, Message, Request, Stream
from stratagem.core.usage import Meter, Usage

GOAL = 0.95
SINGLE = ("direct", "chain_of_thought")  # draw one sample
STRATEGIES = (*SINGLE, "self_consistency", "weighted_vote", "best_of_n")
FLAGS = ["--kv-cache-memory-bytes", str(2**30)]
Tokenize = Callable[[tuple[Message, ...]], Awaitable[Sequence[int]]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt that was asked for, or with ``text`` one completion of it that has ended, in order of time."""

    messages: tuple[Message, ...]
    n: int = 1
    text: str | None = None


class Noting(OpenAIBackend):
    """Notes what it is asked and what comes back."""

    def __init__(self, base_url: str, model: str | None = None, *, permits: int = 32) -> None:
        super().__init__(base_url, model, permits=permits)
        self.noted: list[Asked] = []
        self.seeds: dict[tuple[Message, ...], int] = {}  # of prompts that several samples are drawn of

    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        """As the backend's own."""
        self._note(request)
        generation = await super().generate(request, meter)
        self.noted.extend(Asked(request.messages, text=each.text) for each in generation.completions)
        return generation

    @asynccontextmanager
    async def stream(
        self, request: Request, meter: Meter | None = None, *, deltas: bool = True
    ) -> AsyncIterator[Stream]:
        """As the backend's own."""
        self._note(request)
        async with super().stream(request, meter, deltas=deltas) as stream:
            yield _Noted(stream, request.messages, self.noted)

    def _note(self, request: Request) -> None:
        self.noted.append(Asked(request.messages, request.n))
        if request.n > 1 and request.seed is not None:
            self.seeds[request.messages] = request.seed


class _Noted:
    """A stream whose ended completions are noted."""

    replayed = False

    def __init__(self, stream: Stream, messages: tuple[Message, ...], noted: list[Asked]) -> None:
        self._stream = stream
        self._chunks = aiter(stream)
        self._messages = messages
        self._noted = noted

    @property
    def usage(self) -> Usage:
        return self._stream.usage

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        chunk = await anext(self._chunks)
        if chunk.completion is not None:
            self._noted.append(Asked(self._messages, text=chunk.completion.text))
        return chunk


async def ideal(noted: Iterable[Asked], block: int, tokens_of: Tokenize) -> tuple[int, int]:
    """Of all prompts the tokens that a cache of blocks without limit would have had, and how many there are."""
    known: set[int] = set()  # of whole blocks with all that is before them, by hash
    hits = size = 0
    for asked in noted:
        if asked.text is not None:
            whole = await tokens_of((*asked.messages, Message("assistant", asked.text)))
            known.update(_chain(whole, block))
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
    """Shares of prompt tokens: what the server found in its prefix cache, and the most that it could have."""

    found: float
    ideal: float

    @property
    def ratio(self) -> float:
        """1 where there was nothing to find."""
        return self.found / self.ideal if self.ideal else 1.0


async def measured(base_url: str, model: str, strategy: sg.Strategy, questions: Sequence[str]) -> Rates:
    """A strategy on these questions, all at once, on a server that does nothing else meanwhile."""
    backend = Noting(base_url, model, permits=64)
    try:
        [before] = (await backend.counts()).values()
        async with asyncio.TaskGroup() as group:
            for seed, question in enumerate(questions):
                group.create_task(_await(sg.solve(question, strategy, llm=backend, seed=seed)))
        [after] = (await backend.counts()).values()
        assert after.block_size is not None
        async with tokenizer(base_url, model) as tokens_of:
            hits, size = await ideal(backend.noted, after.block_size, tokens_of)
    finally:
        await backend.aclose()
    return Rates(after.since(before).prefix_hit_rate, hits / size)


async def _await(solving: Awaitable[object]) -> None:
    await solving


async def compare(base_url: str, model: str, problems: int, n: int, goals: Goals) -> None:
    """Print a line for each strategy."""
    for number, kind in enumerate(STRATEGIES):
        settings = {"kind": kind} if kind in SINGLE else {"kind": kind, "n": n}
        start = number * problems  # questions that no strategy before has asked
        questions = [skill("words").problem("test", start + i).question for i in range(problems)]
        rates = await measured(base_url, model, sg.Strategy.load(settings), questions)
        print(
            f"{kind:<18} {rates.found:6.1%} of the prompt tokens from the cache, ideal {rates.ideal:6.1%}, ratio "
            f"{rates.ratio:.3f} ({goals.at_least(rates.ratio, GOAL)})",
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
    args = arguments(__doc__).parse_args()
    goals = Goals(informative=args.informative)
    async with served(args) as (url, model):
        await compare(url, model, args.problems, args.n, goals)
    return goals.code


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
