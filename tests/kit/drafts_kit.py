"""Drafts with weights for the shipped model, in the formats that vLLM's own methods load.

Nothing is trained: a head maps the model's hidden states to later ones by a matrix that is solved for over texts.
That is enough for drafts of which some hold and some do not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_kit import MINI

DEPTH = 4  # tokens guessed at a time
_AUXILIARY = (2, 4, 6)  # the layers whose inputs vLLM gives to EAGLE-3, of nine
_RIDGE = 1.0


def draft(method: str, folder: Path, said: Sequence[tuple[str, str]]) -> Path:
    """What the method guesses with: the shipped model itself, or heads for what was said, question and text."""
    if method == "draft_model":
        return MINI
    from safetensors.torch import save_file

    config, weights = {"medusa": _medusa, "eagle3": _eagle3}[method](_Seen(said))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(
        {name: weight.clone().contiguous() for name, weight in weights.items()}, folder / "model.safetensors"
    )
    return folder


class _Seen:
    """The shipped model, and the inputs of its layers and of its output over texts, row by row."""

    def __init__(self, said: Sequence[tuple[str, str]]) -> None:
        import torch
        from transformers import AutoTokenizer, LlamaForCausalLM

        tokenizer = AutoTokenizer.from_pretrained(MINI)
        model = LlamaForCausalLM.from_pretrained(MINI, dtype=torch.float32)
        self.config = json.loads((MINI / "config.json").read_text(encoding="utf-8"))
        self.weights: dict[str, Any] = {name: weight.detach() for name, weight in model.state_dict().items()}
        self.states: list[list[Any]] = []
        for question, text in said:
            turns = [{"role": "user", "content": question}]
            prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            ids = torch.tensor([tokenizer.encode(prompt + text, add_special_tokens=False)])
            with torch.no_grad():
                found = model(ids, output_hidden_states=True).hidden_states
            self.states.append([state[0] for state in found])

    def solved(self, inputs: Sequence[Any], ahead: int, scale: Any = 1.0) -> Any:
        """The matrix from these, a row's each, to the model's last states so many tokens later."""
        import torch

        told = torch.cat([row[:-ahead] for row in inputs])
        wanted = torch.cat([states[-1][ahead:] / scale for states in self.states])
        ridge = _RIDGE * told.square().mean() * torch.eye(told.shape[1])
        return torch.linalg.solve(told.T @ told + ridge, told.T @ wanted).T

    def silent_layer(self, name: str) -> dict[str, Any]:
        """The model's first layer under another name, that computes and adds nothing."""
        first = {
            key.removeprefix("model.layers.0."): weight
            for key, weight in self.weights.items()
            if key.startswith("model.layers.0.")
        }
        for added in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
            first[added] = first[added] * 0
        return {f"{name}.{key}": weight for key, weight in first.items()}


def _medusa(seen: _Seen) -> tuple[dict[str, Any], dict[str, Any]]:
    """A head for each token to guess; the blocks, x + silu(W x), add nothing."""
    import torch

    size, output = seen.config["hidden_size"], seen.weights["lm_head.weight"]
    last = [states[-1] for states in seen.states]
    weights = {}
    for head in range(DEPTH):
        weights[f"blocks.{head}.layers.0.weight"] = torch.zeros(size, size)
        weights[f"lm_heads.{head}.weight"] = output @ seen.solved(last, head + 1)
    config = {"model_type": "medusa", "architectures": ["MedusaModel"], "num_heads": DEPTH}
    shape = {"hidden_size": size, "vocab_size": len(output), "num_hidden_layers": 1}
    return config | shape, weights


def _eagle3(seen: _Seen) -> tuple[dict[str, Any], dict[str, Any]]:
    """From the states in three places of the model, with a norm and an output of its own."""
    import torch

    told = [torch.cat([states[place] for place in _AUXILIARY], 1) for states in seen.states]
    norm = seen.weights["model.norm.weight"]
    layer = seen.silent_layer("midlayer")
    for name in "qkv":
        key = f"midlayer.self_attn.{name}_proj.weight"
        layer[key] = torch.cat([layer[key], layer[key]], 1)  # of the token and the state
    layer["midlayer.hidden_norm.weight"] = layer["midlayer.input_layernorm.weight"]
    weights = layer | {
        "fc.weight": seen.solved(told, 1, scale=norm),
        "norm.weight": norm,
        "lm_head.weight": seen.weights["lm_head.weight"],
    }
    return seen.config | {"num_hidden_layers": 1}, weights
