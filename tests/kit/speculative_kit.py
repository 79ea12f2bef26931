"""A proposer for a real vLLM that ends the server where it is told anything wrong of a greedy request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stratagem.backends.vllm.speculative.hook import Hook
from stratagem.backends.vllm.speculative.proposer import Context, Proposer, Tops
from stratagem.backends.vllm.speculative.recycling import TokenRecycling


class Watching(TokenRecycling):
    """Token Recycling that looks at what it learns from."""

    def learn(self, context: Context, decoded: Sequence[int], tops: Tops) -> None:
        before = context.last(len(decoded) + 1)
        if before[1:] != tuple(decoded):
            raise AssertionError(f"decoded were {decoded}, at the end stands {before[1:]}")
        told = [(token, likeliest[0]) for token, likeliest in tops[: len(decoded)]]
        if told != list(zip(before, decoded, strict=False)):
            raise AssertionError(f"greedy decoding gave {before}, the output layer was read as {told}")
        super().learn(context, decoded, tops)


class WatchingHook(Hook):
    """For `custom_class`."""

    def made(self, vocabulary: int, options: Mapping[str, Any]) -> Proposer:
        return Watching(vocabulary)
