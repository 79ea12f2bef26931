"""One completion request on its way through the engine, and the faults that strike it there."""

import asyncio
import time
from dataclasses import dataclass, field
from email.utils import formatdate

from stratagem.testing._server.answer import Choice, Writer, plan, sse
from stratagem.testing._server.engine import Engine, Sequence
from stratagem.testing._server.http import Exchange
from stratagem.testing._server.journal import Fault, FaultHook, Outcome, Record
from stratagem.testing._server.settings import SimSettings
from stratagem.testing._server.text import Responder, SimRequest, Vocabulary
from stratagem.testing._server.wire import Body, bad_request

_BLOCK = 16  # tokens that the prefix cache keeps together, as vLLM's block size
_STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}


@dataclass(frozen=True, slots=True)
class Machine:
    """What all requests share."""

    settings: SimSettings
    responder: Responder
    faults: FaultHook
    engine: Engine
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    prefixes: set[int] = field(default_factory=set)

    def cached(self, pieces: tuple[str, ...]) -> int:
        """Tokens at the prompt's start whose blocks were seen before (the last token is always computed)."""
        found, known, chain = 0, True, 0
        for end in range(_BLOCK, len(pieces), _BLOCK):
            chain = hash((chain, pieces[end - _BLOCK : end]))
            known = known and chain in self.prefixes
            found += _BLOCK if known else 0
            self.prefixes.add(chain)
        return found


class Job:
    """Decodes and answers one completion request. `book` keeps its record true at any moment."""

    def __init__(self, machine: Machine, exchange: Exchange, record: Record) -> None:
        self._machine = machine
        self._exchange = exchange
        self._record = record
        self._moved = asyncio.Event()
        self._sequences: list[Sequence] = []
        self._prompt_tokens = self._cached = 0
        self.headers = {"x-request-id": record.id}

    async def run(self, body: Body, requests: list[SimRequest]) -> None:
        """Answers. Raises WireError for what is to be refused."""
        fault = self._record.fault = self._machine.faults(requests[0])
        slow = 0.0
        if fault is not None and fault.kind == "slow":
            slow, fault = fault.delay, None
        if fault is not None and fault.after == 0:
            await self._strike(fault)
            return
        choices = self._choices(body, requests)
        lengths = [len(choice.tokens) for choice in choices]
        if fault is not None and fault.after is not None:
            lengths = [min(length, fault.after) for length in lengths]
        self._submit(body, requests, lengths, slow)
        s = self._machine.settings
        writer = Writer.of(
            s.flavour, body, requests, choices, self._machine.vocabulary, s.model, self._cached
        )
        if body.stream:
            await self._stream(writer, fault)
        else:
            await self._whole(writer, fault)

    def stop(self) -> None:
        """Ends decoding and enters what was decoded in the record."""
        self._machine.engine.abort(sequence for sequence in self._sequences if not sequence.done)
        self.book()

    def book(self) -> None:
        """Enters what has been decoded so far in the record."""
        record = self._record
        record.decoded = sum(sequence.decoded for sequence in self._sequences)
        record.billed = any(sequence.admitted for sequence in self._sequences)
        if record.billed:
            record.prompt_tokens, record.cached_tokens = self._prompt_tokens, self._cached

    def _choices(self, body: Body, requests: list[SimRequest]) -> list[Choice]:
        flavour = self._machine.settings.flavour
        planned: list[Choice] = []
        for request in requests:
            try:
                completions = self._machine.responder(request)
            except ValueError as error:
                raise bad_request(flavour, str(error)) from error
            if len(completions) != request.n:
                raise RuntimeError(f"the responder gave {len(completions)} completions for n={request.n}")
            for completion in completions:
                planned.append(plan(flavour, request, completion, len(planned), body))
        return planned

    def _submit(self, body: Body, requests: list[SimRequest], lengths: list[int], slow: float) -> None:
        s = self._machine.settings
        prompts = [len(request.prompt_tokens) for request in requests]
        cached = [self._machine.cached(request.prompt_tokens) for request in requests]
        self._prompt_tokens, self._cached = sum(prompts), sum(cached)
        notify = self._moved.set if body.stream else self._notify_at_end
        for i, length in enumerate(lengths):
            fresh = prompts[i // body.n] - cached[i // body.n]
            prefill = s.first_token + s.per_prompt_token * fresh + slow
            self._sequences.append(Sequence(length, prefill, notify))
        self._machine.engine.submit(self._sequences)

    def _notify_at_end(self) -> None:
        if self._over():
            self._moved.set()

    def _over(self) -> bool:
        return all(sequence.done for sequence in self._sequences)

    async def _whole(self, writer: Writer, fault: Fault | None) -> None:
        await self._moved.wait()
        self.book()
        if fault is not None:
            await self._strike(fault)
            return
        self._sent("finished", 200, self._record.decoded)
        self._exchange.send_json(200, writer.whole(), self.headers)

    async def _stream(self, writer: Writer, fault: Fault | None) -> None:
        every = writer.body.stream_interval
        sent = [0] * len(self._sequences)
        ended = [False] * len(self._sequences)
        began = False
        while True:
            await self._moved.wait()
            self._moved.clear()
            over = self._over()
            if not began:
                began = True
                self._record.status = 200
                self._exchange.begin({**_STREAM_HEADERS, **self.headers})
                for data in writer.opening():
                    await self._exchange.write(data)
            for i, sequence in enumerate(self._sequences):
                before, decoded = sent[i], sequence.decoded
                whole = sequence.done and decoded == len(writer.choices[i].tokens)
                if ended[i] or (decoded == before and not whole):
                    continue
                if before and decoded - before < every and not sequence.done:
                    continue  # as vLLM: the first token at once, then every so many
                sent[i], ended[i] = decoded, whole
                self._record.delivered += decoded - before
                await self._exchange.write(writer.chunk(writer.choices[i], before, decoded))
            if over:
                break
        if fault is not None:
            await self._strike(fault)
            return
        self._sent("finished", 200, self._record.delivered)
        await self._exchange.write(writer.closing())
        self._exchange.end()

    def _sent(self, outcome: Outcome, status: int, delivered: int) -> None:
        self._record.outcome, self._record.status, self._record.delivered = outcome, status, delivered

    async def _strike(self, fault: Fault) -> None:
        """Lets the fault happen, in whatever state the answer is."""
        record, exchange = self._record, self._exchange
        streaming = record.status == 200
        record.outcome = "failed"
        if fault.kind == "hang":
            record.outcome = "running"  # until the client goes away
            await asyncio.get_running_loop().create_future()
        if fault.kind == "drop" or (streaming and fault.kind == "content_type"):
            exchange.drop()
        elif fault.kind == "status":
            named = {"message": f"simulated {fault.status}", "type": "simulated", "param": None}
            error = {"error": {**named, "code": fault.status}}
            if streaming:  # as vLLM tells of an error when the answer has begun
                await exchange.write(sse(error) + b"data: [DONE]\n\n")
                exchange.end()
            else:
                record.status = fault.status
                exchange.send_json(fault.status, error, {**self.headers, **_retry_after(fault)})
        elif fault.kind == "content_type":
            record.status = 200
            exchange.send(200, b"<html><body>It works!</body></html>", {"content-type": "text/html"})
        elif streaming:
            await exchange.write(b'data: {"id":"x","choices":[{"ind\n\n')
            exchange.end()
        else:
            record.status = 200
            body = b'{"id":"x","object":"chat.completion","choices":[{"ind'
            exchange.send(200, body, {"content-type": "application/json", **self.headers})


def _retry_after(fault: Fault) -> dict[str, str]:
    if fault.retry_after is None:
        return {}
    if fault.retry_after_date:
        return {"retry-after": formatdate(time.time() + fault.retry_after, usegmt=True)}
    return {"retry-after": f"{fault.retry_after:g}"}
