"""Prompt lookup: copy what followed the longest n-gram of the request's own text that its end repeats.

Source: Saxena 2023, prompt lookup decoding. This is the reference that the others are compared with: it proposes
what vLLM's method ``ngram`` proposes (of several longest matches the earliest), which a test holds it to.
"""

from __future__ import annotations

import numpy as np

from stratagem.backends.vllm.speculative.proposer import Context, Proposer
from stratagem.backends.vllm.speculative.tree import Tree


class PromptLookup(Proposer):
    """Args:
    shortest, longest: tokens of the n-gram; vLLM's default is 5 for both.
    """

    def __init__(self, shortest: int = 5, longest: int = 5) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(f"shortest must be in 1..longest; they are {shortest} and {longest}")
        self._lengths = range(longest, shortest - 1, -1)

    def propose(self, context: Context, limit: int) -> Tree:
        tokens = context.tokens
        for length in self._lengths:
            if length >= len(tokens):
                continue
            starts = np.flatnonzero(tokens[:-length] == tokens[-length])
            for offset in range(1, length):
                starts = starts[tokens[starts + offset] == tokens[offset - length]]
            if starts.size:
                after = int(starts[0]) + length
                draft = tokens[after : after + limit].tolist()
                return Tree([(draft, [1.0] * len(draft))], match=length)
        return Tree()
