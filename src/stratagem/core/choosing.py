"""Which of some choices a model would say next, from one decoded token."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stratagem.core.backend import Scoring
from stratagem.core.task import Candidate


def first_letters_differ(choices: Sequence[str]) -> bool:
    """Whether one token can tell the choices apart."""
    return len({c.strip()[:1].casefold() for c in choices}) == len(choices)


def token_mass(candidate: Candidate, choices: Sequence[str]) -> dict[str, float]:
    """For each choice the probability of all first tokens that begin it and no other, case and surrounding space
    aside."""
    mass = dict.fromkeys(choices, 0.0)
    if candidate.tokens:
        first = candidate.tokens[0]
        for token, logprob in dict([*first.top, (first.token, first.logprob)]).items():
            word = token.strip().casefold()
            begun = [c for c in choices if word and c.strip().casefold().startswith(word)]
            if len(begun) == 1:
                mass[begun[0]] += math.exp(logprob)
    return mass


def scored_mass(scoring: Scoring, choices: Sequence[str]) -> dict[str, float]:
    """For each choice its probability as a whole, up to a common factor."""
    logs = [math.fsum(t.logprob for t in tokens) for tokens in scoring.scores]
    peak = max(logs)  # the scores of long choices would underflow
    if peak == -math.inf:
        return dict.fromkeys(choices, 0.0)
    return {c: math.exp(log - peak) for c, log in zip(choices, logs, strict=True)}
