"""Continuous batching (Yu et al., Orca, OSDI 2022): who computes what in the next step.

Each step runs one ragged batch: a token for every sequence that decodes, and prompt chunks in what is left of
the token bound, so that a long prompt delays nobody by more than a chunk. Samples of a job share its prompt's
blocks. Only the driver thread touches a scheduler.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stratagem.backends.embedded.cache import BLOCK, BlockCache
from stratagem.backends.embedded.constraints import Cursor
from stratagem.backends.embedded.forward import Chunk, Model
from stratagem.backends.embedded.requests import Delta, Event, Finish, Job, Sample, Spent, Token
from stratagem.backends.embedded.sampling import best, draw, log_softmax
from stratagem.backends.embedded.tokenizer import TextStream, Tokenizer
from stratagem.core.errors import UnsupportedError

Row = NDArray[np.float32]


@dataclass(slots=True, eq=False)
class _Sequence:
    """Tokens of which the first ``computed`` have keys and values in ``blocks``."""

    job: Job
    index: int  # of the child; -1 for the prompt itself
    tokens: list[int]
    blocks: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)  # of full blocks
    computed: int = 0
    end: int = 0  # tokens to compute before the next decision
    logprobs: list[Token] = field(default_factory=list)
    text: TextStream = field(default_factory=lambda: TextStream(()))
    generator: np.random.Generator | None = None
    cursor: Cursor | None = None


@dataclass(slots=True, eq=False)
class _Prompt:
    """An admitted job: its prompt's sequence, and the logits after it once they are known."""

    sequence: _Sequence
    logits: Row | None = None


class Scheduler:
    """Sequences of all jobs over one model and cache.

    At most ``max_running`` sequences decode at a time, and ``urgent`` more of jobs with a priority below 0: others
    wait for what they say, and would hold what these wait for. A step computes at most ``max_batch`` tokens (more
    only if that many sequences decode, so that prompts still get on). Wants a cache that holds the contexts of all.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        cache: BlockCache,
        max_running: int,
        max_batch: int,
        urgent: int = 0,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.cache = cache
        self.max_running = max_running
        self.max_batch = max_batch
        self.urgent = urgent
        self.end = model.config.end | {tokenizer.end}
        self.waiting: deque[Job] = deque()
        self.total = Spent()
        self.ended = 0  # jobs
        self.aborted = 0  # of them
        self.steps = 0
        self.outbox: list[tuple[Job, Event]] = []
        self._jobs: dict[Job, _Prompt] = {}  # admitted, oldest first
        self._active: list[_Sequence] = []  # children

    def enter(self, job: Job) -> None:
        """Put a job in line, behind those of its priority."""
        at = len(self.waiting)
        while at and self.waiting[at - 1].priority > job.priority:
            at -= 1
        self.waiting.insert(at, job)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._jobs and not self.waiting

    @property
    def running(self) -> int:
        """Jobs admitted and not ended."""
        return len(self._jobs)

    def abort(self, job: Job) -> None:
        """End a job with what it has; no effect on one that has ended."""
        if job in self.waiting:
            self.waiting.remove(job)
        elif job not in self._jobs:
            return
        self.aborted += 1
        for sequence in [s for s in self._active if s.job is job and job.continuations is None]:
            sequence.text.end(cut=True)
            job.samples[sequence.index] = self._sample(sequence, "abort")
        self._drop(job)
        self.outbox.append((job, job.result(aborted=True)))

    def fail(self, error: Exception, job: Job | None = None) -> None:
        """End one job, or all that were admitted, with an error."""
        for failed in [job] if job else list(self._jobs):
            self._drop(failed)
            self.outbox.append((failed, failed.result(error)))

    def step(self) -> None:
        """Admit, compute one batch, decide what follows for each sequence in it."""
        self.steps += 1
        while self.waiting and self._room(self.waiting[0]):
            job = self.waiting.popleft()
            self._jobs[job] = _Prompt(_Sequence(job, -1, list(job.prompt), end=len(job.prompt)))
        batch = self._compose()
        ready: list[tuple[_Sequence, Row]] = []
        if batch:
            logits = self.model.forward([chunk for _, chunk in batch], self.cache)
            at = 0
            for sequence, chunk in batch:
                self._computed(sequence, chunk, logits[at : at + chunk.logits], ready)
                at += chunk.logits
        for job, prompt in list(self._jobs.items()):
            if prompt.logits is not None:
                self._spawn(job, prompt, prompt.logits, ready)
        if ready:
            self._decide(ready)

    def _room(self, job: Job) -> bool:
        most = self.max_running + (self.urgent if job.priority < 0 else 0)
        return sum(max(1, other.open) for other in self._jobs) < most

    # -- what to compute -------------------------------------------------------------------------------

    def _compose(self) -> list[tuple[_Sequence, Chunk]]:
        decoding = [s for s in self._active if s.end - s.computed == 1]
        left = max(4 * BLOCK, self.max_batch - len(decoding))
        batch = [(s, self._chunk(s, 1)) for s in decoding]
        prompts = (p.sequence for p in self._jobs.values() if p.logits is None)
        for sequence in (*(s for s in self._active if s.end - s.computed > 1), *prompts):
            if left <= 0:
                break
            if sequence.index < 0 and not sequence.blocks and not sequence.job.prompt_logprobs:
                self._reuse(sequence)
            length = min(left, sequence.end - sequence.computed)
            batch.append((sequence, self._chunk(sequence, length)))
            left -= length
        return batch

    def _reuse(self, sequence: _Sequence) -> None:
        """Take the prompt's known prefix from the cache, but for the last token: its logits are wanted."""
        sequence.blocks, sequence.keys = self.cache.lookup(sequence.tokens[:-1])
        sequence.computed = len(sequence.blocks) * BLOCK
        sequence.job.spent.cached += sequence.computed
        self.total.cached += sequence.computed

    def _chunk(self, sequence: _Sequence, length: int) -> Chunk:
        start = sequence.computed
        while len(sequence.blocks) * BLOCK < start + length:
            sequence.blocks.append(self.cache.take())
        every = sequence.index >= 0 or sequence.job.prompt_logprobs
        logits = length if every else int(start + length == sequence.end)
        return Chunk(sequence.tokens[start : start + length], start, sequence.blocks, logits)

    # -- what follows ----------------------------------------------------------------------------------

    def _computed(
        self, sequence: _Sequence, chunk: Chunk, logits: Row, ready: list[tuple[_Sequence, Row]]
    ) -> None:
        job, length = sequence.job, len(chunk.tokens)
        sequence.computed += length
        self.cache.commit(sequence.tokens, sequence.blocks, sequence.keys, sequence.computed)
        decodes = sequence.index >= 0 and job.continuations is None
        if not decodes:
            job.spent.prefilled += length
            self.total.prefilled += length
        finished = sequence.computed == sequence.end
        if decodes:
            ready.append((sequence, logits[0]))
        elif sequence.index >= 0:
            self._note(sequence.logprobs, logits, sequence.tokens[chunk.start + 1 :], job.top)
            if finished:
                self._scored(sequence)
        else:
            if job.prompt_logprobs:
                self._note(job.prompt_tokens, logits, sequence.tokens[chunk.start + 1 :], job.top)
            if finished:
                self._jobs[job].logits = logits[-1].copy()

    @staticmethod
    def _note(notes: list[Token], logits: Row, following: Seq[int], top: int) -> None:
        """Add the log-probabilities of the tokens that follow the positions of ``logits``."""
        for row, token in zip(log_softmax(logits), following, strict=False):
            notes.append(Token(token, float(row[token]), tuple(best(row, top))))

    def _spawn(self, job: Job, prompt: _Prompt, logits: Row, ready: list[tuple[_Sequence, Row]]) -> None:
        """Start the job's children, as far as there is room; the last one takes over the prompt's blocks."""
        while job.started < job.children:
            index = job.started
            given = None if job.continuations is None else job.continuations[index]
            if given is not None and len(given) <= 1:  # the prompt's logits say it all
                job.started += 1
                if given:
                    notes: list[Token] = []
                    self._note(notes, logits[None], given, job.top)
                    job.scores[index] = tuple(notes)
                continue
            last = index == job.children - 1
            if not last and len(self._active) + self._holding() >= self.max_running:
                return
            job.started += 1
            job.live += 1
            sequence = self._child(prompt.sequence, index, given, last=last)
            self._active.append(sequence)
            if given is None:
                ready.append((sequence, logits))
            else:
                self._note(sequence.logprobs, logits[None], given, job.top)
        if not job.live:
            self._end(job)

    def _holding(self) -> int:
        return sum(bool(p.sequence.blocks) for p in self._jobs.values())

    def _child(self, prompt: _Sequence, index: int, given: Seq[int] | None, *, last: bool) -> _Sequence:
        job, length = prompt.job, len(prompt.tokens)
        child = _Sequence(job, index, [*prompt.tokens, *(given or ())], computed=length)
        child.keys = list(prompt.keys)
        if last:
            child.blocks, prompt.blocks = prompt.blocks, []
        else:
            child.blocks = self.cache.share(prompt.blocks, length)
        if given is not None:
            child.end = len(child.tokens) - 1
            return child
        sampling = job.sampling
        child.text = TextStream(sampling.stop)
        child.generator = np.random.Generator(np.random.PCG64((sampling.seed + index) % 2**64))
        child.cursor = sampling.grammar.cursor() if sampling.grammar else None
        return child

    def _decide(self, ready: list[tuple[_Sequence, Row]]) -> None:
        """Draw the next token of each sequence and see whether it ends."""
        masks: list[NDArray[np.bool_] | None] = []
        well: list[tuple[_Sequence, Row]] = []
        for sequence, logit_row in ready:
            if sequence.job not in self._jobs:  # a sibling's grammar broke
                continue
            try:
                masks.append(sequence.cursor.mask() if sequence.cursor else None)
            except UnsupportedError as error:
                self.fail(error, sequence.job)
            else:
                well.append((sequence, logit_row))
        if not well:
            return
        logits = np.stack([row for _, row in well])
        sequences = [s for s, _ in well]
        samplings = [s.job.sampling for s in sequences]
        generators = [s.generator for s in sequences if s.generator]
        tokens = draw(logits, samplings, generators, masks)
        noted = [i for i, s in enumerate(samplings) if s.logprobs is not None]
        rows = dict(zip(noted, log_softmax(logits[noted]), strict=True)) if noted else {}
        for i, (sequence, token) in enumerate(zip(sequences, tokens, strict=True)):
            if (row := rows.get(i)) is not None:
                top = tuple(best(row, samplings[i].logprobs or 0))
                sequence.logprobs.append(Token(token, float(row[token]), top))
            try:
                self._accept(sequence, token)
            except UnsupportedError as error:  # the grammar broke; the others in the batch are well
                self.fail(error, sequence.job)

    def _accept(self, sequence: _Sequence, token: int) -> None:
        job, sampling = sequence.job, sequence.job.sampling
        if job not in self._jobs:  # a sibling's grammar broke in this step
            return
        sequence.tokens.append(token)
        sequence.end = len(sequence.tokens)
        job.spent.decoded += 1
        self.total.decoded += 1
        finish: Finish | None = None
        ended = token in self.end and (sequence.cursor is not None or not sampling.ignore_end)
        text, stopped = sequence.text.push(self.tokenizer.bytes[token])
        complete = not ended and sequence.cursor is not None and sequence.cursor.advance(token)
        if ended or stopped or complete:
            finish = "stop"
        elif len(sequence.tokens) >= min(len(job.prompt) + sampling.max_tokens, self.model.config.context):
            finish = "length"
        if finish and not stopped:
            text += sequence.text.end(cut=finish == "length")
        sample = None
        if finish:
            sample = job.samples[sequence.index] = self._sample(sequence, finish)
        notes = tuple(sequence.logprobs[-1:])
        if job.want == "deltas" and (text or notes or sample):
            self.outbox.append((job, Delta(sequence.index, text, notes, sample)))
        elif job.want == "samples" and sample:
            self.outbox.append((job, Delta(sequence.index, sample.text, sample.logprobs, sample)))
        if finish:
            self._leave(sequence)

    def _scored(self, sequence: _Sequence) -> None:
        sequence.job.scores[sequence.index] = tuple(sequence.logprobs)
        self._leave(sequence)

    def _sample(self, sequence: _Sequence, finish: Finish) -> Sample:
        tokens = tuple(sequence.tokens[len(sequence.job.prompt) :])
        return Sample(sequence.index, sequence.text.text, tokens, finish, tuple(sequence.logprobs))

    def _leave(self, sequence: _Sequence) -> None:
        self._active.remove(sequence)
        self.cache.release(sequence.blocks)
        sequence.job.live -= 1
        if not sequence.job.open:
            self._end(sequence.job)

    def _end(self, job: Job) -> None:
        self._drop(job)
        self.outbox.append((job, job.result()))

    def _drop(self, job: Job) -> None:
        """Give back all that a job holds."""
        for sequence in [s for s in self._active if s.job is job]:
            self._active.remove(sequence)
            self.cache.release(sequence.blocks)
        self.ended += 1
        if (prompt := self._jobs.pop(job, None)) is not None:
            self.cache.release(prompt.sequence.blocks)
