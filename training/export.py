"""Write a checkpoint as a model folder that the engine, transformers and vLLM load.

    python training/export.py training/out/final/last.pt --out backends/embedded/mini --temperature 1.0

With `--blend EARLIER SHARE` the weights are SHARE of the checkpoint and the rest of an earlier one that it was
trained from: what the later training has spoilt comes back, and most of what it has taught stays (Wortsman et al.
2022, arXiv 2109.01903).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from train import load_model


def export(
    checkpoint: Path, out: Path, temperature: float, earlier: Path | None = None, share: float = 1.0
) -> int:
    """Write config.json, generation_config.json and model.safetensors (float16); returns the parameters."""
    model = load_model(checkpoint)
    if earlier is not None:
        before = load_model(earlier).state_dict()
        model.load_state_dict(
            {name: torch.lerp(before[name], weight, share) for name, weight in model.state_dict().items()}
        )
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
    parser.add_argument("--blend", nargs=2, metavar=("EARLIER", "SHARE"))
    arguments = parser.parse_args()
    blend = (Path(arguments.blend[0]), float(arguments.blend[1])) if arguments.blend else ()
    count = export(arguments.checkpoint, arguments.out, arguments.temperature, *blend)
    sys.stdout.write(f"{arguments.out}: {count:,} parameters\n")
