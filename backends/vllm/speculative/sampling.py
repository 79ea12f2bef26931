"""vLLM's sampling under speculation, put right on a CPU.

The build for CPUs (0.32) spreads a request's temperature, top-k and top-p over its draft tokens by a kernel that
writes into a copy of its output, so that the logits of sampled tokens are divided by what happened to stand in
memory. Greedy decoding does not come there. :func:`repair` is a plug-in of vLLM's (`vllm.general_plugins`): in an
environment that has Stratagem each process of vLLM calls it before it registers its kernels, so that every method
of speculation samples right, whoever starts the server.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from stratagem.core.errors import ConfigurationError

_MADE_FOR = "0.32."  # the releases whose kernel is known here
_VALUES, _ENDS, _RIGHT = [0.3125, 2.75], [1, 3], [0.3125, 2.75, 2.75]


def repair() -> None:
    """Puts the kernel right that this process is going to register, where vLLM is known to have it wrong."""
    platform = import_module("vllm.platforms").current_platform
    if not platform.is_cpu() or not import_module("vllm").__version__.startswith(_MADE_FOR):
        return
    platform.import_kernels()
    kernels: Any = import_module("vllm.utils.cpu_triton_utils")
    torch = import_module("torch")
    output = torch.zeros(len(_RIGHT))
    kernels._expand_kernel_impl(output, torch.tensor(_VALUES), _ends(torch), 0, 0)
    if output.tolist() != _RIGHT:
        kernels._expand_kernel_impl = _expanded


def ensure_right() -> None:
    """Raises ConfigurationError if this process, whose kernels are registered, samples wrongly all the same."""
    if not import_module("vllm.platforms").current_platform.is_cpu():
        return
    torch = import_module("torch")
    expand = import_module("vllm.v1.sample.rejection_sampler").expand_batch_to_tokens
    if expand(torch.tensor(_VALUES), _ends(torch), len(_RIGHT)).tolist() != _RIGHT:
        raise ConfigurationError(
            "This vLLM samples wrongly under speculation on a CPU.",
            remedy="Let it load the plug-in `stratagem`: name it in VLLM_PLUGINS, or leave that variable unset.",
        )


def _ends(torch: Any) -> Any:
    return torch.tensor(_ENDS, dtype=torch.int32)


def _expanded(
    output: Any, values: Any, cumulated: Any, replace_from: int, replace_to: int, MAX_NUM_TOKENS: int = 0
) -> None:
    """`output` has each value as often as its request has draft tokens, counted up in `cumulated`.

    It is launched as the kernel is, by position or with that one name.
    """
    counts = cumulated.diff(prepend=cumulated.new_zeros(1)).long()
    output.copy_(values.masked_fill(values == replace_from, replace_to).repeat_interleave(counts))
