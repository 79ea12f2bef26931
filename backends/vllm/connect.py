"""From a model to a backend over a vLLM server of one's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from stratagem.backends.openai import OpenAIBackend
from stratagem.backends.vllm.server import VLLMServer


@asynccontextmanager
async def connect_vllm(
    model: str | Path, flags: Sequence[str] = (), *, permits: int = 64, **options: Any
) -> AsyncIterator[OpenAIBackend]:
    """A backend over a vLLM server that lives as long as the block.

        async with sg.connect_vllm("Qwen/Qwen3-8B") as llm:
            answer = await sg.solve(question, llm=llm)

    Args:
        model: a folder, or a name on the Hugging Face hub.
        flags: further flags of `vllm serve`.
        permits: sequences in flight at the same time.
        options: of :class:`~stratagem.backends.vllm.server.VLLMServer`.

    Raises:
        ConfigurationError, BackendTimeoutError, UnavailableError: as that class says.
    """
    async with VLLMServer(model, flags, **options) as server:
        backend = OpenAIBackend(server.url, server.name, permits=permits)
        try:
            yield backend
        finally:
            await backend.aclose()
