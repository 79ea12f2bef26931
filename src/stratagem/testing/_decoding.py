"""Decoding of one completion of the toy model: temperature, nucleus, constraint, stop strings, deltas."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from itertools import accumulate
from typing import Self

from stratagem.core.backend import Chunk, Completion, Finish, Request, TokenLogprob
from stratagem.testing.language import END, Distribution, Language


class Sequence:
    """One completion while it grows."""

    def __init__(self, language: Language, request: Request, temperature: float) -> None:
        self._language, self._request, self._temperature = language, request, temperature
        constraint = request.constraint
        self._options: list[str] | None = None if constraint is None else json.loads(constraint.value)
        self.tokens: tuple[str, ...] = ()
        self.logprobs: tuple[TokenLogprob, ...] = ()
        self.text = ""
        self.finish: Finish | None = None
        self._sent = (0, 0)  # characters and tokens given away in deltas

    def copy(self) -> Self:
        """As it is now."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def choices(self) -> dict[str, float]:
        """Probabilities of the next token as it will be drawn."""
        allowed = self._allowed(self._language(self._request.messages, self.tokens))
        return nucleus(tempered(allowed, self._temperature), self._request.top_p)

    def append(self, token: str) -> None:
        """Take ``token`` as the next."""
        request = self._request
        if request.logprobs is not None:
            free = self._language(request.messages, self.tokens)
            best = sorted(free.items(), key=lambda item: -item[1])[: request.logprobs]
            top = tuple((t, log(p)) for t, p in best)
            self.logprobs += (TokenLogprob(token, log(free.get(token, 0.0)), top),)
        self.tokens += (token,)
        self.text += token
        cut = min((at for at in map(self.text.find, request.stop) if at >= 0), default=-1)
        if cut >= 0:
            self.text, self.finish = self.text[:cut], "stop"
        elif token == END:
            self.finish = "stop"
        elif len(self.tokens) == request.max_tokens:
            self.finish = "length"

    def chunk(self, index: int) -> Chunk:
        """What has come since the last chunk. Text that a stop string may yet cut is held back."""
        safe = len(self.text) if self.finish else len(self.text) - self._held()
        (said, given), self._sent = self._sent, (safe, len(self.logprobs))
        whole = self.completion(index) if self.finish else None
        return Chunk(index, self.text[said:safe], self.logprobs[given:], whole)

    def completion(self, index: int) -> Completion:
        """The whole, when it has ended."""
        assert self.finish is not None
        return Completion(index, self.text, self.finish, len(self.tokens), self.logprobs)

    def _held(self) -> int:
        ends = (k for stop in self._request.stop for k in range(len(stop)) if self.text.endswith(stop[:k]))
        return max(ends, default=0)

    def _allowed(self, free: Distribution) -> Distribution:
        if self._options is None:
            return free
        options = [o for o in self._options if o.startswith(self.text)]
        fits = {
            token: p
            for token, p in free.items()
            if p > 0 and (self.text in options if token == END else _begins(self.text + token, options))
        }
        if not fits:  # the language would say none of them: it is made to spell one out
            spelled = sorted({o[len(self.text)] for o in options if len(o) > len(self.text)})
            fits = dict.fromkeys(spelled or [END], 1.0)
        total = sum(fits.values())
        return {token: p / total for token, p in fits.items()}


def _begins(text: str, options: list[str]) -> bool:
    return any(o.startswith(text) for o in options)


def tempered(distribution: Distribution, temperature: float) -> dict[str, float]:
    """p^(1/T) / Z; at T = 0 all on the likeliest, the first of equals."""
    if temperature == 0:
        return {max(distribution, key=distribution.__getitem__): 1.0}
    peak = max(distribution.values())
    powers = {t: (p / peak) ** (1 / temperature) for t, p in distribution.items()}
    total = math.fsum(powers.values())
    return {t: p / total for t, p in powers.items()}


def nucleus(distribution: Mapping[str, float], top_p: float) -> dict[str, float]:
    """The fewest likeliest tokens whose mass is at least ``top_p``, renormalised (Holtzman et al. 2020)."""
    if top_p >= 1:
        return dict(distribution)
    ranked = sorted(distribution.items(), key=lambda item: -item[1])
    masses = list(accumulate(p for _, p in ranked))
    size = next((i for i, mass in enumerate(masses, 1) if mass >= top_p - 1e-12), len(ranked))
    return {t: p / masses[size - 1] for t, p in ranked[:size]}


def draw(distribution: Mapping[str, float], rng: random.Random) -> str:
    """A token by inverse transform; one number of ``rng`` each."""
    return rng.choices(list(distribution), list(distribution.values()))[0]


def log(p: float) -> float:
    """Natural logarithm; -inf of 0."""
    return math.log(p) if p > 0 else -math.inf
