"""Profiles: sets of vLLM's engine arguments, typed, chosen by hardware and workload, refused where they cannot be.

A profile is what a line of `vllm serve` says; :meth:`Profile.command` prints it. Names and meanings of the fields
are those of vLLM's flags. None leaves a field to vLLM.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from stratagem.backends.vllm.hardware import Hardware
from stratagem.core.component import parameter
from stratagem.core.errors import ConfigurationError

DType = Literal["auto", "float16", "bfloat16", "float32"]
KVType = Literal[
    "auto",
    "float16",
    "bfloat16",
    "fp8",
    "fp8_e4m3",
    "fp8_e5m2",
    "nvfp4",
    "int8_per_token_head",
    "turboquant_k8v4",
    "turboquant_4bit_nc",
]
Method = Literal[
    "ngram",
    "ngram_gpu",
    "suffix",
    "draft_model",
    "medusa",
    "eagle",
    "eagle3",
    "mtp",
    "recycling",
    "trie",
    "retrieval",
    "merged",
    "custom_class",
]
# Methods that are this package's own, by the class that vLLM loads for them.
OWN: Mapping[str, str] = {
    method: f"stratagem.backends.vllm.speculative.hook.{method.title()}Hook"
    for method in ("recycling", "trie", "retrieval", "merged")
}
DATASTORE = "stratagem_datastore"  # the key of `--additional-config` that names the file for retrieval

_GIB = 2**30
_KEYS = TypeAdapter(dict[str, Any])
_MODULE = "vllm.entrypoints.openai.api_server"


class Speculative(BaseModel):
    """Speculative decoding: a cheap guess at the next tokens, which the model then checks in one step.

    What is decoded keeps its distribution (greedy: its text). A seed does not repeat a sampled text any more.

    Methods of this package's own are `recycling` (Token Recycling), `trie` (over prompts and outputs), `retrieval`
    (from a datastore of past runs) and `merged` (all of them); the others are vLLM's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method = parameter("ngram", "Where guesses come from.")
    depth: int | None = parameter(
        4, "Most tokens guessed at a time; none: as vLLM has it.", search=(1, 8), ge=1
    )
    model: str | None = parameter(
        None, "Draft model or heads; of custom_class the class, as package.module.Class."
    )
    prompt_lookup_max: int | None = parameter(
        4, "ngram: longest run of tokens to look for; none: as vLLM has it.", search=(2, 8), ge=1
    )
    prompt_lookup_min: int | None = parameter(2, "ngram: shortest run of tokens to look for.", ge=1)
    extra: Mapping[str, Any] = Field(default={}, description="Further keys of vLLM's --speculative-config.")

    def config(self) -> dict[str, Any]:
        """The value of vLLM's `--speculative-config`."""
        found: dict[str, Any] = {"method": self.method, "num_speculative_tokens": self.depth}
        if self.method in OWN:
            found |= {"method": "custom_class", "model": OWN[self.method]}
        else:
            found["model"] = self.model
        if self.method.startswith("ngram"):
            found |= {key: getattr(self, key) for key in _LOOKUP}
        return {key: value for key, value in found.items() if value is not None} | dict(self.extra)

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Self:
        """From a value of `--speculative-config`; what it does not say is left to vLLM. Raises ValueError."""
        told = dict(config)
        if "method" not in told:
            raise ValueError("vLLM itself finds out the method.")
        lookup = _LOOKUP if str(told["method"]).startswith("ngram") else ()
        fields = {key: told.pop(key, None) for key in ("method", "model", *lookup)}
        fields["depth"] = told.pop("num_speculative_tokens", None)
        own = [method for method, name in OWN.items() if name == fields["model"]]
        if own:
            fields |= {"method": own[0], "model": None}
        return cls.model_validate(fields | {"extra": told})


_LOOKUP = ("prompt_lookup_max", "prompt_lookup_min")


class Workload(BaseModel):
    """What a server is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    concurrency: int = parameter(64, "Sequences in flight at the same time.", ge=1)
    context: int | None = parameter(
        None, "Longest prompt and answer together, in tokens; none: the model's.", ge=1
    )
    repeatable: bool = parameter(False, "Whether a seed must repeat its sampled text: rules speculation out.")


class Profile(BaseModel):
    """Engine arguments of one vLLM server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: DType | None = parameter(None, "Type of weights and sums.")
    max_model_len: int | Literal["auto"] | None = parameter(None, "Longest sequence; auto: as memory allows.")
    enable_prefix_caching: bool | None = parameter(True, "Prompts that begin alike share what was computed.")
    block_size: int | None = parameter(
        None, "Tokens per KV block, the unit of sharing.", search=(16, 32, 64, 128), ge=1
    )
    kv_cache_dtype: KVType | None = parameter(None, "Type of the KV cache.", search=("auto", "fp8"))
    kv_cache_gib: float | None = parameter(None, "Memory of the KV cache in GiB.", gt=0)
    gpu_memory_utilization: float | None = parameter(None, "Share of the memory to use in all.", gt=0, le=1)
    enable_chunked_prefill: bool | None = parameter(
        True, "Long prompts are computed in parts, beside decoding."
    )
    max_num_batched_tokens: int | None = parameter(
        None,
        "Tokens computed in one step: more serve prompts sooner, fewer delay decoding less.",
        search=(256, 16384),
        ge=1,
    )
    max_num_seqs: int | None = parameter(None, "Sequences computed in one step.", search=(1, 1024), ge=1)
    scheduling_policy: Literal["fcfs", "priority"] | None = parameter(
        None, "In order of arrival, or of priority."
    )
    speculative: Speculative | None = parameter(None, "Speculative decoding.")
    additional_config: Mapping[str, Any] | None = parameter(
        None, f"Keys for plug-ins; `{DATASTORE}`: the file of past runs for method retrieval."
    )
    enforce_eager: bool | None = parameter(None, "No compilation: starts sooner, decodes slower on a GPU.")
    max_logprobs: int | None = parameter(
        20, "Most log-probabilities a request may ask for, per token.", ge=-1
    )
    logits_processors: tuple[str, ...] = parameter((), "Classes as package.module:Class, for `vllm_xargs`.")
    enable_prompt_tokens_details: bool | None = parameter(
        True, "Answers say how much came from the prefix cache."
    )
    disable_uvicorn_access_log: bool | None = parameter(True, "No line of log for each request.")

    def arguments(self) -> list[str]:
        """The flags of `vllm serve`, without the model."""
        flags: list[str] = []
        for name, field in _FLAGS.items():
            value = getattr(self, field)
            if value is None or value == ():
                continue
            if isinstance(value, bool):
                flags.append(f"--{name}" if value else f"--no-{name}")
            elif isinstance(value, tuple):
                flags += [f"--{name}", *value]
            elif isinstance(value, Speculative):
                flags += [f"--{name}", json.dumps(value.config(), separators=(",", ":"))]
            elif isinstance(value, Mapping):
                flags += [f"--{name}", json.dumps(value, separators=(",", ":"))]
            elif field == "kv_cache_gib":
                flags += [f"--{name}", str(int(value * _GIB))]
            else:
                flags += [f"--{name}", str(value)]
        return flags

    def command(self, model: str, flags: Sequence[str] = (), *, module: bool = False) -> str:
        """The line that starts this server by hand, quoted for a shell; with `module` without `vllm serve`."""
        start = ["python", "-m", _MODULE, "--model", model] if module else ["vllm", "serve", model]
        return shlex.join([*start, *self.arguments(), *flags])

    def overridden(self, flags: Sequence[str]) -> tuple[Profile, list[str]]:
        """The profile with these flags of vLLM in place of its own, and the flags that are no part of a profile.

        What a profile cannot read of them is left as it is, for vLLM to judge.
        """
        changes: dict[str, Any] = {}
        rest: list[str] = []
        words = list(flags)
        while words:
            word = words.pop(0)
            name, equals, value = word.partition("=")
            key = name.removeprefix("--").replace("_", "-")
            negative = key.startswith("no-") and key.removeprefix("no-") in _FLAGS
            field = (
                _FLAGS.get(key.removeprefix("no-") if negative else key) if word.startswith("--") else None
            )
            if field is None:
                rest.append(word)
                continue
            values = [value] if equals else []
            if not equals and not _is_switch(field):
                while (
                    words and not words[0].startswith("--") and (not values or field == "logits_processors")
                ):
                    values.append(words.pop(0))
            try:
                if _is_switch(field) and equals:
                    raise ValueError("A switch takes no value.")
                changes[field] = not negative if _is_switch(field) else _read(field, values)
            except (ValueError, IndexError):
                changes[field] = () if field == "logits_processors" else None
                rest += [word, *([] if equals else values)]
        return self.model_copy(update=changes), rest

    def given(self, arguments: Mapping[str, Any]) -> tuple[Profile, dict[str, Any]]:
        """The profile with these fields of vLLM's `AsyncEngineArgs` in place of its own, and those that it has not.

        Raises ConfigurationError.
        """
        changes: dict[str, Any] = {}
        rest: dict[str, Any] = {}
        for name, value in arguments.items():
            field = _FLAGS.get(name.replace("_", "-"))
            wanted = _TYPES.get(field or "")
            if wanted is not None and value is not None and not isinstance(value, wanted[0]):
                raise ConfigurationError(f"{name} = {value!r} is no {wanted[1]}.", remedy=wanted[2])
            if field is None:
                rest[name] = value
            elif field == "speculative" and value is not None:
                try:
                    changes[field] = Speculative.of_config(value)
                except ValueError:
                    changes[field], rest[name] = None, value
            else:
                changes[field] = value / _GIB if field == "kv_cache_gib" and value is not None else value
        return _changed(self, changes), rest

    def engine_arguments(self) -> dict[str, Any]:
        """As fields of vLLM's `AsyncEngineArgs`, without what only its server has."""
        found: dict[str, Any] = {}
        for name, field in _FLAGS.items():
            value = getattr(self, field)
            if value is None or value == () or field in _OF_SERVER:
                continue
            if isinstance(value, Speculative):
                value = value.config()
            elif field == "kv_cache_gib":
                value = int(value * _GIB)
            elif isinstance(value, tuple):
                value = list(value)
            elif value == "auto" and field == "max_model_len":
                value = -1  # as vLLM's parser of flags has it
            found[name.replace("-", "_")] = value
        return found

    @property
    def permits(self) -> int:
        """Sequences that a client should keep in flight: the batch and one more in the server's queue, so that a
        place that has become free is filled in the next step."""
        return 2 * (self.max_num_seqs or 64)


# Of engine arguments that are not handed on as they are: type, its name, and what to do.
_TYPES: Mapping[str, tuple[type, str, str]] = {
    "kv_cache_gib": (int, "number of bytes", "Give it as 2 * 2**30."),
    "speculative": (Mapping, "mapping", "Give one with its method, as {'method': 'ngram'}."),
}
_OF_SERVER = ("enable_prompt_tokens_details", "disable_uvicorn_access_log")
_FLAG_OF = {"kv_cache_gib": "kv-cache-memory-bytes", "speculative": "speculative-config"}
_FLAGS = {_FLAG_OF.get(field, field.replace("_", "-")): field for field in Profile.model_fields}


def _is_switch(field: str) -> bool:
    return Profile.model_fields[field].annotation == (bool | None)


def _read(field: str, values: list[str]) -> Any:
    """A flag's words as the field's value. Raises ValueError, IndexError."""
    if field == "logits_processors":
        return tuple(values)
    if field == "kv_cache_gib":
        return int(values[0]) / _GIB
    if field == "speculative":
        return Speculative.of_config(_KEYS.validate_json(values[0]))
    if field == "additional_config":
        return _KEYS.validate_json(values[0])
    annotation: Any = Profile.model_fields[field].annotation
    return TypeAdapter(annotation).validate_strings(values[0])


def agent(hardware: Hardware, workload: Workload) -> Profile:
    """Many related requests: siblings, steps that extend a prompt, one-token judgements, requests cut short.

    The smallest block that the device can do, for the longest shared prefixes; no speculation, so that a seed
    repeats its text; requests may carry priorities.
    """
    return _base(hardware, workload).model_copy(
        update={
            "block_size": 32 if hardware.device == "cpu" else 16,
            "kv_cache_gib": _kv_space(hardware, 1 / 8),
            "max_num_batched_tokens": max(_tokens(hardware), workload.concurrency),
            "max_num_seqs": workload.concurrency,
            "scheduling_policy": "priority",
        }
    )


def latency(hardware: Hardware, workload: Workload) -> Profile:
    """Few requests, each as fast as it can be: small batches, and guesses ahead.

    On a GPU from the prompt, by vLLM's own n-grams. On a CPU by methods of this package merged, which have more
    to guess from and cost no GPU its time.
    """
    seqs = min(workload.concurrency, 8)
    method: Method = "merged" if hardware.device == "cpu" else "ngram"
    speculative = None if workload.repeatable else Speculative(method=method, depth=4)
    return _base(hardware, workload).model_copy(
        update={
            "block_size": 32 if hardware.device == "cpu" else 16,
            "kv_cache_gib": _kv_space(hardware, 1 / 8),
            "max_num_batched_tokens": _tokens(hardware) // 2,
            "max_num_seqs": seqs,
            "speculative": speculative,
        }
    )


def throughput(hardware: Hardware, workload: Workload) -> Profile:
    """As many tokens a second as it can give: large batches, compiled, no speculation."""
    large = hardware.device != "cpu" and hardware.memory >= 70
    seqs = max(workload.concurrency, 1024 if large else 256)
    return _base(hardware, workload).model_copy(
        update={
            "block_size": 32 if hardware.device == "cpu" else 16,
            "kv_cache_gib": _kv_space(hardware, 1 / 4),
            "max_num_batched_tokens": max(2 * _tokens(hardware), seqs),
            "max_num_seqs": seqs,
            "enforce_eager": False,
        }
    )


def long_context(hardware: Hardware, workload: Workload) -> Profile:
    """Long prompts, few at a time: an 8-bit KV cache where the device has one, prompts in small parts."""
    level = hardware.capability
    eight_bits = hardware.device == "cpu" or (level is not None and level >= (8, 9))
    return _base(hardware, workload).model_copy(
        update={
            "max_model_len": workload.context or "auto",
            "block_size": 128 if hardware.device == "cpu" else 16,
            "kv_cache_dtype": "fp8" if eight_bits else None,
            "kv_cache_gib": _kv_space(hardware, 1 / 4),
            "max_num_batched_tokens": _tokens(hardware),
            "max_num_seqs": min(workload.concurrency, 16),
        }
    )


PROFILES: dict[str, Callable[[Hardware, Workload], Profile]] = {
    "agent": agent,
    "latency": latency,
    "throughput": throughput,
    "long-context": long_context,
}


def known(name: str) -> Callable[[Hardware, Workload], Profile]:
    """What makes the profile of that name. Raises ConfigurationError where there is none."""
    make = PROFILES.get(name.replace("_", "-"))
    if make is None:
        raise ConfigurationError(f"Unknown profile {name!r}.", remedy=f"Known are: {', '.join(PROFILES)}.")
    return make


def profile(name: str, hardware: Hardware, workload: Workload | None = None, **changes: Any) -> Profile:
    """The profile of that name for this hardware and workload; `changes` are fields that differ.

    Raises:
        ConfigurationError: there is no such profile, or a field or its value makes no sense.
    """
    return _changed(known(name)(hardware, workload or Workload()), changes)


def _changed(made: Profile, changes: Mapping[str, Any]) -> Profile:
    try:
        return Profile.model_validate({**made.model_dump(), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ConfigurationError(
                f"A profile has no field {key!r}.", remedy=f"It has {', '.join(Profile.model_fields)}."
            ) from None
        raise ConfigurationError(f"{key} = {first['input']!r}: {first['msg']}.") from None


def _base(hardware: Hardware, workload: Workload) -> Profile:
    cpu = hardware.device == "cpu"
    if cpu:
        # Named, since weights stored in float16 would be computed in it, at a third of the speed.
        dtype: DType | None = "bfloat16" if hardware.bfloat16 else "float32"
    else:
        dtype = None if hardware.bfloat16 else "float16"  # old GPUs have float16 alone
    return Profile(
        dtype=dtype,
        max_model_len=workload.context,
        enforce_eager=True if cpu else None,  # on a CPU compiling gains little and takes half a minute
    )


def _tokens(hardware: Hardware) -> int:
    """Tokens in one step that keep the device busy without holding decoding up for long."""
    if hardware.device == "cpu":
        return 2048
    return 8192 if hardware.memory >= 70 else 4096


def _kv_space(hardware: Hardware, share: float) -> float | None:
    """GiB on a CPU, where vLLM by itself takes nearly all memory; a GPU is the server's own."""
    if hardware.device != "cpu":
        return None
    return min(max(math.floor(hardware.free * share * 4) / 4, 0.25), 64.0)
