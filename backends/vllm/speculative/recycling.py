"""Token Recycling: a matrix of likely successors of each token, kept across requests.

    M[u] <- the target's k likeliest tokens after u, for every input token u of a step, accepted or not
    draft tree: child i of a node u is M[u, i], along a fixed template

Source: Luo et al. 2024 (arXiv 2408.08696). In vLLM the target's logits are read off its own output layer, as
:mod:`~stratagem.backends.vllm.speculative.hook` says. Where they cannot be had, what was decoded after u moves to
the front of M[u]: the same matrix, by recency instead of by probability. A node's estimate is how often its rank
has held so far.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

import numpy as np

from stratagem.backends.vllm.speculative.proposer import Context, Proposer, Tops
from stratagem.backends.vllm.speculative.tree import Node, Tree

WIDTH = 8
BUDGET = 2_000_000  # bytes of the matrix
# Nodes of the template by depth, and by first-level branch: the paper's. Both are 80 in all.
LEVELS = (8, 21, 25, 15, 8, 3)
SUBTREES = (49, 10, 6, 5, 3, 3, 2, 2)


def template() -> list[tuple[int, int]]:
    """The nodes, each as its parent's index (-1: the root) and the rank of the successor it takes.

    The paper gives the counts, not the nodes: these are the paths of the lowest ranks that the counts allow.
    """
    levels, subtrees = list[int](LEVELS), list[int](SUBTREES)
    nodes: list[tuple[int, int]] = []
    heap: list[tuple[float, tuple[int, ...], int]] = []

    def offer(cost: float, path: tuple[int, ...], parent: int) -> None:
        for rank in range(WIDTH):
            # The exponent makes one bad rank worse than several middling ones; with it all counts are filled.
            heapq.heappush(heap, (cost + (rank + 2) ** 1.5, (*path, rank), parent))

    offer(0.0, (), -1)
    while heap:
        cost, path, parent = heapq.heappop(heap)
        depth = len(path) - 1
        if not levels[depth] or not subtrees[path[0]]:
            continue
        levels[depth] -= 1
        subtrees[path[0]] -= 1
        nodes.append((parent, path[-1]))
        if depth + 1 < len(LEVELS):
            offer(cost, path, len(nodes) - 1)
    return nodes


_TEMPLATE = template()
_MEMORY = 4096  # guesses over which the ranks' rates are taken


class TokenRecycling(Proposer):
    """The matrix and the drafts from it.

    Args:
        vocabulary: the number of token ids.
        width: successors kept for each token, fewer where :data:`BUDGET` needs it.
    """

    def __init__(self, vocabulary: int, width: int = WIDTH) -> None:
        self._none = vocabulary  # stands for "no successor known"
        kind = np.dtype(np.uint16 if vocabulary < 1 << 16 else np.uint32)
        width = min(width, WIDTH, BUDGET // (vocabulary * kind.itemsize))
        if width < 1:
            raise ValueError(f"a vocabulary of {vocabulary} does not fit into {BUDGET} bytes")
        self.successors = width
        self.matrix = np.full((vocabulary, width), vocabulary, kind)
        self._held = [2.0, *[1.0] * (width - 1)]  # how often each rank was right, with a prior
        self._asked = 2.0 + 2.0 * width

    def propose(self, context: Context, limit: int) -> Tree:
        tree = Tree(match=1)
        if not context.length:
            return tree
        rates = [held / self._asked for held in self._held]
        rows: dict[int, list[int]] = {}
        # Where the children of each node of the template hang, the token they follow, and their depth.
        root = (tree.roots, int(context.tokens[-1]), 1)
        made: list[tuple[dict[int, Node], int, int] | None] = []
        for parent, rank in _TEMPLATE:
            place = root if parent < 0 else made[parent]
            made.append(None)
            if place is None or place[2] > limit or rank >= len(rates):
                continue
            level, before, depth = place
            if before not in rows:
                rows[before] = self.matrix[before].tolist()
            token = rows[before][rank]
            if token != self._none:
                node = level[token] = Node(rates[rank])
                made[-1] = (node.children, token, depth + 1)
        return tree

    def known(self, token: int) -> list[int]:
        """The successors of a token, best first."""
        return [each for each in self.matrix[token].tolist() if each != self._none]

    def learn(self, context: Context, decoded: Sequence[int], tops: Tops) -> None:
        before = context.last(len(decoded) + 1)
        # The first token of an empty prompt follows nothing.
        for token, after in itertools.pairwise(before):
            known = self.known(token)
            if known:
                self._asked += 1
                if after in known:
                    self._held[known.index(after)] += 1
            if not tops:
                self._set(token, [after, *(each for each in known if each != after)])
        for token, likeliest in tops:
            self._set(token, likeliest)
        if self._asked > _MEMORY:
            self._asked /= 2
            self._held = [held / 2 for held in self._held]

    def _set(self, token: int, likeliest: Sequence[int]) -> None:
        row = self.matrix[token]
        row[:] = self._none
        kept = likeliest[: len(row)]
        row[: len(kept)] = kept
