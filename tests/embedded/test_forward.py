"""The numpy decoder computes the model: equal to transformers, and the same in every batch."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stratagem.backends.embedded.forward import Chunk, Model
from stratagem.core.errors import ConfigurationError

MakeModel = Callable[..., Path]


@pytest.mark.parametrize("kind", ["tied", "untied", "float16", "bfloat16", "one head each"])
def test_logits_and_greedy_output_agree_with_transformers(kind: str, make_model: MakeModel) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    changes: dict[str, object] = {"one head each": {"num_key_value_heads": 6}, "untied": {"tied": False}}.get(
        kind, {}
    )
    folder = make_model("m", **changes, **({"kind": np.float16} if kind == "float16" else {}))
    if kind == "bfloat16":
        from safetensors.torch import load_file, save_file

        path = folder / "model.safetensors"
        save_file({k: v.to(torch.bfloat16) for k, v in load_file(path).items()}, path, {"format": "pt"})
    reference = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = Model.load(folder)
    cache = model.new_cache(16)
    prompt = np.random.default_rng(1).integers(5, 320, 60).tolist()
    with torch.no_grad():
        expected = reference(torch.tensor([prompt])).logits[0].numpy()
        greedy = reference.generate(
            torch.tensor([prompt]), max_new_tokens=60, do_sample=False, eos_token_id=None
        )
    blocks = list(range(8))
    logits = np.concatenate(
        [
            model.forward([Chunk(prompt[a:b], a, blocks, b - a)], cache)
            for a, b in ((0, 33), (33, 34), (34, 60))
        ]
    )
    assert np.abs(logits - expected).max() < 1e-5
    tokens = list(prompt)
    while len(tokens) < 120:
        tokens.append(int(logits[-1].argmax()))
        logits = model.forward([Chunk(tokens[-1:], len(tokens) - 1, blocks, 1)], cache)
    assert tokens == greedy[0].tolist()


def test_random_mixed_batches_equal_one_by_one(folder: Path) -> None:
    model = Model.load(folder)
    rng = np.random.default_rng(2)
    sequences = [rng.integers(5, 320, int(rng.integers(2, 200))).tolist() for _ in range(24)]
    alone = []
    for tokens in sequences:
        cache = model.new_cache(16)
        alone.append(model.forward([Chunk(tokens, 0, list(range(13)), len(tokens))], cache))
    cache = model.new_cache(24 * 13)
    tables = [list(range(i * 13, i * 13 + 13)) for i in range(24)]
    rng.shuffle(tables)
    done = [0] * 24
    worst = 0.0
    while any(d < len(s) for d, s in zip(done, sequences, strict=True)):
        batch, expected = [], []
        for i in rng.permutation([i for i in range(24) if done[i] < len(sequences[i])]):
            if rng.random() < 0.3:
                continue
            start = done[i]
            end = min(len(sequences[i]), start + int(rng.choice([1, 1, 1, 7, 40])))
            want = int(rng.integers(0, end - start + 1))
            batch.append(Chunk(sequences[i][start:end], start, tables[i], want))
            expected.append(alone[i][end - want : end])
            done[i] = end
        if batch:
            logits = model.forward(batch, cache)
            assert logits.shape == (sum(c.logits for c in batch), 320)
            worst = max(worst, float(np.abs(logits - np.concatenate(expected)).max(initial=0.0)))
    assert worst < 2e-6


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_type"),
        ({"attention_bias": True}, "attention_bias"),
        ({"num_hidden_layers": 4}, "model.layers.3"),
        ({"hidden_size": None}, "hidden_size"),
    ],
)
def test_another_architecture_is_refused_by_name(
    change: dict[str, object], names: str, make_model: MakeModel
) -> None:
    folder = make_model("m")
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(ConfigurationError, match=names):
        Model.load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"\x00broken"])
def test_a_missing_or_broken_file_is_named_with_the_remedy(
    name: str, content: bytes | None, make_model: MakeModel
) -> None:
    folder = make_model("m")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=name) as caught:
        Model.load(folder)
    assert "vLLM" in caught.value.remedy
