"""vLLM's engine in this process: no HTTP between a strategy and its tokens.

The engine works in a process of vLLM's own; what is here only asks it. Guard a script that makes one by
`if __name__ == "__main__":`, since that process imports the script again.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from stratagem.backends._arrivals import Arrivals
from stratagem.backends._tasks import stopped
from stratagem.backends.vllm._checks import checked, notes
from stratagem.backends.vllm._failures import cause
from stratagem.backends.vllm._guard import Leash
from stratagem.backends.vllm.metrics import Snapshot
from stratagem.backends.vllm.plan import plan
from stratagem.backends.vllm.profiles import Profile, Workload, known
from stratagem.core.backend import (
    Capabilities,
    Chunk,
    Completion,
    Generation,
    Message,
    Request,
    ScoreRequest,
    Scoring,
    Stream,
    TokenLogprob,
)
from stratagem.core.concurrency import task_group
from stratagem.core.errors import (
    BackendError,
    ConfigurationError,
    ContextLengthError,
    MissingExtraError,
    ProtocolError,
    RejectedError,
    StratagemError,
    UnavailableError,
    UnsupportedError,
)
from stratagem.core.usage import Meter, Usage

_UNSEEN = 4  # tokens that an aborted sequence may still decode: steps under way, with asynchronous scheduling


class VLLMEngine:
    """A model in vLLM's asynchronous engine, for one event loop.

    Every sibling is a request of its own, drawn with its own seed; they share their prompt by the prefix cache.
    The engine starts at the first call, once for all callers whether or not they are cancelled meanwhile, and ends
    with :meth:`aclose`, as do the requests in flight, with an error; who asks after that starts it anew.

    Args:
        model: a folder, or a name on the Hugging Face hub.
        profile: agent, latency, throughput, long-context, or a profile of one's own, checked as a server's is. What
            of it concerns servers only is left out.
        workload: what the engine is going to be asked; the profile is made for it.
        arguments: fields of vLLM's ``AsyncEngineArgs``, as ``max_model_len=8192``; they go before the profile's.

    Raises:
        MissingExtraError: vLLM is not installed.
        ConfigurationError: (at the first call) vLLM or this machine cannot do what is asked for.
    """

    def __init__(
        self,
        model: str | Path,
        profile: str | Profile = "agent",
        *,
        workload: Workload | None = None,
        **arguments: Any,
    ) -> None:
        if find_spec("vllm") is None:
            raise MissingExtraError("vLLM", "vllm")
        self._model = str(model)
        if isinstance(profile, str):
            known(profile)
        self._profile, self._workload = profile, workload
        self._arguments = arguments
        self._numbers = itertools.count()
        self._start: asyncio.Future[None] | None = None
        self._end: asyncio.Future[None] | None = None
        self._engine: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asking: dict[asyncio.Timeout, asyncio.Event] = {}  # requests in flight, and that each has ended

    @property
    def name(self) -> str:
        """The model as it was given."""
        return f"vllm:{self._model}"

    async def capabilities(self) -> Capabilities:
        """Those of vLLM; under speculative decoding a seed no longer fixes a sampled text."""
        config = (await self._started()).vllm_config
        speculative = config.speculative_config is not None
        most = config.model_config.max_logprobs
        return Capabilities(
            model=self._model,
            context=config.model_config.max_model_len,
            n=True,
            seed=not speculative,
            logprobs=config.model_config.get_vocab_size() if most == -1 else most,
            prompt_logprobs=True,
            constraints=frozenset({"choice", "regex", "json", "grammar"}),
            continue_final=True,
            exact_count=True,
            temperature=self._default("temperature"),
            version=import_module("vllm").__version__,
        )

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        """Exact."""
        await self._started()
        return len(self._rendered(messages))

    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        """All completions, when the last has ended."""
        done: dict[int, Completion] = {}
        async with self.stream(request, meter, deltas=False) as stream:
            async for chunk in stream:
                if chunk.completion is not None:
                    done[chunk.index] = chunk.completion
        return Generation(tuple(done[i] for i in range(request.n)), stream.usage)

    @asynccontextmanager
    async def stream(
        self, request: Request, meter: Meter | None = None, *, deltas: bool = True
    ) -> AsyncIterator[Stream]:
        """Completions as they are decoded; leaving the block aborts them in the engine."""
        engine = await self._started()
        drawing = _Drawing(request.n)
        driver = asyncio.ensure_future(self._draw(engine, request, drawing, deltas))
        driver.add_done_callback(drawing.ended)
        try:
            yield drawing
        finally:
            await stopped(driver)
            if meter is not None:
                meter.add(drawing.usage)

    async def score(self, request: ScoreRequest, meter: Meter | None = None) -> Scoring:
        """Log-probabilities of the continuations, by those of a prompt that ends with each."""
        engine = await self._started()
        prefix = self._rendered(request.messages)
        tokenizer = engine.get_tokenizer()
        final = import_module("vllm.sampling_params").RequestOutputKind.FINAL_ONLY
        params = import_module("vllm").SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, output_kind=final
        )
        spent = Usage()

        async def one(text: str) -> tuple[TokenLogprob, ...]:
            nonlocal spent
            continuation = tokenizer.encode(text, add_special_tokens=False)
            if not continuation:
                return ()
            ids = [*prefix, *continuation]
            spent += Usage(prompt_tokens=len(ids), uncertain_tokens=1, calls=1)
            async with aclosing(self._ask(ids, params, 0)) as outputs:
                [output] = [output async for output in outputs]
            spent += Usage(completion_tokens=1, uncertain_tokens=-1)
            found = output.prompt_logprobs[len(prefix) :]
            return tuple(_logprob(token, at) for token, at in zip(continuation, found, strict=True))

        try:
            async with self._in_flight(engine), task_group() as group:
                tasks = [group.create_task(one(text)) for text in request.continuations]
        finally:
            if meter is not None:
                meter.add(spent)
        return Scoring(tuple(task.result() for task in tasks), spent)

    async def counts(self) -> dict[str, Snapshot]:
        """What the engine has counted, under its name; of several in one process the last one started counts.

        Raises:
            ProtocolError: it counts nothing (``disable_log_stats=True``).
        """
        if not (await self._started()).log_stats:
            raise ProtocolError(f"{self.name} counts nothing.", remedy="Leave out disable_log_stats.")
        page = import_module("prometheus_client").generate_latest().decode()
        return {self.name: Snapshot.of(page, import_module("vllm").__version__)}

    async def aclose(self) -> None:
        """Ends the engine and its process, also one that is still starting.

        Requests in flight are aborted in it and raise UnavailableError.

        Who is cancelled while it ends is so afterwards; while it starts, at once, and the engine is there.
        """
        start = self._start
        if start is None:
            return
        with suppress(StratagemError):  # one that could not start has told whoever asked it
            await asyncio.shield(start)
        if self._start is not start:
            return  # it could not start, or another has closed it meanwhile
        if self._end is None:
            self._end = asyncio.ensure_future(self._shut())
        cancelled: asyncio.CancelledError | None = None
        end = self._end
        while not end.done():
            try:
                await asyncio.wait([end])  # vLLM has a time limit of its own
            except asyncio.CancelledError as error:
                cancelled = error
        end.result()
        if cancelled is not None:
            raise cancelled

    async def _shut(self) -> None:
        try:
            # vLLM would leave them waiting for ever. While it lives they can tell it that they are aborted.
            asking = dict(self._asking)
            for limit in asking:
                limit.reschedule(0)
            for ended in asking.values():
                await ended.wait()
            if self._engine.output_handler is not None:
                # It would take the end of the process for a failure.
                await stopped(self._engine.output_handler)
        finally:
            try:
                await asyncio.to_thread(_ended, self._engine)
            finally:  # else all that is asked later would only be told how this end failed
                self._engine = self._start = self._end = self._loop = None

    @asynccontextmanager
    async def _in_flight(self, engine: Any) -> AsyncIterator[None]:
        """What is asked of that engine, until it ends or the engine is closed: that is an error."""
        closed = UnavailableError(f"{self.name} was closed before it had answered.")
        if self._end is not None or self._engine is not engine:
            raise closed
        limit, ended = asyncio.timeout(None), asyncio.Event()
        try:
            async with limit:
                self._asking[limit] = ended
                try:
                    yield
                finally:
                    del self._asking[limit]
        except TimeoutError as error:
            if limit.expired():
                raise closed from error
            raise
        finally:
            ended.set()

    async def _started(self) -> Any:
        loop = asyncio.get_running_loop()
        if self._start is not None and self._loop is not loop:
            raise ConfigurationError(
                "This engine belongs to another event loop.",
                remedy="Make one for each loop, or serve the model and connect to its URL.",
            )
        if self._end is not None:
            await asyncio.shield(self._end)
        if self._start is None:
            self._loop = loop
            self._start = asyncio.ensure_future(asyncio.to_thread(self._make))
            self._start.add_done_callback(self._starting_ended)
        # A start cannot be broken off: who is cancelled leaves it to those that come after, or to aclose().
        await asyncio.shield(self._start)
        return self._engine

    def _starting_ended(self, start: asyncio.Future[None]) -> None:
        if start.cancelled() or start.exception() is not None:
            self._start = self._loop = None

    def _make(self) -> None:
        planned = plan(self._profile, workload=self._workload)
        profile, rest = planned.profile.given(self._arguments)
        checked(profile, planned.hardware, planned.installed)
        for note in notes(profile, planned.installed):
            warnings.warn(note, stacklevel=1)
        # Never forked: there are threads here, and what is forked would not be told when this process is gone.
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        vllm = import_module("vllm")
        usage = import_module("vllm.usage.usage_lib").UsageContext.ENGINE_CONTEXT
        try:
            arguments = vllm.AsyncEngineArgs(model=self._model, **profile.engine_arguments(), **rest)
            config = arguments.create_engine_config(usage)
            config.leash = Leash()  # goes with the config to the engine's processes
            # Not given back: what vLLM keeps of this thread's frames would keep the engine.
            self._engine = import_module("vllm.v1.engine.async_llm").AsyncLLM.from_vllm_config(
                config,
                usage_context=usage,
                enable_log_requests=arguments.enable_log_requests,
                disable_log_stats=arguments.disable_log_stats,
            )
        except Exception as error:  # whatever vLLM raises on a bad model, argument, device or memory
            told = f"{type(error).__name__}: {error}"
            raise cause(told.splitlines(), model=self._model) or ConfigurationError(
                f"vLLM cannot run {self._model!r}: {told}", remedy="Its log has more."
            ) from error

    def _default(self, name: str) -> Any:
        found: dict[str, Any] = self._engine.model_config.get_diff_sampling_param()
        return found.get(name)

    def _rendered(self, messages: Sequence[Message]) -> list[int]:
        continued = bool(messages) and messages[-1].role == "assistant"
        found: Any = self._engine.get_tokenizer().apply_chat_template(
            [{"role": m.role, "content": m.content} for m in messages],
            add_generation_prompt=not continued,
            continue_final_message=continued,
            tokenize=True,
            return_dict=False,
        )
        return list(found)

    def _params(self, request: Request, kind: Any) -> Any:
        vllm = import_module("vllm")
        if request.tools:
            raise UnsupportedError(
                f"{self.name} has no native calls of tools in process.",
                remedy="Use a vLLM server, or the plan notation (format='lines').",
            )
        constraint = request.constraint
        outputs = None
        if constraint is not None:
            value = constraint.decoded() if constraint.type == "choice" else constraint.value
            outputs = import_module("vllm.sampling_params").StructuredOutputsParams(
                **{constraint.type: value}
            )
        default = self._default("temperature")
        temperature = request.temperature if request.temperature is not None else default
        return vllm.SamplingParams(
            max_tokens=request.max_tokens,
            temperature=1.0 if temperature is None else temperature,
            top_p=request.top_p,
            seed=random.getrandbits(63) if request.seed is None else request.seed,
            stop=list(request.stop),
            logprobs=request.logprobs,
            structured_outputs=outputs,
            output_kind=kind,
            extra_args=json.loads(request.processors) if request.processors else None,
        )

    async def _ask(self, ids: Sequence[int], params: Any, priority: int) -> AsyncGenerator[Any, None]:
        """The engine's outputs for one sequence, its errors as ours."""
        prompt = {"prompt_token_ids": list(ids)}
        outputs = self._engine.generate(prompt, params, f"stratagem-{next(self._numbers)}", priority=priority)
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    yield output
        except StratagemError:
            raise
        except ValueError as error:
            raise RejectedError(f"{self.name}: {error}") from error
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            if self._engine is None or self._engine.errored:
                raise UnavailableError(f"vLLM's engine has ended: {what}") from error
            raise BackendError(f"vLLM's engine failed: {what}") from error

    async def _draw(self, engine: Any, request: Request, drawing: _Drawing, deltas: bool) -> None:
        async with self._in_flight(engine):
            prompt = self._rendered(request.messages)
            able = await self.capabilities()
            assert able.context is not None
            if len(prompt) >= able.context:
                raise ContextLengthError(
                    f"The prompt has {len(prompt)} tokens and {self._model} takes {able.context} in all.",
                    remedy="Shorten the question or use a model with a longer context.",
                )
            if request.logprobs is not None and request.logprobs > able.logprobs:
                raise UnsupportedError(
                    f"{self.name} gives at most {able.logprobs} top log-probabilities.",
                    remedy="Raise max_logprobs.",
                )
            kinds = import_module("vllm.sampling_params").RequestOutputKind
            drawing.prompt = len(prompt)
            async with task_group() as group:
                for index in range(request.n):
                    params = self._params(request.sibling(index), kinds.DELTA)
                    group.create_task(self._sibling(prompt, params, request.priority, index, drawing, deltas))

    async def _sibling(
        self, prompt: Sequence[int], params: Any, priority: int, index: int, drawing: _Drawing, deltas: bool
    ) -> None:
        text: list[str] = []
        tokens: list[TokenLogprob] = []
        drawing.running += 1
        async with aclosing(self._ask(prompt, params, priority)) as outputs:
            async for output in outputs:
                [piece] = output.outputs
                new = tuple(
                    _logprob(token, at, params.logprobs)
                    for token, at in zip(piece.token_ids, piece.logprobs or (), strict=False)
                )
                text.append(piece.text)
                tokens += new
                drawing.decoded[index] = drawing.decoded.get(index, 0) + len(piece.token_ids)
                drawing.cached = max(drawing.cached, output.num_cached_tokens or 0)
                whole = None
                if output.finished:
                    finish: Literal["stop", "length"] = (
                        "length" if piece.finish_reason == "length" else "stop"
                    )
                    count = drawing.decoded[index]
                    whole = Completion(index, "".join(text), finish, count, tuple(tokens))
                    drawing.running -= 1
                if deltas or whole is not None:
                    drawing.give(Chunk(index, piece.text, new, whole))


class _Drawing(Arrivals):
    """The completions of one request, and what they have cost so far."""

    replayed = False

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.prompt = 0
        self.cached = 0
        self.running = 0  # siblings that the engine has been given and that have not ended
        self.decoded: dict[int, int] = {}

    @property
    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt,
            completion_tokens=sum(self.decoded.values()),
            cached_tokens=min(self.cached, self.prompt),
            uncertain_tokens=_UNSEEN * self.running,
            calls=1 if self.prompt else 0,
        )


def _ended(engine: Any) -> None:
    """Ends the engine and waits until its process is gone: vLLM kills what takes long, and does not wait. Workers
    for several devices are that process's children: it ends them before itself, and where it was killed, they end
    by their leash, which nobody waits for."""
    manager = engine.engine_core.resources.engine_manager
    processes = getattr(manager, "processes", ())  # Ray's are none of this one
    engine.shutdown()
    for process in processes:
        process.join()


def _logprob(token: int, at: Any, most: int = 0) -> TokenLogprob:
    """Of the token that stands there, and of the `most` likeliest."""
    ranked = sorted((found for found in at.values() if found.rank <= most), key=lambda found: found.rank)
    top = tuple((found.decoded_token or "", found.logprob) for found in ranked)
    return TokenLogprob(at[token].decoded_token or "", at[token].logprob, top)
