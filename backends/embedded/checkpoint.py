"""Read a model folder in the Hugging Face layout: config.json, generation_config.json, model.safetensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from stratagem.core.errors import ConfigurationError
from stratagem.core.files import json_object

REMEDY = "Give a folder with config.json, model.safetensors and tokenizer.json, or serve the model with vLLM."


@dataclass(frozen=True, slots=True)
class Config:
    """Shape of a Llama model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    context: int  # tokens
    eps: float
    rope_theta: float
    tied: bool
    end: frozenset[int]  # tokens that end a completion
    temperature: float | None  # the model's own default, where its folder gives one


def read_config(folder: Path) -> Config:
    """The shape, checked to be one that the engine computes.

    Raises:
        ConfigurationError: a file is missing or broken, or the architecture is another one.
    """
    path = folder / "config.json"
    data = json_object(path, REMEDY)
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    needed = {
        "model_type": (data.get("model_type"), "llama"),
        "hidden_act": (data.get("hidden_act", "silu"), "silu"),
        "attention_bias": (bool(data.get("attention_bias")), False),
        "mlp_bias": (bool(data.get("mlp_bias")), False),
        "rope_type": (rope.get("rope_type", "default"), "default"),
    }
    for key, (value, expected) in needed.items():
        if value != expected:
            raise ConfigurationError(
                f"{path}: {key} is {value!r}; the embedded engine computes {expected!r}.", remedy=REMEDY
            )
    beside = folder / "generation_config.json"
    generation = json_object(beside, REMEDY) if beside.exists() else {}
    end = generation.get("eos_token_id", data.get("eos_token_id"))
    try:
        heads = int(data["num_attention_heads"])
        return Config(
            hidden=int(data["hidden_size"]),
            layers=int(data["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(data.get("num_key_value_heads") or heads),
            head_dim=int(data.get("head_dim") or data["hidden_size"] // heads),
            ffn=int(data["intermediate_size"]),
            vocabulary=int(data["vocab_size"]),
            context=int(data["max_position_embeddings"]),
            eps=float(data["rms_norm_eps"]),
            rope_theta=float(rope.get("rope_theta", data.get("rope_theta", 10000.0))),
            tied=bool(data.get("tie_word_embeddings", False)),
            end=frozenset(end if isinstance(end, list) else [] if end is None else [int(end)]),
            temperature=generation.get("temperature"),
        )
    except KeyError as error:
        raise ConfigurationError(f"{path} lacks the key {error}.", remedy=REMEDY) from error


def read_weights(folder: Path, config: Config) -> dict[str, NDArray[np.float32]]:
    """All tensors by name, as float32, their shapes checked.

    Raises:
        ConfigurationError: the file is missing or broken, or a tensor is missing or misshapen.
    """
    path = folder / "model.safetensors"
    try:
        tensors = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ConfigurationError(f"Cannot read {path}: {error.strerror}.", remedy=REMEDY) from error
    except SafetensorError as error:
        raise ConfigurationError(f"{path} is not a safetensors file: {error}.", remedy=REMEDY) from error
    weights = {name: _float32(path, name, view) for name, view in tensors}
    for name, shape in _shapes(config).items():
        if name not in weights or weights[name].shape != shape:
            found = weights[name].shape if name in weights else "nothing"
            raise ConfigurationError(
                f"{path}: {name} should have the shape {shape}; there is {found}.", remedy=REMEDY
            )
    return weights


def _float32(path: Path, name: str, view: dict[str, Any]) -> NDArray[np.float32]:
    kind, data = view["dtype"], view["data"]
    if kind == "BF16":  # the upper half of a float32
        values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif kind in ("F16", "F32"):
        values = np.frombuffer(data, "<f2" if kind == "F16" else "<f4").astype(np.float32)
    else:
        raise ConfigurationError(
            f"{path}: {name} is {kind}; the engine reads F16, BF16 and F32.", remedy=REMEDY
        )
    return values.reshape(view["shape"])


def _shapes(c: Config) -> dict[str, tuple[int, ...]]:
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (c.vocabulary, c.hidden),
        "model.norm.weight": (c.hidden,),
    }
    if not c.tied:
        shapes["lm_head.weight"] = (c.vocabulary, c.hidden)
    for i in range(c.layers):
        at = f"model.layers.{i}."
        shapes |= {
            f"{at}input_layernorm.weight": (c.hidden,),
            f"{at}post_attention_layernorm.weight": (c.hidden,),
            f"{at}self_attn.q_proj.weight": (q, c.hidden),
            f"{at}self_attn.k_proj.weight": (kv, c.hidden),
            f"{at}self_attn.v_proj.weight": (kv, c.hidden),
            f"{at}self_attn.o_proj.weight": (c.hidden, q),
            f"{at}mlp.gate_proj.weight": (c.ffn, c.hidden),
            f"{at}mlp.up_proj.weight": (c.ffn, c.hidden),
            f"{at}mlp.down_proj.weight": (c.hidden, c.ffn),
        }
    return shapes
