"""How sure a model is of what it writes, by the log-probabilities of the likeliest tokens at each place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from stratagem.core.backend import TokenLogprob
from stratagem.core.errors import UnsupportedError
from stratagem.core.run import Run

Measure = Literal["lowest", "bottom", "tail", "mean"]


async def logprobs_of(run: Run, kind: str, most: int) -> int:
    """How many alternatives per token to ask for: ``most``, or as many as the model gives.

    Raises:
        UnsupportedError: it gives none, or (with ``most`` above 0) only that of the token itself.
    """
    caps = await run.model().capabilities()
    if caps.logprobs < min(1, most):
        given = "no log-probabilities" if caps.logprobs < 0 else "log-probabilities of no alternatives"
        raise UnsupportedError(
            f"{caps.model} gives {given}, by which {kind} tells good answers.",
            remedy="Use a backend that does, or self_consistency.",
        )
    return min(most, caps.logprobs)


def token_confidence(token: TokenLogprob, k: int) -> float:
    """-1/k sum_j log p_j over the k likeliest tokens there, in nats; what the model excludes is left out."""
    logs = [logprob for _, logprob in token.top[:k] if logprob > -math.inf]
    return -math.fsum(logs) / len(logs) if logs else 0.0


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; 0 of nothing."""
    return math.fsum(values) / len(values) if values else 0.0


class Gauge:
    """The confidence of a text while it grows: of its tokens, and of each ``window`` of tokens in a row (a group).

    A text shorter than the window is one group.
    """

    def __init__(self, top: int, window: int) -> None:
        self._top, self._window = top, window
        self._tokens: list[float] = []
        self._groups: list[float] = []
        self._sum = 0.0
        self.lowest = math.inf  # of the whole groups so far: it only falls

    def add(self, tokens: Iterable[TokenLogprob]) -> None:
        """Takes the next tokens."""
        for token in tokens:
            self._tokens.append(token_confidence(token, self._top))
            self._sum += self._tokens[-1]
            if len(self._tokens) > self._window:
                self._sum -= self._tokens[-1 - self._window]
            if len(self._tokens) >= self._window:
                self._groups.append(self._sum / self._window)
                self.lowest = min(self.lowest, self._groups[-1])

    def value(self, measure: Measure) -> float:
        """Of all tokens so far, in nats."""
        if measure == "mean" or not self._groups:
            return mean(self._tokens)
        if measure == "tail":
            return self._groups[-1]
        if measure == "lowest":
            return self.lowest
        return mean(sorted(self._groups)[: max(1, len(self._groups) // 10)])


def quantile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of the values are below, linear between two of them."""
    ranked = sorted(values)
    place = share * (len(ranked) - 1)
    below = min(int(place), len(ranked) - 1)
    above = min(below + 1, len(ranked) - 1)
    part = place - below
    return (
        ranked[below]
        if part == 0
        else min(ranked[above], ranked[below] + part * (ranked[above] - ranked[below]))
    )
