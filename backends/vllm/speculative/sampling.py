"""vLLM's sampling under speculation, put right on a CPU.

The build for CPUs (0.32.0) spreads a request's temperature, top-k and top-p over its draft tokens by a kernel that
writes into a copy of its output, so that the logits of sampled tokens are divided by what happened to stand in
memory. Greedy decoding does not come there. vLLM lets a platform register kernels in place of its own; this one is
registered again.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_KERNEL = "vllm.v1.sample.rejection_sampler.expand_kernel"


def repair() -> bool:
    """Puts the kernel right in this process, if it is wrong; whether it was."""
    if not import_module("vllm.platforms").current_platform.is_cpu():
        return False
    torch = import_module("torch")
    expand = import_module("vllm.v1.sample.rejection_sampler").expand_batch_to_tokens
    counts = torch.tensor([1, 3], dtype=torch.int32)
    if expand(torch.tensor([0.3125, 2.75]), counts, 3).tolist() == [0.3125, 2.75, 2.75]:
        return False
    import_module("vllm.triton_utils.dispatcher").register_kernels({_KERNEL: _expanded})
    return True


def _expanded(
    output: Any, values: Any, cumulated: Any, replace_from: int, replace_to: int, MAX_NUM_TOKENS: int = 0
) -> None:
    """`output` has each value as often as its request has draft tokens, counted up in `cumulated`.

    It is launched as the kernel is, by position or with that one name.
    """
    counts = cumulated.diff(prepend=cumulated.new_zeros(1)).long()
    output.copy_(values.masked_fill(values == replace_from, replace_to).repeat_interleave(counts))
