"""The cost model against numbers worked by hand, and what must hold of any model and any trace."""

from __future__ import annotations

import asyncio
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

import stratagem as sg
from stratagem.backends.embedded.engine import Engine
from stratagem.backends.embedded.sampling import Sampling as EngineSampling
from stratagem.bench.cost import DEVICES, Device, Operation, Precision, Roofline, Shape, Step

A100 = Device.named("A100-40G")
# One layer whose query projection is the linear 4096 x 4096 of the source's worked example.
LLAMA7 = Shape(hidden=4096, layers=32, heads=32, kv_heads=32, head_dim=128, ffn=11008, vocabulary=32000)
MINI = Path(__file__).resolve().parents[2] / "backends/embedded/mini"
SMALL = Shape(hidden=8, layers=3, heads=4, kv_heads=2, head_dim=2, ffn=16, vocabulary=10)
UNIT = Device("unit", bandwidth=1.0, peak=1.0)
unhurried = settings(deadline=None)


def roofline(shape: Shape = LLAMA7, device: Device = A100, **options: Any) -> Roofline:
    return Roofline(shape, device, **options)


# -- one operation -------------------------------------------------------------------------------------


def test_a_linear_of_4096_by_4096() -> None:
    step = roofline().decode(1, 1)
    q = step["q"]
    assert q.operations == 33_554_432
    assert q.moved == 33_570_816
    assert q.intensity == pytest.approx(0.9995, abs=5e-5)
    assert A100.ridge == pytest.approx(200.6, abs=0.05)
    assert step.memory_bound(q)
    assert step.time(replace(q, times=1)) == pytest.approx(21.59e-6, abs=5e-9)


def test_its_intensity_grows_with_the_batch_and_crosses_the_ridge_near_222() -> None:
    # 2 d^2 B = ridge (2 d^2 + 4 d B) has the solution B = ridge / (1 - 2 ridge / d).
    crossing = A100.ridge / (1 - 2 * A100.ridge / 4096)
    assert crossing == pytest.approx(222.4, abs=0.1)
    found = [batch for batch in range(1, 400) if not (s := roofline().decode(batch, 1)).memory_bound(s["q"])]
    assert found == list(range(math.ceil(crossing), 400))


def test_all_the_counts_of_a_small_layer() -> None:
    """Decode of 5 sequences that attend to 7 tokens, by the table of the specification: 2-byte weights, 4-byte
    activations, 1-byte KV."""
    precision = Precision(weights=2, activations=4, kv=1)
    step = roofline(SMALL, UNIT, precision=precision, fused=False).decode(5, 7)
    told = {op.name: (op.operations, op.weights, op.activations, op.kv, op.times) for op in step.operations}
    norm = (7 * 8 * 5, 0, 2 * 8 * 5 * 4, 0, 3)
    add = (8 * 5, 0, 2 * 8 * 5 * 4, 0, 3)
    k = (2 * 8 * 4 * 5, 8 * 4 * 2, 8 * 5 * 4, 4 * 5 * 1, 3)
    up = (2 * 8 * 16 * 5, 8 * 16 * 2, (8 + 16) * 5 * 4, 0, 3)
    scores = 7 * 4 * 5 * 4  # bytes of s h B
    assert told == {
        "attention norm": norm,
        "q": (2 * 8 * 8 * 5, 8 * 8 * 2, (8 + 8) * 5 * 4, 0, 3),
        "k": k,
        "v": k,
        "scores": (2 * 7 * 2 * 4 * 5, 0, 2 * 4 * 5 * 4 + scores, 7 * 2 * 2 * 5 * 1, 3),
        "softmax": (5 * 7 * 4 * 5, 0, 2 * scores, 0, 3),
        "values": (2 * 7 * 2 * 4 * 5, 0, scores + 2 * 4 * 5 * 4, 7 * 2 * 2 * 5 * 1, 3),
        "o": (2 * 8 * 8 * 5, 8 * 8 * 2, (8 + 8) * 5 * 4, 0, 3),
        "attention add": add,
        "ffn norm": norm,
        "gate": up,
        "up": up,
        "activation": (2 * 16 * 5, 0, 3 * 16 * 5 * 4, 0, 3),
        "down": (2 * 16 * 8 * 5, 16 * 8 * 2, (16 + 8) * 5 * 4, 0, 3),
        "ffn add": add,
        "head": (2 * 8 * 10 * 5, 8 * 10 * 2, (8 + 10) * 5 * 4, 0, 1),
    }


def test_prefill_of_a_square_of_scores_and_of_what_is_not_masked() -> None:
    square = roofline(SMALL, UNIT, fused=False).prefill(5, 7)
    assert square["scores"].operations == 2 * 7 * 7 * 2 * 4 * 5
    assert square["softmax"].operations == 5 * 7 * 7 * 4 * 5
    assert square["q"].operations == 2 * 8 * 8 * 5 * 7
    assert square["head"].operations == 2 * 8 * 10 * 5, "of the last position only"
    fused = roofline(SMALL, UNIT).prefill(5, 7)["attention"]
    assert fused.operations == (4 * 2 + 5) * 4 * 5 * (7 * 8 // 2)
    assert (fused.activations, fused.kv) == (2 * 7 * 8 * 5 * 2, 2 * 7 * 2 * 2 * 5 * 2)


def test_a_floor_leaves_out_what_kernels_fuse() -> None:
    """Norms, sums and activations add no pass over memory of their own; matrix products and attention are as they
    were."""
    for fused, apart in (
        (roofline().prefill(1, 2048), roofline(fused=False).prefill(1, 2048)),
        (roofline().decode(4, 9), roofline(fused=False).decode(4, 9)),
    ):
        products = {"q", "k", "v", "o", "gate", "up", "down", "head"}
        assert {op.name for op in fused.operations} == products | {"attention"}
        assert {op.name for op in apart.operations} > products
        for name in products:
            assert fused[name] == apart[name]


def test_a_roof_says_what_limits() -> None:
    step = Step((Operation("a", 10, weights=4), Operation("b", 3, kv=8, times=2)), bandwidth=2, peak=4)
    assert [step.time(op) for op in step.operations] == [2.5, 8.0]
    assert [step.memory_bound(op) for op in step.operations] == [False, True]
    assert step.seconds == 10.5


# -- whole models --------------------------------------------------------------------------------------


def test_parameters_and_kv_cache_of_known_models() -> None:
    assert LLAMA7.parameters == 6_738_415_616
    llama3 = Shape(hidden=4096, layers=32, heads=32, kv_heads=8, head_dim=128, ffn=14336, vocabulary=128256)
    assert llama3.parameters == 8_030_261_248
    memory = roofline().memory(3, 1000)
    assert memory.weights == 2 * 6_738_415_616
    assert memory.kv == 3 * 1000 * 524_288, "half a MiB a token"
    assert memory.total == memory.weights + memory.kv + memory.activations


def test_sequences_that_fit() -> None:
    r = roofline()
    many = r.sequences(40e9, 2048)
    assert r.memory(many, 2048).total <= 40e9 < r.memory(many + 1, 2048).total
    assert r.sequences(13e9, 2048) == 0, "not even the weights"


def test_eight_bits_are_twice_as_fast_only_together() -> None:
    eight = Precision(weights=1, activations=1, kv=1)
    assert roofline(precision=eight).decode(1, 1).peak == 2 * A100.peak
    for changed in ("weights", "activations", "kv"):
        assert roofline(precision=replace(eight, **{changed: 2})).decode(1, 1).peak == A100.peak


def test_devices_share_weights_and_heads() -> None:
    one, four = roofline(), roofline(devices=4)
    for name in ("q", "k", "o", "gate", "down", "attention", "head"):
        assert four.decode(8, 512)[name].operations == one.decode(8, 512)[name].operations / 4
    assert four.memory(8, 512).weights == one.memory(8, 512).weights / 4
    assert four.memory(8, 512).kv == one.memory(8, 512).kv / 4
    grouped = roofline(replace(LLAMA7, kv_heads=2), devices=4)
    assert grouped.decode(1, 9)["attention"].kv == 2 * 9 * 128 * 2, "one head each: two devices hold the same"
    with pytest.raises(sg.ConfigurationError, match=r"devices = 5: 32 heads.*divisor of 32"):
        roofline(devices=5)


def test_generation_is_prefill_and_every_further_step() -> None:
    r = roofline()
    steps = [r.decode(2, 100 + i).seconds for i in (1, 2, 3)]
    assert r.generation(2, 100, 4) == pytest.approx(r.prefill(2, 100).seconds + sum(steps), rel=1e-12)
    assert r.generation(2, 100, 1) == r.prefill(2, 100).seconds


shapes = st.builds(
    lambda head_dim, group, kv_heads, **rest: Shape(
        heads=group * kv_heads, kv_heads=kv_heads, head_dim=head_dim, **rest
    ),
    head_dim=st.integers(1, 256),
    group=st.integers(1, 8),
    kv_heads=st.integers(1, 16),
    hidden=st.integers(1, 8192),
    layers=st.integers(1, 80),
    ffn=st.integers(1, 30000),
    vocabulary=st.integers(1, 200_000),
)
rooflines = st.builds(
    Roofline,
    shapes,
    st.sampled_from(sorted(DEVICES)).map(Device.named),
    st.builds(Precision, *[st.sampled_from([0.5, 1, 2, 4])] * 3),
    fused=st.booleans(),
)
sizes = st.integers(1, 5000)


@unhurried
@given(rooflines, sizes, sizes, sizes)
def test_more_work_never_takes_less(r: Roofline, batch: int, context: int, more: int) -> None:
    now = r.decode(batch, context).seconds
    assert now <= r.decode(batch + more, context).seconds
    assert now <= r.decode(batch, context + more).seconds
    assert r.decode(batch + more, context).seconds <= (batch + more) / batch * now * (1 + 1e-9), (
        "sharing weights"
    )
    assert r.prefill(batch, context).seconds <= r.prefill(batch, context + more).seconds
    assert r.prefill(batch, context, cached=more).seconds <= r.prefill(batch, context + more).seconds
    assert r.memory(batch, context).total < r.memory(batch + more, context).total


@unhurried
@given(rooflines, sizes, sizes)
def test_no_more_than_the_roof(r: Roofline, batch: int, context: int) -> None:
    """Neither peak nor bandwidth is exceeded, and together they are used as well as can be in each operation."""
    for step in (r.decode(batch, context), r.prefill(batch, context)):
        operations = sum(op.operations * op.times for op in step.operations)
        moved = sum(op.moved * op.times for op in step.operations)
        least = max(operations / step.peak, moved / step.bandwidth)
        assert (
            least * (1 - 1e-9)
            <= step.seconds
            <= (operations / step.peak + moved / step.bandwidth) * (1 + 1e-9)
        )


@unhurried
@given(rooflines, sizes, st.integers(1, 2000))
def test_context_costs_kv_alone(r: Roofline, batch: int, context: int) -> None:
    """Twice the context moves twice the KV, and leaves the linears as they were."""
    short, long = r.decode(batch, context), r.decode(batch, 2 * context)
    read = [sum(op.kv for op in step.operations if op.name in _ATTENTION) for step in (short, long)]
    assert read[1] == pytest.approx(2 * read[0])
    for op in short.operations:
        if op.name not in _ATTENTION:
            assert long[op.name] == op


@unhurried
@given(rooflines, sizes)
def test_a_prompt_of_one_token_is_a_decode_step(r: Roofline, batch: int) -> None:
    assert r.prefill(batch, 1) == r.decode(batch, 1)


@unhurried
@given(shapes, sizes, st.integers(1, 60))
def test_prefill_computes_what_its_tokens_would_one_by_one(shape: Shape, batch: int, length: int) -> None:
    """But for the head, which is needed once; masked scores are not counted."""
    r = roofline(shape)

    def work(step: Step) -> float:
        return sum(op.operations * op.times for op in step.operations if op.name != "head")

    alone = sum(work(r.decode(batch, i)) for i in range(1, length + 1))
    assert work(r.prefill(batch, length)) == pytest.approx(alone, rel=1e-12)


_ATTENTION = ("attention", "scores", "softmax", "values")


def test_bad_sizes_and_devices() -> None:
    for call in (
        lambda: roofline().prefill(0, 1),
        lambda: roofline().decode(1, 0),
        lambda: roofline().prefill(1, 0),
        lambda: roofline().generation(1, 1, 0),
    ):
        with pytest.raises(ValueError, match="too small"):
            call()
    with pytest.raises(sg.ConfigurationError, match=r"No device 'H1000'.*A100-40G.*Device\("):
        Device.named("H1000")


def test_this_machine_is_measured() -> None:
    # What else runs here can only slow it down.
    tries = [Device.here(1 << 20, seconds=0.1) for _ in range(5)]
    bandwidth, peak = max(here.bandwidth for here in tries), max(here.peak for here in tries)
    assert 0 < bandwidth < peak, "any processor computes more than a byte's worth per byte"


# -- shapes --------------------------------------------------------------------------------------------


def test_the_shipped_models_shape_is_that_of_its_weights() -> None:
    shape = Shape.read(MINI)
    header = (MINI / "model.safetensors").read_bytes()
    tensors = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    tensors.pop("__metadata__", None)
    assert shape.parameters == sum(math.prod(tensor["shape"]) for tensor in tensors.values())
    assert Shape.read(MINI / "config.json") == shape


def sized(**changes: Any) -> str:
    """The shipped model's config with that in it."""
    return json.dumps(json.loads((MINI / "config.json").read_text()) | changes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "Cannot read"),
        ("{", "is not JSON"),
        ("[]", "holds no JSON object"),
        ('{"hidden_size": 8}', "lacks the key 'num_attention_heads'"),
        ('{"num_local_experts": 8}', "mixture of experts is not modelled"),
        ('{"kv_lora_rank": 512}', "latent attention is not modelled"),
        ('{"sliding_window": 4096}', "sliding windows are not modelled"),
        ('{"text_config": null}', "'text_config' is None"),
        ('{"text_config": [1]}', "'text_config' is \\[1\\]"),
        (sized(num_attention_heads=None), "'num_attention_heads' is None"),
        (sized(num_attention_heads=0), "'num_attention_heads' is 0"),
        (sized(hidden_size="wide"), "'hidden_size' is 'wide'"),
        (sized(num_hidden_layers=-2), "'num_hidden_layers' is -2"),
        (sized(vocab_size=True), "'vocab_size' is True"),
        (sized(num_key_value_heads=1.5), "'num_key_value_heads' is 1.5"),
        (sized(head_dim=[64]), "'head_dim' is \\[64\\]"),
    ],
)
def test_other_models_are_one_error(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(sg.ConfigurationError, match=words):
        Shape.read(tmp_path / "config.json")


def test_what_a_config_leaves_open_follows_from_the_rest(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(sized(num_key_value_heads=None, head_dim=None))
    found, told = Shape.read(tmp_path), Shape.read(MINI)
    assert (found.kv_heads, found.head_dim) == (told.heads, told.hidden // told.heads)


def test_shapes_inside_another_config(tmp_path: Path) -> None:
    config = json.loads((MINI / "config.json").read_text()) | {
        "sliding_window": 9,
        "use_sliding_window": False,
    }
    (tmp_path / "config.json").write_text(json.dumps({"text_config": config, "vision_config": {}}))
    assert Shape.read(tmp_path) == Shape.read(MINI)


def test_no_floor_is_above_what_the_embedded_engine_takes() -> None:
    """Each the fastest of a few; the floors are those of numpy's own speed on this machine."""
    engine = Engine(MINI, threads=1)
    shape = Shape.read(MINI)
    with threadpool_limits(1, user_api="blas"):  # as the engine
        here = Device.here(4 * shape.parameters)
    floors = Roofline(shape, here, Precision(weights=4, activations=4, kv=4))

    async def seconds(batch: int, length: int, output: int, trial: int) -> float:
        prompts = [[5 + (trial + i * j) % 1999 for j in range(1, length + 1)] for i in range(1, batch + 1)]
        start = time.perf_counter()
        handles = [engine.submit(p, EngineSampling(max_tokens=output, ignore_end=True)) for p in prompts]
        for handle in handles:
            await handle.result()
        return time.perf_counter() - start

    async def main() -> None:
        for batch, length, output in ((1, 8, 24), (4, 8, 24), (1, 200, 1)):
            fastest = min([await seconds(batch, length, output, trial) for trial in range(4)])
            assert floors.generation(batch, length, output) <= fastest, (batch, length, output)

    try:
        asyncio.run(main())
    finally:
        engine.close()
