"""Logits processors of a real vLLM server, which a request gives arguments to."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from stratagem.backends.openai import OpenAIBackend
from stratagem.core.asking import Sampling
from vllm_kit import FLAGS, asked, run, serving

pytestmark = pytest.mark.vllm


def test_a_request_speaks_to_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with serving("agent", [*FLAGS, "--logits-processors", "letters:Only"]) as server:

        async def main(backend: OpenAIBackend) -> None:
            sampling = Sampling(0.0, max_tokens=5, logprobs=0, processors='{"only": 70}')
            plain, same = await asyncio.gather(
                backend.generate(asked(max_tokens=5)), backend.generate(sampling.request(asked().messages))
            )
            [completion] = same.completions
            assert len({token.token for token in completion.tokens}) == 1
            assert completion.text != plain.completions[0].text

        run(main, server)
