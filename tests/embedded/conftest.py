"""A random Llama checkpoint with a tokenizer of the shipped family: tests must not depend on trained weights."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from stratagem.backends.embedded.engine import Engine
from stratagem.backends.embedded.tokenizer import SPECIAL

TEXT = [
    "Ben has 12 + 7 = 19 apples. Cal has 2 * 19 = 38 apples. The answer is 38.",
    "Think step by step. Give only the answer. Is the last step right? Answer yes or no.",
    "Would you do better if you started over? naïve café 東京 🙂",
]
SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "hidden_act": "silu",
    "eos_token_id": 4,
    "pad_token_id": 0,
    "bos_token_id": None,
    "dtype": "float32",
}


def write_model(folder: Path, *, tied: bool = True, kind: type = np.float32, **changes: object) -> Path:
    """A folder with random weights of standard deviation 0.05, float32 or float16 on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = (
        SHAPE | {"vocab_size": tokenizer.get_vocab_size(), "tie_word_embeddings": tied} | changes
    )
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    hidden, ffn, d = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * d, config["num_key_value_heads"] * d
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    if not tied:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        names = {"self_attn.q": (q, hidden), "self_attn.k": (kv, hidden), "self_attn.v": (kv, hidden)}
        names |= {"self_attn.o": (hidden, q), "mlp.gate": (ffn, hidden), "mlp.up": (ffn, hidden)}
        names |= {"mlp.down": (hidden, ffn)}
        shapes |= {f"model.layers.{i}.{name}_proj.weight": shape for name, shape in names.items()}
        shapes |= {f"model.layers.{i}.{n}_layernorm.weight": (hidden,) for n in ("input", "post_attention")}
    weights = {
        name: (rng.standard_normal(s) * 0.05 + (len(s) == 1)).astype(kind) for name, s in shapes.items()
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("random-llama"))


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    engine = Engine(folder, threads=1)
    yield engine
    engine.close()


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Writes a random model of another shape."""
    return lambda name, **changes: write_model(tmp_path / name, **changes)
