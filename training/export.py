"""Write a checkpoint as a model folder that the engine, transformers and vLLM load.

python training/export.py training/out/final/last.pt --out backends/embedded/mini --temperature 1.0
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from train import load_model


def export(checkpoint: Path, out: Path, temperature: float) -> int:
    """Write config.json, generation_config.json and model.safetensors (float16); returns the parameters."""
    model = load_model(checkpoint)
    weights = {
        f"model.{name}": parameter.detach().to("cpu", torch.float16).contiguous()
        for name, parameter in model.named_parameters()
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    generation = {"do_sample": True, "temperature": temperature, "eos_token_id": 4, "pad_token_id": 0}
    for name, content in (("config", model.config.llama()), ("generation_config", generation)):
        (out / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return sum(weight.numel() for weight in weights.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--temperature", type=float, default=1.0)
    arguments = parser.parse_args()
    count = export(arguments.checkpoint, arguments.out, arguments.temperature)
    sys.stdout.write(f"{arguments.out}: {count:,} parameters\n")
