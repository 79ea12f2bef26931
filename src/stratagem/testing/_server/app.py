"""The simulated server itself: routing and books."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from types import TracebackType
from typing import Self

from stratagem.testing._server.engine import Engine
from stratagem.testing._server.http import Exchange, HttpServer
from stratagem.testing._server.job import Job, Machine
from stratagem.testing._server.journal import FaultHook, FaultSchedule, Record, Totals
from stratagem.testing._server.settings import SimSettings
from stratagem.testing._server.text import Responder, SimRequest, ToyResponder, render_chat, tokenize
from stratagem.testing._server.wire import (
    Body,
    Endpoint,
    WireError,
    bad_request,
    parse_body,
    parse_json,
    sim_requests,
    unauthorized,
    unknown_model,
)

_COMPLETIONS: dict[str, Endpoint] = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}
_POOLING: dict[str, Endpoint] = {"/classify": "classify", "/pooling": "pooling"}


class SimulatedServer:
    """A server on the current event loop, for the time of an `async with` block.

    Args:
        settings: its behaviour.
        responder: gives the completions of each prompt; default: `ToyResponder`.
        faults: called once per completion request; default: the schedule in the settings.

    Raises:
        Exception: on leaving the block, the first error that the responder or the hook raised.
    """

    def __init__(
        self,
        settings: SimSettings | None = None,
        *,
        responder: Responder | None = None,
        faults: FaultHook | None = None,
    ) -> None:
        self.settings = settings or SimSettings()
        self._records: list[Record] = []
        self._jobs: set[Job] = set()
        self._responder = responder or ToyResponder(self.settings.mean_tokens, self.settings.spread)
        self._faults = faults or FaultSchedule(self.settings.fault_seed, self.settings.faults)
        self._in_flight = self._peak_requests = self._others = 0
        self._waiters: list[tuple[Callable[[Totals], bool], asyncio.Future[None]]] = []
        self._url: str | None = None

    @property
    def url(self) -> str:
        """The base URL, `http://host:port/v1`. Raises RuntimeError before the server has started."""
        if self._url is None:
            raise RuntimeError("the server is not running; enter it with `async with`")
        return self._url

    async def __aenter__(self) -> Self:
        s = self.settings
        self._loop = asyncio.get_running_loop()
        self._engine = Engine(
            per_token=s.per_token, slowdown=s.slowdown, max_sequences=s.max_sequences, changed=self._changed
        )
        self._machine = Machine(s, self._responder, self._faults, self._engine)
        self._http = HttpServer(self._handle)
        self._url = f"http://{s.host}:{await self._http.start(s.host, s.port)}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()
        self._engine.close()
        if error is None and self._http.error is not None:
            raise self._http.error

    @property
    def records(self) -> list[Record]:
        """One record per completion request, in order of arrival, as they stand now."""
        for job in self._jobs:
            job.book()
        return self._records

    def totals(self) -> Totals:
        """The books as they stand now."""
        records = self.records
        outcomes = [record.outcome for record in records]
        return Totals(
            requests=len(records),
            billed=sum(record.billed for record in records),
            prompt_tokens=sum(record.prompt_tokens for record in records),
            cached_tokens=sum(record.cached_tokens for record in records),
            decoded=sum(record.decoded for record in records),
            delivered=sum(record.delivered for record in records),
            finished=outcomes.count("finished"),
            aborted=outcomes.count("aborted"),
            failed=outcomes.count("failed"),
            refused=outcomes.count("refused"),
            in_flight=self._in_flight,
            peak_requests=self._peak_requests,
            running_sequences=self._engine.running,
            waiting_sequences=self._engine.waiting,
            peak_sequences=self._engine.peak_running,
            peak_waiting=self._engine.peak_waiting,
            connections_opened=self._http.opened,
            connections_open=self._http.open,
            peak_connections=self._http.peak,
            other_requests=self._others,
        )

    async def until(self, holds: Callable[[Totals], bool]) -> None:
        """Waits until the books fulfil a condition, which is tried whenever they change."""
        if holds(self.totals()):
            return
        waiter = (holds, self._loop.create_future())
        self._waiters.append(waiter)
        try:
            await waiter[1]
        finally:
            self._waiters.remove(waiter)

    def _changed(self) -> None:
        if self._waiters:
            totals = self.totals()
            for holds, future in self._waiters:
                if not future.done() and holds(totals):
                    future.set_result(None)

    async def _handle(self, exchange: Exchange) -> None:
        request = exchange.request
        try:
            served = _POOLING if self.settings.reward else _COMPLETIONS
            if request.path in served and request.method == "POST":
                await self._complete(exchange, served[request.path])
                return
            if not request.path.startswith("/sim/"):
                self._others += 1
            self._answer_other(exchange)
        except WireError as error:
            exchange.send_json(error.status, error.body)

    def _answer_other(self, exchange: Exchange) -> None:
        s, request = self.settings, exchange.request
        vllm = s.flavour == "vllm"
        match request.method, request.path:
            case "GET", "/v1/models":
                self._authorize(exchange)
                head: dict[str, object] = {"object": "model", "created": int(time.time())}
                head["owned_by"] = "vllm" if vllm else "sim"
                length = {"max_model_len": s.max_model_len} if vllm else {}
                adapted: dict[str, object] = {"max_model_len": None, "parent": s.model} if vllm else {}
                cards = [{"id": s.model, **head, **length}]
                cards += [{"id": name, **head, **adapted} for name in s.adapters]
                exchange.send_json(200, {"object": "list", "data": cards})
            case "GET", "/health" if vllm:
                exchange.send(200, b"", {})
            case "GET", "/version" if vllm:
                exchange.send_json(200, {"version": "0.0.0+simulated"})
            case "POST", "/tokenize" if vllm and s.tokenize:
                exchange.send_json(200, self._tokenized(request.body))
            case "GET", "/sim/totals":
                exchange.send_json(200, asdict(self.totals()))
            case "GET", "/sim/records":
                exchange.send_json(200, [record.as_dict() for record in self.records])
            case _:
                exchange.send_json(404, {"detail": "Not Found"})

    def _authorize(self, exchange: Exchange) -> None:
        key = self.settings.api_key
        if key is not None and exchange.request.headers.get("authorization") != f"Bearer {key}":
            raise unauthorized(self.settings.flavour)

    def _tokenized(self, raw: bytes) -> dict[str, object]:
        data = parse_json(self.settings.flavour, raw)
        self._check_model(data.get("model"))
        messages, prompt = data.get("messages"), data.get("prompt")
        if isinstance(messages, list):
            continued = bool(data.get("continue_final_message"))
            asked = bool(data.get("add_generation_prompt", True))
            if continued and asked:
                raise bad_request(
                    self.settings.flavour,
                    "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
                )
            prompt = render_chat(messages, generation_prompt=asked, continue_final=continued)
        if not isinstance(prompt, str):
            raise bad_request(self.settings.flavour, "`prompt` must be a string.", "prompt")
        pieces = tokenize(prompt)
        out: dict[str, object] = {"count": len(pieces), "max_model_len": self.settings.max_model_len}
        out["tokens"] = [self._machine.vocabulary.id(piece) for piece in pieces]
        out["token_strs"] = pieces if data.get("return_token_strs") else None
        return out

    def _check_model(self, model: object) -> None:
        missing = model is None and self.settings.flavour == "openai"
        if missing:
            raise bad_request(self.settings.flavour, "you must provide a model parameter", "model")
        if model is not None and model not in (self.settings.model, *self.settings.adapters):
            raise unknown_model(self.settings.flavour, str(model))

    async def _complete(self, exchange: Exchange, endpoint: Endpoint) -> None:
        number = len(self._records)
        headers = exchange.request.headers
        record = Record(
            number, headers.get("x-request-id", f"sim-{number}"), endpoint, False, 1, self._loop.time()
        )
        self._records.append(record)
        self._in_flight += 1
        self._peak_requests = max(self._peak_requests, self._in_flight)
        job = Job(self._machine, exchange, record)
        self._jobs.add(job)
        try:
            body, requests = self._read(exchange, endpoint, record)
            await job.run(body, requests)
        except WireError as error:
            record.outcome, record.status = "refused", error.status
            exchange.send_json(error.status, error.body, job.headers)
        except asyncio.CancelledError:
            if record.outcome == "running":
                record.outcome = "aborted"
            raise
        finally:
            job.stop()
            self._jobs.discard(job)
            self._in_flight -= 1
            record.ended_at = self._loop.time()
            self._changed()

    def _read(self, exchange: Exchange, endpoint: Endpoint, record: Record) -> tuple[Body, list[SimRequest]]:
        self._authorize(exchange)
        s = self.settings
        body, data = parse_body(s.flavour, endpoint, exchange.request.body)
        self._check_model(body.model)
        record.priority = int(data.get("priority", 0))
        if record.priority and not s.priorities:
            said = f"Got priority {data['priority']} but Priority scheduling is not enabled."
            raise bad_request(s.flavour, said, "priority")
        if s.ignores_n:
            body.n = 1
        if s.ignores_logprobs:
            body.logprobs = body.top_logprobs = None
        if s.reward and "add_generation_prompt" not in data:
            body.add_generation_prompt = False
        record.stream, record.n = body.stream, body.n
        return body, sim_requests(
            s.flavour,
            endpoint,
            body,
            data,
            number=record.number,
            request_id=record.id,
            headers=exchange.request.headers,
            vocabulary=self._machine.vocabulary,
            max_model_len=s.max_model_len,
        )
