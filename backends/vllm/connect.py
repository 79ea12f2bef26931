"""From a model to a backend over a vLLM server of one's own."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from stratagem.backends.openai import OpenAIBackend
from stratagem.backends.vllm.plan import plan
from stratagem.backends.vllm.profiles import Profile, Workload
from stratagem.backends.vllm.server import VLLMServer


@asynccontextmanager
async def connect_vllm(
    model: str | Path,
    profile: str | Profile = "agent",
    flags: Sequence[str] = (),
    *,
    workload: Workload | None = None,
    permits: int | None = None,
    python: str | Path | None = None,
    **options: Any,
) -> AsyncIterator[OpenAIBackend]:
    """A backend over a vLLM server that lives as long as the block.

        async with sg.connect_vllm("Qwen/Qwen3-8B", profile="agent") as llm:
            answer = await sg.solve(question, llm=llm)

    Args:
        model: a folder, or a name on the Hugging Face hub.
        profile: agent, latency, throughput, long-context, or a profile of one's own.
        flags: flags of `vllm serve`, which go before the profile's own.
        workload: what the server is going to be asked; the profile is made for it.
        permits: sequences in flight at the same time; default: the profile's.
        python: the interpreter of an environment that has vLLM; default: this one.
        options: further ones of :class:`~stratagem.backends.vllm.server.VLLMServer`.

    Raises:
        MissingExtraError: vLLM is not installed.
        ConfigurationError: this vLLM or this machine cannot do what is asked for.
        BackendTimeoutError, UnavailableError: it did not start, as :class:`VLLMServer` says.
    """
    planned = await asyncio.to_thread(plan, profile, flags, workload=workload, python=python)
    for note in planned.notes:
        warnings.warn(note, stacklevel=3)
    async with VLLMServer(model, planned.arguments, python=python, **options) as server:
        backend = OpenAIBackend(server.url, server.name, permits=permits or planned.profile.permits)
        try:
            yield backend
        finally:
            await backend.aclose()
