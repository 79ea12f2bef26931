"""A trie over prompts and outputs: what followed the last tokens before, here or in any earlier output.

    f = (1 - w) f_in + w f_out        f_in: how often in this request's prompt; f_out: how often in all outputs

Source: Zhao et al. 2023, "Lookahead" (arXiv 2312.12728). The longest end of the context that is known decides; from
there the branches with the highest f are followed. Two things differ from the paper: input counts are read off the
prompt when they are needed, so that a long prompt costs nothing to take in and nothing has to be taken back at the
request's end; and where a stored branch ends, the search goes on from its own last tokens.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stratagem.backends.vllm.speculative.proposer import Context, Ids, Proposer, Tops
from stratagem.backends.vllm.speculative.tree import Node, Tree


class _Stored:
    """How often the path to here was decoded, and what follows."""

    __slots__ = ("children", "count")

    def __init__(self) -> None:
        self.count = 0
        self.children: dict[int, _Stored] = {}


@dataclass(slots=True)
class _Place:
    """Below a node of a draft: where its children hang and what they are guessed from."""

    level: dict[int, Node]
    depth: int  # of the children
    history: tuple[int, ...]  # last tokens, of context and draft
    ends: list[int]  # where in the prompt stands what follows the last `matched` tokens
    matched: int


class TokenTrie(Proposer):
    """The trie.

    Args:
        length: tokens of a stored branch; of these at most one less are matched.
        weight: w above, of outputs against the prompt.
        size: draft nodes of a proposal.
        capacity: stored nodes (about 200 bytes each) at which the trie is squeezed.
        per_first: the same, for the nodes under one first token.
    """

    def __init__(
        self,
        length: int = 8,
        weight: float = 1e-4,
        size: int = 16,
        capacity: int = 1 << 18,
        per_first: int = 1 << 14,
    ) -> None:
        if length < 2 or not 0.0 < weight < 1.0 or min(size, capacity, per_first) < 1:
            raise ValueError(f"no trie has {length=}, {weight=}, {size=}, {capacity=}, {per_first=}")
        self._length = length
        self._weight = weight
        self._size = size
        self._capacity = capacity
        self._per_first = per_first
        self._roots: dict[int, _Stored] = {}
        self._sizes: Counter[int] = Counter()  # stored nodes by first token
        self._stored = 0  # and in all
        # Of each request: the nodes of its last tokens, the longest path first, each with its first token.
        self._ends: dict[Context, list[tuple[int, _Stored]]] = {}

    def start(self, context: Context) -> None:
        # What is decoded first hangs below the end of the prompt, whose own nodes count nothing.
        self._ends[context] = self._walked(context)

    def stop(self, context: Context) -> None:
        self._ends.pop(context, None)

    def learn(self, context: Context, decoded: Sequence[int], tops: Tops) -> None:
        ends = self._ends[context]
        for token in decoded:
            longer = [(first, self._child(first, node.children, token)) for first, node in ends]
            ends = [*longer, (token, self._child(token, self._roots, token))][-self._length :]
            for _, node in ends:
                node.count += 1
            ends = ends[1 - self._length :]
        self._ends[context] = ends
        if self._stored > self._capacity:
            self.squeeze(list(self._roots))
        elif full := [first for first, _ in ends if self._sizes[first] > self._per_first]:
            self.squeeze(full)

    def counts(self, path: Sequence[int]) -> int:
        """How often this path of at most ``length`` tokens was decoded, since the last squeeze and half before."""
        level = self._roots
        node = None
        for token in path:
            node = level.get(token)
            if node is None:
                return 0
            level = node.children
        return node.count if node else 0

    def squeeze(self, firsts: Sequence[int]) -> None:
        """Halve the counts over 1 and forget all others, under these first tokens."""
        for first in set(firsts):
            left = _halved(self._roots, first)
            self._stored += left - self._sizes[first]
            if left:
                self._sizes[first] = left
            else:
                del self._sizes[first]
        for context in self._ends:
            self._ends[context] = self._walked(context)

    def propose(self, context: Context, limit: int) -> Tree:
        tree = Tree()
        heap: list[tuple[float, int, float, int, _Place]] = []  # candidates, likeliest first
        number = itertools.count()

        def offer(place: _Place, reach: float) -> int:
            match, options = self._options(place, prompt)
            for token, estimate in options:
                heapq.heappush(heap, (-reach * estimate, next(number), estimate, token, place))
            return match

        prompt = context.tokens[: context.prompt]
        ends, matched = self._in_prompt(context, prompt)
        tree.match = offer(_Place(tree.roots, 1, context.last(self._length - 1), ends, matched), 1.0)
        for _ in range(self._size):
            if not heap:
                break
            reach, _, estimate, token, place = heapq.heappop(heap)
            node = place.level[token] = Node(estimate)
            if place.depth < limit:
                ends = [end + 1 for end in place.ends if end < len(prompt) and prompt[end] == token]
                matched = min(place.matched + 1, self._length - 1)
                history = (*place.history, token)[1 - self._length :]
                offer(_Place(node.children, place.depth + 1, history, ends, matched), -reach)
        return tree

    def _options(self, place: _Place, prompt: Ids) -> tuple[int, list[tuple[int, float]]]:
        """The tokens that may follow, with their estimates, and by how long a match."""
        stored, match = self._longest(place.history)
        inputs: Counter[int] = Counter(int(prompt[end]) for end in place.ends if end < len(prompt))
        if inputs and place.matched >= match:
            if place.matched > match:
                stored = {}
            match = place.matched
        else:
            inputs.clear()
        outputs = {token: node.count for token, node in stored.items() if node.count}
        seen = inputs.total() + sum(outputs.values())
        weights = {token: (1.0 - self._weight) * count for token, count in inputs.items()}
        for token, count in outputs.items():
            weights[token] = weights.get(token, 0.0) + self._weight * count
        total = sum(weights.values())
        # What was seen once is no certainty: one more, unseen, is supposed.
        return match, [(token, f / total * seen / (seen + 1)) for token, f in weights.items()]

    def _longest(self, history: tuple[int, ...]) -> tuple[dict[int, _Stored], int]:
        """What was decoded after the longest end of ``history`` that has been followed by anything."""
        for match in range(min(self._length - 1, len(history)), 0, -1):
            level = self._roots
            for token in history[len(history) - match :]:
                node = level.get(token)
                if node is None:
                    break
                level = node.children
            else:
                if any(node.count for node in level.values()):
                    return level, match
        return {}, 0

    def _in_prompt(self, context: Context, prompt: Ids) -> tuple[list[int], int]:
        """Where in the prompt stands what follows the longest end of the context that is there too."""
        last = context.last(self._length - 1)
        if not last:
            return [], 0
        ends = np.flatnonzero(prompt[:-1] == last[-1]) + 1
        match = 1
        while ends.size and match < len(last):
            longer = ends[ends > match]
            longer = longer[prompt[longer - match - 1] == last[-match - 1]]
            if not longer.size:
                break
            ends, match = longer, match + 1
        return ends.tolist(), match

    def _walked(self, context: Context) -> list[tuple[int, _Stored]]:
        last = context.last(self._length - 1)
        ends: list[tuple[int, _Stored]] = []
        for start, first in enumerate(last):
            node = self._child(first, self._roots, first)
            for token in last[start + 1 :]:
                node = self._child(first, node.children, token)
            ends.append((first, node))
        return ends

    def _child(self, first: int, level: dict[int, _Stored], token: int) -> _Stored:
        node = level.get(token)
        if node is None:
            node = level[token] = _Stored()
            self._sizes[first] += 1
            self._stored += 1
        return node


def _halved(level: dict[int, _Stored], token: int) -> int:
    """Squeeze a node and all below it; how many are left."""
    node = level[token]
    left = sum(_halved(node.children, child) for child in list(node.children))
    if node.count > 1:
        node.count //= 2
    elif left:
        node.count = 0  # a place on the way to what is kept
    else:
        del level[token]
        return 0
    return left + 1
