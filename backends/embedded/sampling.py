"""Draw tokens from logits, in float64, each sequence with a generator of its own.

Temperature, then min-p (Nguyen et al. 2024, https://arxiv.org/abs/2407.01082), top-k, top-p (Holtzman et al.
2019, https://arxiv.org/abs/1904.09751), in vLLM's order. One uniform number per token inverts the cumulative
distribution over token ids, so that a sequence draws the same alone and in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stratagem.backends.embedded.constraints import Grammar

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to decode a completion.

    ``temperature`` 0 is greedy. ``logprobs``: None for none, 0 for those of chosen tokens, k for the k
    likeliest besides. ``top_k`` 0 and ``min_p`` 0 are off.
    """

    max_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    grammar: Grammar | None = None
    ignore_end: bool = False  # go on after an end token

    def __post_init__(self) -> None:
        for name, good, rule in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0.0 <= self.temperature < float("inf"), "finite and at least 0"),
            ("top_p", 0.0 < self.top_p <= 1.0, "in (0, 1]"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "in [0, 1]"),
            ("stop", all(self.stop), "of non-empty strings"),
            ("logprobs", self.logprobs is None or self.logprobs >= 0, "None or at least 0"),
        ):
            if not good:
                raise ValueError(f"{name} must be {rule}; it is {getattr(self, name)!r}")


def log_softmax(logits: NDArray[np.float32]) -> Floats:
    """Natural log-probabilities over the last axis."""
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    x -= np.log(np.exp(x).sum(-1, keepdims=True))
    return x


def best(logprobs: Floats, k: int) -> list[tuple[int, float]]:
    """The ``k`` likeliest (token, log-probability), best first, of one row."""
    k = min(k, len(logprobs))
    if not k:
        return []
    top = np.argpartition(-logprobs, k - 1)[:k]
    top = top[np.argsort(-logprobs[top], kind="stable")]
    return [(int(t), float(logprobs[t])) for t in top]


def draw(
    logits: NDArray[np.float32],
    samplings: Sequence[Sampling],
    generators: Sequence[np.random.Generator],
    masks: Sequence[NDArray[np.bool_] | None],
) -> list[int]:
    """One token per row of ``logits`` [n, vocabulary]; ``masks`` say which tokens a row may take."""
    x = logits.astype(np.float64)
    for row, mask in zip(x, masks, strict=True):
        if mask is not None:
            row[: len(mask)][~mask[: len(row)]] = -np.inf
    tokens = [int(t) for t in x.argmax(-1)]
    warm = [i for i, s in enumerate(samplings) if s.temperature > 0]
    if not warm:
        return tokens
    if len(warm) < len(tokens):
        x = x[warm]
    x -= x.max(-1, keepdims=True)
    x /= np.array([samplings[i].temperature for i in warm])[:, None]
    weights = np.exp(x, out=x)
    for row, i in zip(weights, warm, strict=True):
        _filter(row, samplings[i])
    cumulative = np.cumsum(weights, axis=1)
    for row, i in zip(cumulative, warm, strict=True):
        point = min(generators[i].random() * row[-1], np.nextafter(row[-1], 0.0))
        tokens[i] = int(row.searchsorted(point, side="right"))
    return tokens


def _filter(weights: Floats, sampling: Sampling) -> None:
    """Set to zero what min-p, top-k and top-p exclude; the greatest of ``weights`` is 1."""
    if sampling.min_p > 0:
        weights[weights < sampling.min_p] = 0
    if 0 < sampling.top_k < len(weights):
        weights[weights < np.partition(weights, -sampling.top_k)[-sampling.top_k]] = 0
    if sampling.top_p < 1:
        order = np.argsort(-weights, kind="stable")
        mass = np.cumsum(weights[order])
        keep = int(mass.searchsorted(sampling.top_p * mass[-1])) + 1
        weights[order[keep:]] = 0
