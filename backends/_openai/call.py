"""One request for completions, split over the permits that are free, resent where that is due."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from stratagem.backends._openai.endpoint import Attempt
from stratagem.backends._openai.failure import Malformed, NoLogprobs
from stratagem.backends._openai.permits import Lease
from stratagem.backends._openai.sender import Failed, Sender, Tally
from stratagem.backends._openai.wire import (
    MAX_GROUP,
    Delta,
    Dialect,
    Draft,
    completion,
    priced,
    read_chunk,
    read_whole,
    reading,
)
from stratagem.core.backend import Chunk, Request, TokenLogprob
from stratagem.core.concurrency import task_group
from stratagem.core.errors import BackendError
from stratagem.core.usage import Prices, Usage

CHAT = "/chat/completions"
_NO_PRIORITIES = "riority scheduling is not enabled"


def _hand_back(lease: Lease, _task: object) -> None:
    lease.close()


@dataclass(slots=True, eq=False)
class Part:
    """Completions asked for by one HTTP request, and what it has shown so far."""

    drafts: list[Draft]
    lease: Lease
    prompt_tokens: int | None = None
    final: Usage | None = None

    @property
    def known(self) -> Usage:
        """What it has certainly cost so far."""
        if self.final is not None:
            return self.final
        seen = self.prompt_tokens is not None or any(draft.count for draft in self.drafts)
        return Usage(self.prompt_tokens or 0, sum(d.count for d in self.drafts), calls=int(seen))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a call is to do. `prompt_bound`: the most tokens that the prompt can have."""

    request: Request
    dialect: Dialect
    prices: Prices
    prompt_bound: Callable[[], int]
    learned: Callable[[int], None]  # told the prompt's true number of tokens
    without_logprobs: Callable[[], None]  # told that the server has left them out
    stream: bool
    deltas: bool
    abort_slack: int  # tokens that vLLM decodes at most, per completion, before it sees that one has left

    @property
    def every(self) -> int:
        """Tokens of a completion that vLLM tells at a time: pieces that nobody reads cost both sides time."""
        return 1 if self.deltas else max(1, self.abort_slack)


@dataclass(slots=True)
class Call:
    """Draws the completions of one request.

    `arrived` gets each completion when it has ended, and with `deltas` every piece before it, in order. How the
    completions are grouped into HTTP requests depends on the permits; their seeds, and so their texts, do not.
    """

    plan: Plan
    sender: Sender
    tally: Tally
    arrived: Callable[[Chunk], None]
    _live: set[Part] = field(default_factory=set)
    _shown: dict[int, tuple[str, int]] = field(default_factory=dict)  # text and tokens given out, by index
    _ended: set[int] = field(default_factory=set)
    _group: int = MAX_GROUP

    def __post_init__(self) -> None:
        request, dialect = self.plan.request, self.plan.dialect
        # Only vLLM counts seeds up from child to child; and it refuses n > 1 with greedy decoding.
        seeded_elsewhere = request.seed is not None and not dialect.vllm
        if not dialect.caps.n or seeded_elsewhere or request.temperature == 0:
            self._group = 1

    @property
    def usage(self) -> Usage:
        """Spent so far, the parts under way included."""
        return sum((part.known for part in self._live), self.tally.total)

    async def draw(self, indices: Sequence[int], number: int = 0) -> None:
        """Draws these completions, for which `number` attempts have failed before.

        Raises BackendError, ConfigurationError or BudgetExhausted.
        """
        pending = list(indices)
        async with task_group() as group:
            with self.sender.endpoint.permits.claim(len(pending)) as claim:
                while pending:
                    lease = await claim.take()
                    while lease.count:
                        size = self._size(pending, lease.count)
                        part = Part([Draft(index) for index in pending[:size]], lease.split(size))
                        del pending[:size]
                        task = group.create_task(self._part(part, number))
                        # A task that is cancelled before it starts never gets to its own clean-up.
                        task.add_done_callback(partial(_hand_back, part.lease))

    def _size(self, pending: Sequence[int], permits: int) -> int:
        """How many of the pending completions one request may ask for."""
        most = min(len(pending), permits, self._group)
        if self.plan.request.seed is None:
            return most
        return next((k for k in range(1, most) if pending[k] != pending[k - 1] + 1), most)

    async def _part(self, part: Part, number: int) -> None:
        self._live.add(part)
        endpoint = self.sender.endpoint
        try:
            await endpoint.admitted()
            await self.sender.attempt(
                lambda attempt: self._once(part, attempt),
                model=self.plan.dialect.caps.model,
                tally=self.tally,
                lost=lambda: self._lost(part),
            )
        except Failed as failed:
            self._close(part)
            missing = self._missing(part)
            if missing and endpoint.schedules and _NO_PRIORITIES in str(failed.failure.error):
                endpoint.schedules = False  # it refused the request for that alone, unheard
                await self.draw(missing, number)
            elif missing:
                await self.sender.wait(failed, number + 1, self.tally)
                await self.draw(missing, number + 1)
            return
        finally:
            self._close(part)
        missing = self._missing(part)
        if missing:  # a server that knows no n gave one completion for many
            self._group = 1
            await self.draw(missing, number)

    def _close(self, part: Part) -> None:
        self._live.discard(part)
        part.lease.close()

    def _missing(self, part: Part) -> list[int]:
        return [draft.index for draft in part.drafts if draft.index not in self._ended]

    async def _once(self, part: Part, attempt: Attempt) -> tuple[None, Usage]:
        indices = [draft.index for draft in part.drafts]
        plan, endpoint = self.plan, self.sender.endpoint
        body = completion(plan.request, indices, plan.dialect, stream=plan.stream, every=plan.every)
        if plan.dialect.vllm and endpoint.schedules and plan.request.priority:
            body["priority"] = plan.request.priority
        if plan.stream:
            async with endpoint.events(CHAT, body, attempt) as chunks:
                async for chunk in chunks:
                    self._read(part, chunk)
            self._finish_stream(part)
        else:
            answer = await endpoint.post(CHAT, body, attempt)
            with reading():
                drafts, part.final = read_whole(answer, indices)
            for draft in drafts:
                self._end(part, draft)
        usage = part.final
        if usage is None:
            return None, self._lost(part)
        plan.learned(usage.prompt_tokens)
        return None, priced(usage, plan.prices)

    def _read(self, part: Part, chunk: object) -> None:
        with reading():
            deltas, usage, whole = read_chunk(chunk, self.plan.request.logprobs is not None)
        if usage is not None:
            part.prompt_tokens = usage.prompt_tokens
            if whole:
                part.final = usage
        for delta in deltas:
            if not 0 <= delta.slot < len(part.drafts):
                raise Malformed(f"a choice has the index {delta.slot}")
            self._extend(part, part.drafts[delta.slot], delta)

    def _extend(self, part: Part, draft: Draft, delta: Delta) -> None:
        draft.take(delta.text, delta.calls)
        draft.tokens.extend(delta.tokens)
        if delta.count is not None:
            draft.count, draft.counted = delta.count, True
        elif delta.text or delta.tokens or delta.calls:
            draft.count += max(1, len(delta.tokens))  # at least that many
        draft.finish = delta.finish or draft.finish
        if draft.finish is not None:
            draft.close()
        # Where the server counts only at the end of the stream, a completion that is alone waits for that.
        if draft.finish is not None and (draft.counted or len(part.drafts) > 1):
            self._end(part, draft)
        elif self.plan.deltas and draft.finish is None:
            self._show(draft)

    def _finish_stream(self, part: Part) -> None:
        """Ends what was held back. Raises Malformed if the stream broke off."""
        for draft in part.drafts:
            if draft.finish is not None and draft.index not in self._ended:
                if part.final is not None and not draft.counted:
                    draft.count = part.final.completion_tokens
                self._end(part, draft)
        silent = [d for d in part.drafts if d.finish is None and not d.text and not d.tokens]
        broken = [d for d in part.drafts if d.finish is None and d not in silent]
        if broken or len(silent) == len(part.drafts):
            raise Malformed("the stream ended before the answer")

    def _end(self, part: Part, draft: Draft) -> None:
        if draft.index in self._ended:
            return
        if self.plan.request.logprobs is not None and draft.text and not draft.tokens:
            self.plan.without_logprobs()
            raise NoLogprobs
        done = draft.done()
        text, tokens = self._news(draft)
        self._ended.add(draft.index)
        self.arrived(Chunk(draft.index, text, tokens, done))
        part.lease.release()

    def _show(self, draft: Draft) -> None:
        text, tokens = self._news(draft)
        if text or tokens:
            before, count = self._shown.get(draft.index, ("", 0))
            self._shown[draft.index] = (before + text, count + len(tokens))
            self.arrived(Chunk(draft.index, text, tokens))

    def _news(self, draft: Draft) -> tuple[str, tuple[TokenLogprob, ...]]:
        """What was not given out yet. After a resend the first part was, and must be the same again. Half a
        character waits for the next delta: of two pieces each would be cleaned on its own, and not add up to it."""
        text, count = self._shown.get(draft.index, ("", 0))
        if not draft.text.startswith(text) and (draft.finish is not None or not text.startswith(draft.text)):
            raise BackendError(
                f"{self.sender.where}: the stream broke, and the resent one gave another text.",
                remedy="Give a seed, or read whole completions (deltas=False).",
            )
        news = draft.text[len(text) :]
        if draft.finish is None and "\ud800" <= news[-1:] <= "\udbff":
            news = news[:-1]
        return news, tuple(draft.tokens[count:])

    def _unseen(self, draft: Draft) -> int:
        """The most that may have been decoded of an unfinished completion beyond what was seen."""
        unseen = max(0, self.plan.request.max_tokens - draft.count)
        if not (self.plan.dialect.vllm and draft.counted):
            return unseen
        return min(unseen, self.plan.abort_slack + self.plan.every - 1)

    def _lost(self, part: Part) -> Usage:
        """What an attempt that broke off may have cost: what is known, and the most that is not."""
        if part.final is not None:
            return priced(part.final, self.plan.prices)
        known, prompt = part.known, 0
        if part.prompt_tokens is None:
            prompt = self.plan.prompt_bound()
        open_ended = [d for d in part.drafts if not (d.counted and d.finish)]
        decoded = sum(self._unseen(draft) for draft in open_ended)
        usage = replace(known, uncertain_tokens=prompt + decoded, calls=1)
        return priced(usage, self.plan.prices, uncertain_prompt=prompt)
