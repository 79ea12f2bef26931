"""A strategy's only door to the world.

Every model call goes through here: its worst case is reserved, its seed derived, its cost settled, its events
traced. Cancelling a run cancels its calls in the engine.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import math
import random
import time
from collections import Counter
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from stratagem.core.asking import JUDGE, POLICY, Prompt, Sampling, as_messages
from stratagem.core.backend import (
    Backend,
    Capabilities,
    Chunk,
    Completion,
    Message,
    Request,
    ScoreRequest,
    Scoring,
    Stream,
)
from stratagem.core.budget import Amount, Budget, Ledger, Reservation, holding
from stratagem.core.calling import Approval, Called, Instead, Toolbox
from stratagem.core.choosing import first_letters_differ, scored_mass, token_mass
from stratagem.core.concurrency import task_group
from stratagem.core.errors import (
    BudgetExhausted,
    ConfigurationError,
    ProtocolError,
    UnsupportedError,
    VerifierError,
    boundary,
)
from stratagem.core.kept import Kept
from stratagem.core.protocols import Verdict, Verifier, checked_verdicts
from stratagem.core.seeds import derive
from stratagem.core.streams import Told
from stratagem.core.task import Answer, Candidate, Task
from stratagem.core.trace import (
    CallFinished,
    CallStarted,
    CompletionArrived,
    Proposed,
    Trace,
    Verified,
    tracing,
)
from stratagem.core.usage import Meter, Prices

T = TypeVar("T")
R = TypeVar("R")


_FIRST = -1
"""Priority of what judges are asked, before samples: other work waits for them, and they are short."""


@dataclass(slots=True)
class _Call:
    """A call under way: where its cost is counted and held, and whether a journal answered it."""

    number: int
    meter: Meter
    reservation: Reservation
    replayed: bool = False


class Run:
    """One execution of a strategy: models by role, budget, seed, trace, best answer so far.

    ``models`` maps roles (policy, judge, reward, draft, embedder) to backends; a role that is not there is
    played by the policy. The same seed gives the same calls with the same seeds, however they interleave.
    """

    def __init__(
        self,
        models: Mapping[str, Backend],
        *,
        ledger: Ledger | None = None,
        seed: int = 0,
        trace: Trace | None = None,
        run_id: str = "",
        tools: Toolbox | None = None,
        kept: Kept | None = None,
        approve: Approval | None = None,
    ) -> None:
        self.models = models
        self.tools = tools
        self.kept = kept  # where finished calls of tools are kept; a journaled backend keeps those of models
        self.approve = approve  # asked before a call of a destructive tool
        self.ledger = ledger or Ledger()
        self.seed = seed
        self.trace = trace or Trace(run_id)
        self.run_id = run_id
        self.rng = random.Random(seed)
        self.best: Answer | None = None
        self._occurrences: Counter[str] = Counter()
        self._children = itertools.count(1)

    def model(self, role: str = POLICY) -> Backend:
        """The backend that plays ``role``."""
        return self.models.get(role) or self.models[POLICY]

    async def sample(
        self,
        prompt: Prompt,
        n: int = 1,
        *,
        sampling: Sampling | None = None,
        task: Task | None = None,
        role: str = POLICY,
        then: Callable[[Candidate], Awaitable[Candidate]] | None = None,
    ) -> list[Candidate]:
        """Draw ``n`` completions; fewer, but at least one, if the budget admits no more.

        Each candidate goes to ``then`` the moment it has ended, while its siblings are still being decoded;
        what ``then`` returns takes its place. If ``then`` runs out of budget the candidate stays as it was.
        ``task`` says how to extract answers (default: ``prompt``, if that is a task).

        Raises:
            BudgetExhausted: not even one completion was affordable.
            BackendError: a call failed for good.
        """
        task = task or (prompt if isinstance(prompt, Task) else None)
        request = self.request(prompt, n, sampling=sampling, role=role)
        follows = None if then is None else lambda _, candidate: then(candidate)
        return await self.draw(request, task=task, role=role, then=follows)

    def request(
        self, prompt: Prompt, n: int = 1, *, sampling: Sampling | None = None, role: str = POLICY
    ) -> Request:
        """What :meth:`sample` sends, with its seed: from the run's seed, what is asked, and how often that was
        asked before.

        Taken before anything is awaited, so that concurrent callers count in the order of their start.
        """
        sampling = sampling or Sampling()
        request = sampling.request(as_messages(prompt), n, _FIRST if role == JUDGE else 0)
        # Asking for log-probabilities draws nothing else: strategies that do share samples with those that don't.
        key = f"{role}/{replace(request, logprobs=None).key()}"
        return replace(request, seed=derive(self.seed, key, self.occurrence(key)))

    def occurrence(self, key: str) -> int:
        """How often the run has asked for this before, counted up."""
        self._occurrences[key] += 1
        return self._occurrences[key] - 1

    async def draw(
        self,
        request: Request,
        *,
        task: Task | None = None,
        role: str = POLICY,
        then: Callable[[int, Candidate], Awaitable[Candidate]] | None = None,
        piece: Callable[[int, Chunk], None] | None = None,
    ) -> list[Candidate]:
        """What :meth:`sample` gives, for a request that :meth:`request` made, or for siblings of it.

        So one of many samples can be stopped in the engine: each in a task of its own, which is cancelled. The
        texts are those that ``sample`` would have drawn together. ``then`` and ``piece`` are also told the index
        in ``request``; ``piece`` gets each completion in the pieces in which it is decoded. What it starts goes
        on beside the stream: it may ask a judge, which waits for its budget without holding up the stream.
        """
        n, messages = request.n, request.messages
        drawn: dict[int, Candidate] = {}
        outside = contextvars.copy_context()  # without this call's reservation

        def tell(index: int, chunk: Chunk) -> None:
            if piece is not None:
                outside.run(piece, index, chunk)

        async with task_group() as group:

            def arrived(index: int, completion: Completion) -> None:
                candidate = drawn[index] = Candidate.of(completion, task, messages)
                if then is not None:
                    group.create_task(follow(then, index, candidate), context=outside.copy())

            async def follow(
                then: Callable[[int, Candidate], Awaitable[Candidate]], index: int, candidate: Candidate
            ) -> None:
                try:
                    drawn[index] = await then(index, candidate)
                except BudgetExhausted:  # an unjudged candidate is worth more than none
                    drawn[index] = candidate

            while (done := len(drawn)) < n:
                rest = replace(request.sibling(done), n=n - done)
                try:
                    part, reservation = await self._admit(rest, role, shrink=not drawn)
                except BudgetExhausted:
                    if not drawn:
                        raise
                    break
                if then is None and piece is None:
                    await self._generate(part, role, reservation, done, arrived)
                else:
                    await self._stream(part, role, reservation, done, arrived, tell if piece else None)
                if drawn.keys() != set(range(done + part.n)):
                    name = self.model(role).name
                    raise ProtocolError(
                        f"{name} was asked for {part.n} completions and gave {len(drawn) - done}."
                    )
        return [drawn[i] for i in sorted(drawn)]

    @asynccontextmanager
    async def stream(
        self, prompt: Prompt, n: int = 1, *, sampling: Sampling | None = None, role: str = POLICY
    ) -> AsyncIterator[Stream]:
        """Completions as they are decoded; leaving the block aborts them in the engine.

        The whole worst case stays reserved inside the block, so a call made there that does not fit beside it
        is refused at once instead of waiting for it.
        """
        request = self.request(prompt, n, sampling=sampling, role=role)
        part, reservation = await self._admit(request, role, shrink=True)
        with self._call("stream", role, part.n, reservation) as call, holding():
            async with self.model(role).stream(part, call.meter) as stream:
                call.replayed = stream.replayed
                yield Told(stream, partial(self._arrived, call))

    async def score(self, prompt: Prompt, continuations: Sequence[str], *, role: str = POLICY) -> Scoring:
        """Log-probabilities of the tokens of each continuation, each on its own; of a reward model, rewards."""
        backend = self.model(role)
        messages = as_messages(prompt)
        caps = await self._capabilities(role)
        if not (caps.prompt_logprobs or caps.reward):
            raise UnsupportedError(f"{backend.name} cannot score given continuations.")
        # One token per byte is the most a byte-level vocabulary can need.
        longest = sum(len(text.encode()) + 1 for text in continuations)
        prompt_tokens = await self._count(messages, role)
        tokens = prompt_tokens * len(continuations) + longest
        calls = 1 if caps.one_call else len(continuations)
        amount = Amount(tokens, calls, caps.prices.of(tokens, len(continuations)))
        reservation = await self.ledger.reserve(amount)
        with self._call("score", role, len(continuations), reservation) as call:
            scoring = await backend.score(ScoreRequest(messages, tuple(continuations)), call.meter)
            call.replayed = scoring.replayed
            return scoring

    async def choose(self, prompt: Prompt, choices: Sequence[str], *, role: str = JUDGE) -> dict[str, float]:
        """Probability of each choice as what the model says next, normalised over the choices.

        Reads the log-probabilities of one decoded token: the mass of all tokens that begin exactly one choice
        (case and surrounding space aside). Where those do not tell the choices apart the whole choices are
        scored; where the backend cannot do that either, each is equally likely.
        """
        caps = await self.model(role).capabilities()
        if caps.logprobs < 1 and not caps.prompt_logprobs:
            raise UnsupportedError(
                f"{caps.model} gives no log-probabilities.", remedy="Use a backend that does, as the judge."
            )
        mass = dict.fromkeys(choices, 0.0)
        if caps.logprobs >= 1 and first_letters_differ(choices):
            sampling = Sampling(temperature=0.0, max_tokens=1, logprobs=min(20, caps.logprobs))
            [candidate] = await self.sample(prompt, sampling=sampling, role=role)
            mass = token_mass(candidate, choices)
        if not sum(mass.values()) and caps.prompt_logprobs:
            mass = scored_mass(await self.score(prompt, choices, role=role), choices)
        total = sum(mass.values())
        return {c: p / total if total else 1 / len(mass) for c, p in mass.items()}

    async def verify(self, verifier: Verifier, task: Task, candidates: Sequence[Candidate]) -> list[Verdict]:
        """The verifier's verdicts, one per candidate, in order."""
        with boundary(VerifierError, f"Verifier {verifier.kind!r}"):
            verdicts = await verifier(task, candidates, self)
        checked_verdicts(verifier, verdicts, len(candidates))
        self.trace.append(Verified(verifier.kind, tuple(v.score for v in verdicts)))
        return verdicts

    def toolbox(self) -> Toolbox:
        """The tools of the run.

        Raises:
            ConfigurationError: it has none.
        """
        if self.tools is None:
            raise ConfigurationError(
                "This strategy calls tools, and the run has none.",
                remedy="Give solve(..., tools=[...]) or stratagem solve --tools MODULE:NAME; a bench has the tools "
                "of its data, as gym:toolworld.",
            )
        return self.tools

    async def call(
        self,
        lines: AsyncIterable[str],
        *,
        known: Mapping[str, Any] | None = None,
        named: bool = True,
        before: int = 0,
        instead: Instead | None = None,
        stopped: Callable[[list[Called]], None] | None = None,
    ) -> list[Called]:
        """Make the calls of tools that the lines write (see :class:`Toolbox`), also while they still arrive."""
        return await self.toolbox().call(
            lines, self, known=known or {}, named=named, before=before, instead=instead, stopped=stopped
        )

    async def map(self, function: Callable[[T], Awaitable[R]], items: Iterable[T]) -> list[R]:
        """``function`` of all items at the same time, results in order; the first failure cancels the rest."""
        async with task_group() as group:
            tasks = [group.create_task(_await(function, item)) for item in items]
        return [task.result() for task in tasks]

    def propose(self, answer: Answer) -> Answer:
        """Note the best answer so far: what the run gives if it is stopped now."""
        self.best = answer
        self.trace.append(Proposed(answer.value, answer.confidence))
        return answer

    @asynccontextmanager
    async def within(self, budget: Budget) -> AsyncIterator[Run]:
        """A run inside this one with a budget of its own, seeded from this one's seed and its order.

        Raises:
            BudgetExhausted: it spent what it was given, or its time is up.
        """
        child = self.child(budget)
        async with child.deadline():
            yield child

    @asynccontextmanager
    async def deadline(self) -> AsyncIterator[None]:
        """Cancel what runs in the block when the budget's seconds are up, and raise BudgetExhausted."""
        left = self.ledger.seconds_left
        timer = asyncio.timeout(None if math.isinf(left) else max(0.0, left))
        try:
            async with timer:
                yield
        except TimeoutError as error:
            if not timer.expired():
                raise
            raise self.ledger.refuse_time() from error

    def child(self, budget: Budget | None = None) -> Run:
        """A run inside this one: same models and trace, nested ledger, its own seed."""
        return Run(
            self.models,
            ledger=self.ledger.child(budget),
            seed=derive(self.seed, "child", next(self._children)),
            trace=self.trace,
            run_id=self.run_id,
            tools=self.tools,
            kept=self.kept,
            approve=self.approve,
        )

    # -- one model call --------------------------------------------------------------------------------

    async def _admit(self, request: Request, role: str, *, shrink: bool) -> tuple[Request, Reservation]:
        """Reserve for as many of the completions as fit now, or wait for one.

        With ``shrink`` a budget that holds no whole completion gives a shorter one: only what reaches its end there
        has been cut short.
        """
        caps = await self._capabilities(role)
        prompt_tokens = await self._count(request.messages, role)
        max_tokens = request.max_tokens
        if caps.context is not None and caps.exact_count and prompt_tokens < caps.context:
            max_tokens = min(max_tokens, caps.context - prompt_tokens)
        wanted = Amount()
        while True:
            # A backend may send siblings as separate requests: each may pay for the prompt.
            money = caps.prices.of(prompt_tokens, max_tokens)
            once = Amount(calls=int(caps.one_call))
            each = Amount(prompt_tokens + max_tokens, 1 - once.calls, money)
            if shrink and (room := self._room(prompt_tokens, each)):
                wanted, max_tokens = wanted if wanted.tokens else each, room
                continue
            n = max(1, self.ledger.affordable(each, request.n, once=once))
            try:
                reservation = await self.ledger.reserve(once + each * n)
            except BudgetExhausted:  # others have spent meanwhile what it waited for
                if not (shrink and self._room(prompt_tokens, each)):
                    raise
                continue
            reservation.wanted = wanted
            return replace(request, n=n, max_tokens=max_tokens), reservation

    def _room(self, prompt_tokens: int, each: Amount) -> int:
        """Tokens of a completion that what is left of the budget holds, where it holds some but not ``each``."""
        left = self.ledger.left().tokens
        return left - prompt_tokens if left is not None and prompt_tokens < left < each.tokens else 0

    async def _capabilities(self, role: str) -> Capabilities:
        """What the role's backend can do.

        Raises:
            ConfigurationError: money is limited and no model has a price.
        """
        caps = await self.model(role).capabilities()
        if self.ledger.limits_money and caps.prices == Prices():
            others = [await backend.capabilities() for backend in self.models.values()]
            free = self.tools is None or not self.tools.priced
            if free and all(other.prices == Prices() for other in others):
                raise ConfigurationError(
                    f"{caps.model} has no prices: a budget of money would limit nothing.",
                    remedy="Limit tokens, calls or seconds, or give a server's prices (on the command line "
                    "--price-in and --price-out; else prices=Prices(...) to connect).",
                )
        return caps

    async def _count(self, messages: Sequence[Message], role: str) -> int:
        """Tokens of the prompt, where a limit depends on them: counting may be a request to the server."""
        return await self.model(role).count_tokens(messages) if self.ledger.counts_tokens else 0

    @contextmanager
    def _call(self, operation: str, role: str, n: int, reservation: Reservation) -> Iterator[_Call]:
        amount = reservation.amount
        call = _Call(self.trace.next_call(), Meter(again=lambda: reservation.extend(amount)), reservation)
        started, error = time.monotonic(), ""
        try:
            self.trace.append(CallStarted(call.number, operation, role, n))
            with tracing(self.trace):
                yield call
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            usage = call.meter.usage
            reservation.settle(usage)  # first: a listener may raise
            self.trace.append(
                CallFinished(call.number, usage, time.monotonic() - started, call.replayed, error)
            )

    async def _generate(
        self,
        request: Request,
        role: str,
        reservation: Reservation,
        offset: int,
        arrived: Callable[[int, Completion], None],
    ) -> None:
        with self._call("generate", role, request.n, reservation) as call:
            generation = await self.model(role).generate(request, call.meter)
            call.replayed = generation.replayed
            for completion in generation.completions:
                self._arrived(call, completion)
                arrived(offset + completion.index, completion)

    async def _stream(
        self,
        request: Request,
        role: str,
        reservation: Reservation,
        offset: int,
        arrived: Callable[[int, Completion], None],
        piece: Callable[[int, Chunk], None] | None,
    ) -> None:
        with self._call("stream", role, request.n, reservation) as call, holding():
            async with self.model(role).stream(request, call.meter, deltas=piece is not None) as stream:
                call.replayed = stream.replayed
                async for chunk in stream:
                    if piece is not None:
                        piece(offset + chunk.index, chunk)
                    if chunk.completion is not None:
                        self._arrived(call, chunk.completion)
                        arrived(offset + chunk.index, chunk.completion)

    def _arrived(self, call: _Call, completion: Completion) -> None:
        if completion.finish == "length":
            call.reservation.cut()
        told = (completion.index, completion.text, completion.finish, completion.token_count)
        self.trace.append(CompletionArrived(call.number, *told))


async def _await(function: Callable[[T], Awaitable[R]], item: T) -> R:
    return await function(item)
