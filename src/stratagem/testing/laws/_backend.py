"""The laws of backends: the contract of ``stratagem.core.backend``, checked on a real one."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from stratagem.core.backend import (
    Backend,
    Capabilities,
    Chunk,
    Completion,
    Constraint,
    Generation,
    Message,
    Request,
    ScoreRequest,
)
from stratagem.core.usage import Meter, Usage
from stratagem.testing.laws._trial import cancelled_everywhere, require
from stratagem.testing.loops import StepLoop
from stratagem.testing.loops import run as run_loop

MESSAGES = (Message("user", "How many apples are left?"),)


def backend(
    make: Callable[[], Backend],
    *,
    messages: Sequence[Message] = MESSAGES,
    max_tokens: int = 24,
    idle: Callable[[Backend], bool] | None = None,
    usage: Callable[[Backend], Usage] | None = None,
    cases: int = 50,
) -> None:
    """Check every law of backends.

    Args:
        make: makes the backend; called once, outside an event loop.
        messages: a conversation for it to complete.
        max_tokens: how far; the more, the better aborting is seen.
        idle: says whether the engine holds nothing (no request, permit or connection in use), where that can
            be known: for the toy model ``lambda m: m.books.in_flight == 0``.
        usage: says what the engine itself has counted, where that can be known.
        cases: points of cancellation tried, each in generating, streaming and scoring.

    Raises:
        AssertionError: a law is broken; the message opens with its name.
    """
    battery = _Battery(make(), Request(tuple(messages), max_tokens=max_tokens, seed=7), idle, usage, cases)
    run_loop(battery.first_loop(), StepLoop)
    run_loop(battery.second_loop(), StepLoop)


async def _collect(backend: Backend, request: Request, meter: Meter, *, deltas: bool) -> list[Chunk]:
    async with backend.stream(request, meter, deltas=deltas) as stream:
        chunks = [chunk async for chunk in stream]
    law = "what is spent is metered exactly once"
    require(stream.usage == meter.usage, law, f"stream says {stream.usage}, meter {meter.usage}")
    return chunks


def _texts(generation: Generation) -> list[str]:
    return [c.text for c in generation.completions]


class _Battery:
    def __init__(
        self,
        backend: Backend,
        request: Request,
        idle: Callable[[Backend], bool] | None,
        usage: Callable[[Backend], Usage] | None,
        cases: int,
    ) -> None:
        self.backend, self.request = backend, request
        self.idle, self.count, self.cases = idle, usage, cases
        self.able = Capabilities("")

    async def first_loop(self) -> None:
        """Everything, and a close at the end."""
        await self._identity()
        for law in (
            self._siblings, self._streams, self._limits, self._logprobs, self._scores, self._constraints,
            self._aborts, self._concurrent, self._cancelled,
        ):  # fmt: skip
            await law()
        await self.backend.aclose()
        await self._again("used after it was closed")
        await self.backend.aclose()

    async def second_loop(self) -> None:
        """The same backend in another event loop."""
        await self._again("used from a second event loop")
        await self.backend.aclose()

    async def _generate(self, request: Request, when: str = "") -> Generation:
        law = "what is spent is metered exactly once"
        meter, before = Meter(), self._counted()
        generation = await self.backend.generate(request, meter)
        require(meter.usage == generation.usage, law, f"{when} usage {generation.usage}, meter {meter.usage}")
        self._settled(when or "after generate", before, meter)
        law = "n completions, in order of index"
        indexes = [c.index for c in generation.completions]
        require(indexes == list(range(request.n)), law, f"asked for {request.n}, got {indexes}")
        return generation

    def _counted(self) -> Usage | None:
        return self.count(self.backend) if self.count is not None else None

    def _settled(self, when: str, before: Usage | None = None, meter: Meter | None = None) -> None:
        if self.idle is not None:
            require(self.idle(self.backend), "leaves nothing behind", f"{when}: the engine is not idle")
        if self.count is not None and before is not None and meter is not None:
            after, billed = self.count(self.backend), before + meter.usage
            law = "what is spent is metered exactly once"
            require(after == billed, law, f"{when}: billed up to {billed}, counted {after}")

    async def _identity(self) -> None:
        law = "it knows its name and what it can do"
        self.able = await self.backend.capabilities()
        require(self.able == await self.backend.capabilities(), law, "capabilities change between calls")
        require(bool(self.backend.name) and bool(self.able.model), law, "it has no name")
        promised = await self.backend.count_tokens(self.request.messages)
        spent = (await self._generate(replace(self.request, max_tokens=1))).usage.prompt_tokens
        exact = promised == spent or not self.able.exact_count
        require(spent <= promised and exact, "prompts are counted", f"{promised} promised, {spent} spent")

    async def _siblings(self) -> None:
        if not self.able.seed:
            return
        law = "completion i is drawn with seed + i"
        together = _texts(await self._generate(replace(self.request, n=4)))
        alone = [_texts(await self._generate(replace(self.request, n=4).sibling(i)))[0] for i in range(4)]
        require(together == alone, law, f"together {together}, alone {alone}")
        again = _texts(await self._generate(replace(self.request, n=4)))
        require(together == again, "same seed, same text", f"first {together}, then {again}")

    async def _streams(self) -> None:
        request = replace(self.request, n=3, temperature=None if self.able.seed else 0.0)
        whole = await self._generate(request)
        calls = whole.usage.calls
        require(calls <= 1 or not self.able.one_call, "one call is one call", f"n=3 were {calls} calls")
        for deltas in (True, False):
            chunks = await _collect(self.backend, request, Meter(), deltas=deltas)
            ended = {c.index: c.completion for c in chunks if c.completion is not None}
            law = "a stream ends each completion once"
            require(sorted(ended) == [0, 1, 2], law, f"deltas={deltas}: it ended {sorted(ended)}")
            count = sum(c.completion is not None for c in chunks)
            require(count == 3 and (deltas or len(chunks) == 3), law, f"{len(chunks)} chunks, {count} ends")
            law = "a stream gives what generate gives"
            got = [ended[i] for i in range(3)]
            require(got == list(whole.completions), law, f"deltas={deltas}: {got} is not {whole.completions}")
            for i, completion in enumerate(whole.completions):
                text = "".join(c.text for c in chunks if c.index == i)
                law = "deltas join to the text"
                require(text == completion.text, law, f"{text!r} is not {completion.text!r}")

    async def _limits(self) -> None:
        law = "max_tokens and stop strings are kept"
        [short] = (await self._generate(replace(self.request, max_tokens=2))).completions
        require(short.token_count <= 2, law, f"{short.token_count} tokens of 2")
        [long] = (await self._generate(self.request)).completions
        require(1 <= long.token_count <= self.request.max_tokens, law, f"{long.token_count} tokens")
        context = self.able.context or self.request.max_tokens
        [filled] = (await self._generate(replace(self.request, max_tokens=context))).completions
        require(filled.text.startswith(long.text), law, f"max_tokens={context} gave {filled.text!r}")
        if not self.able.seed or len(long.text) < 3:
            return
        stop = long.text[len(long.text) // 2 :][:2]
        stopped = replace(self.request, stop=(stop,))
        [cut] = (await self._generate(stopped)).completions
        expected = long.text.partition(stop)[0]
        require(cut.text == expected, law, f"stop={stop!r} gave {cut.text!r}, not {expected!r}")
        require(cut.finish == "stop", law, f"stop={stop!r}: finish is {cut.finish!r}")
        chunks = await _collect(self.backend, stopped, Meter(), deltas=True)
        text = "".join(c.text for c in chunks)
        require(text == expected, law, f"stop={stop!r} streamed {text!r}, not {expected!r}")

    async def _logprobs(self) -> None:
        if self.able.logprobs < 0:
            return
        law = "log-probabilities are the model's, best first"
        k = min(3, self.able.logprobs)
        for temperature in (0.0, None):
            request = replace(self.request, logprobs=k, temperature=temperature)
            [completion] = (await self._generate(request)).completions
            require(bool(completion.tokens), law, "none were given")
            for token in completion.tokens:
                top = [p for _, p in token.top]
                require(token.logprob <= 1e-6, law, f"{token} is above 0")
                require(top == sorted(top, reverse=True) and len(top) <= k, law, f"{token} is not in order")
                require(math.fsum(map(math.exp, top)) <= 1 + 1e-4, law, f"{token} sums to more than 1")
                greedy = temperature is None or not top or token.logprob >= top[0] - 1e-4
                require(greedy, law, f"temperature 0 chose {token}")
        [without] = (await self._generate(self.request)).completions
        require(without.tokens == (), law, "they were given though not asked for")

    async def _scores(self) -> None:
        if not self.able.prompt_logprobs:
            return
        law = "scores are the log-probabilities of generation"
        request = replace(self.request, temperature=0.0, logprobs=0 if self.able.logprobs >= 0 else None)
        [completion] = (await self._generate(request)).completions
        other = completion.text[: max(1, len(completion.text) // 2)]
        meter, before = Meter(), self._counted()
        scoring = await self.backend.score(ScoreRequest(request.messages, (completion.text, other)), meter)
        require(meter.usage == scoring.usage, law, f"usage {scoring.usage}, meter {meter.usage}")
        self._settled("after score", before, meter)
        require(len(scoring.scores) == 2, law, f"{len(scoring.scores)} scores of 2 continuations")
        for scored, said in zip(scoring.scores[0], completion.tokens, strict=False):
            if scored.token != said.token:  # the text is cut into other tokens than were generated
                break
            near = abs(scored.logprob - said.logprob) <= 1e-3
            require(near, law, f"{said.token!r}: scored {scored.logprob}, generated {said.logprob}")
        alone = await self.backend.score(ScoreRequest(request.messages, (other,)))
        sums = [math.fsum(t.logprob for t in s) for s in (alone.scores[0], scoring.scores[1])]
        same = sums[0] == sums[1] or abs(sums[0] - sums[1]) <= 1e-3
        require(same, "each continuation is scored on its own", f"alone {sums[0]}, beside another {sums[1]}")

    async def _constraints(self) -> None:
        law = "a constraint is kept"
        options = ["apple", "apple pie", "pear"]
        schema = {
            "type": "object",
            "properties": {"n": {"type": "integer"}},
            "required": ["n"],
            "additionalProperties": False,
        }
        kept: dict[str, tuple[Constraint, Callable[[str], bool]]] = {
            "choice": (Constraint.choice(options), options.__contains__),
            "regex": (Constraint("regex", "[0-9]{2}-[ab]"), lambda t: bool(re.fullmatch("[0-9]{2}-[ab]", t))),
            "json": (Constraint.json_schema(schema), lambda t: isinstance(json.loads(t)["n"], int)),
        }
        for kind in self.able.constraints & kept.keys():
            constraint, holds = kept[kind]
            for completion in await self._constrained(constraint):
                require(holds(completion.text), law, f"{kind}: it said {completion.text!r}")

    async def _constrained(self, constraint: Constraint) -> list[Completion]:
        request = replace(self.request, n=4, max_tokens=64, constraint=constraint)
        done = (await self._generate(request)).completions
        return [c for c in done if c.finish == "stop"]  # a number may outgrow any limit

    async def _aborts(self) -> None:
        law = "leaving the block stops decoding"
        request = replace(self.request, n=4)
        whole = (await self._generate(request)).usage
        for chunks_read in (0, 1, 3):
            meter, before = Meter(), self._counted()
            async with self.backend.stream(request, meter) as stream:
                chunks = aiter(stream)
                for _ in range(chunks_read):
                    await anext(chunks, None)
            when = f"left after {chunks_read} chunks"
            require(stream.usage == meter.usage, law, f"{when}: usage {stream.usage}, meter {meter.usage}")
            saved = whole.completion_tokens - meter.usage.completion_tokens
            must_save = self.able.exact_abort and chunks_read < 3 and whole.completion_tokens >= 16
            require(saved >= must_save, law, f"{when}: {meter.usage} of {whole}")
            self._settled(when, before, meter)

    async def _concurrent(self) -> None:
        law = "at the same time as one by one"
        if not self.able.seed:
            return
        requests = [replace(self.request, n=1 + i % 3, seed=100 * i) for i in range(8)]
        single = [_texts(await self._generate(r)) for r in requests]
        meters = [Meter() for _ in requests]
        before = self._counted()
        together = await asyncio.gather(*map(self.backend.generate, requests, meters))
        for one, other, meter in zip(single, together, meters, strict=True):
            require(one == _texts(other), law, f"alone {one}, together {_texts(other)}")
            require(meter.usage == other.usage, law, f"usage {other.usage}, meter {meter.usage}")
        self._settled(law, before, Meter(sum((m.usage for m in meters), Usage())))

    async def _cancelled(self) -> None:
        request = replace(self.request, n=3)
        scored = ScoreRequest(request.messages, ("one", "two apples", "three"))
        meter, before = Meter(), self._counted()

        def check(when: str) -> None:
            self._settled(when, before, meter)

        def begin(work: Callable[[Meter], Coroutine[Any, Any, object]]) -> Callable[[int], Any]:
            def start(_: int) -> Coroutine[Any, Any, object]:
                nonlocal meter, before
                meter, before = Meter(), self._counted()
                return work(meter)

            return start

        works: list[Callable[[Meter], Coroutine[Any, Any, object]]] = [
            lambda meter: self.backend.generate(request, meter),
            lambda meter: _collect(self.backend, request, meter, deltas=True),
        ]
        if self.able.prompt_logprobs:
            works.append(lambda meter: self.backend.score(scored, meter))
        for work in works:
            await cancelled_everywhere(begin(work), check, self.cases)
        await self._again("used after cancelled calls")

    async def _again(self, law: str) -> None:
        request = replace(self.request, n=2, temperature=None if self.able.seed else 0.0)
        first = _texts(await self._generate(request, law))
        again = _texts(await self._generate(request, law))
        require(first == again, law, f"first {first}, then {again}")
