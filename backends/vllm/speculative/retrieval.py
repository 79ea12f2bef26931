"""Retrieval: how past runs went on after the same tokens, out of a file of them.

The longest end of the context that stands in the datastore decides; what followed it there is one tree, in which a
node's estimate is the share of continuations that go through it. Sources: He et al. 2023, REST (arXiv 2311.08252);
the fusing with other guesses is RASD's (arXiv 2503.03434), see
:mod:`~stratagem.backends.vllm.speculative.merged`.
"""

from __future__ import annotations

import numpy as np

from stratagem.backends.vllm.speculative.datastore import DEPTH, Datastore
from stratagem.backends.vllm.speculative.proposer import Context, Proposer
from stratagem.backends.vllm.speculative.tree import Node, Tree


class Retrieval(Proposer):
    """Args:
    datastore: past sequences; nothing is added to it.
    longest: most tokens of context that are looked for; at most ``DEPTH``.
    most: continuations that are looked at, of more an even choice.
    size: draft nodes of a proposal.
    """

    def __init__(self, datastore: Datastore, longest: int = 16, most: int = 64, size: int = 64) -> None:
        if not 1 <= longest <= DEPTH or min(most, size) < 1:
            raise ValueError(f"no retrieval has {longest=}, {most=}, {size=}")
        self._datastore = datastore
        self._longest = longest
        self._most = most
        self._size = size

    def propose(self, context: Context, limit: int) -> Tree:
        places, match = self._datastore.find(context.last(self._longest))
        if len(places) > self._most:
            places = places[np.linspace(0, len(places) - 1, self._most).astype(int)]
        tree = Tree(match=match)
        stack = [(tree.roots, self._datastore.following(places, limit))]
        while stack:
            level, rows = stack.pop()
            branches: dict[int, list[list[int]]] = {}
            for row in rows:
                if row:
                    branches.setdefault(row[0], []).append(row[1:])
            for token, rest in branches.items():
                # What was seen once is no certainty: one more, unseen, is supposed.
                node = level[token] = Node(len(rest) / (len(rows) + 1))
                stack.append((node.children, rest))
        return tree.pruned(self._size)
