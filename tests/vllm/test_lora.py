"""LoRA adapters of a real vLLM server, by role."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import stratagem as sg
from stratagem.backends.openai import OpenAIBackend
from stratagem.backends.vllm.server import VLLMServer
from vllm_kit import FLAGS, QUESTION, asked, serving

pytestmark = pytest.mark.vllm

RANK = 4


def adapter(folder: Path, scale: float) -> Path:
    """An adapter of the attention's outputs; with scale 0 it changes nothing."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "mini",
        "r": RANK,
        "lora_alpha": RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["o_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.manual_seed(0)
    weights = {}
    for layer in range(9):
        name = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        weights[f"{name}.lora_A.weight"] = torch.randn(RANK, 192) / 192**0.5
        weights[f"{name}.lora_B.weight"] = torch.randn(192, RANK) * scale
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    root = tmp_path_factory.mktemp("lora")
    same, other = adapter(root / "same", 0.0), adapter(root / "other", 1.0)
    flags = ["--enable-lora", "--max-lora-rank", "8", "--max-loras", "2"]
    modules = ["--lora-modules", f"same={same}", f"other={other}"]
    with serving("agent", [*FLAGS, *flags, *modules]) as started:
        yield started


def test_adapters_play_roles(adapted: VLLMServer) -> None:
    async def main() -> None:
        base = OpenAIBackend(adapted.url, adapted.name)
        try:
            same, other = base.for_model("same"), base.for_model("other")
            for each in (same, other):
                assert (await each.capabilities()).context == (await base.capabilities()).context == 1024
            request = asked()
            texts = [(await each.generate(request)).completions[0].text for each in (base, same, other)]
            assert texts[0] == texts[1] != texts[2]
            strategy = sg.BestOfN(n=2, verifier=sg.StepJudge())
            alone = await sg.solve(QUESTION, strategy, llm=base, seed=1)
            judged = {
                name: await sg.solve(QUESTION, strategy, llm=base, judge=each, seed=1)
                for name, each in (("same", same), ("other", other))
            }
            drawn = [c.text for c in alone.candidates]
            assert [c.text for c in judged["same"].candidates] == drawn
            assert [c.text for c in judged["other"].candidates] == drawn
            scores = {name: [c.scores["step_judge"] for c in a.candidates] for name, a in judged.items()}
            expected = [c.scores["step_judge"] for c in alone.candidates]
            assert scores["same"] == pytest.approx(expected, abs=1e-3)
            assert scores["other"] != pytest.approx(expected, abs=1e-3)
        finally:
            await base.aclose()

    asyncio.run(asyncio.wait_for(main(), 300))


def test_judges_may_go_first(adapted: VLLMServer) -> None:
    """The server takes priorities as they are sent."""

    async def main() -> None:
        base = OpenAIBackend(adapted.url, adapted.name)
        try:
            first, then = await base.generate(asked(priority=-1)), await base.generate(asked())
            assert first.completions == then.completions
        finally:
            await base.aclose()

    asyncio.run(asyncio.wait_for(main(), 300))
