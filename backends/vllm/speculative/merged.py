"""Several proposers as one: their trees are fused, each by what its guesses have been worth so far.

A guess is known by its proposer, by how many tokens of context it rests on, and by the proposer's own estimate. How
often such guesses held, as far as the tokens decoded since can tell, is the trust in the next one:

    p = (held + s e) / (asked + s)        e: the proposer's own estimate, s: its weight as so many guesses

The branch to verify is then the one of which the most tokens are expected to be accepted: the longest prefix that
can be trusted. Fusing is RASD's (Quan et al. 2025, arXiv 2503.03434); the estimates are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

from stratagem.backends.vllm.speculative.proposer import Context, Proposer, Tops
from stratagem.backends.vllm.speculative.tree import Node, Tree

_PRIOR = 4.0  # s
_MEMORY = 512.0  # guesses of a kind after which older ones count half
_LONGEST = 12  # matches of this many tokens and more are one kind
_STEPS = 8  # kinds of estimates

Kind = tuple[int, int, int]


class Merged(Proposer):
    """Args:
    parts: the proposers; each sees every request.
    size: nodes of the fused tree.
    """

    def __init__(self, parts: Sequence[Proposer], size: int = 64) -> None:
        self._parts = list(parts)
        self.successors = max((part.successors for part in parts), default=0)
        self._size = size
        self._trust: dict[Kind, list[float]] = {}  # held, asked
        self._guesses: dict[Context, list[Tree]] = {}

    def start(self, context: Context) -> None:
        for part in self._parts:
            part.start(context)

    def stop(self, context: Context) -> None:
        self._guesses.pop(context, None)
        for part in self._parts:
            part.stop(context)

    def propose(self, context: Context, limit: int) -> Tree:
        guesses = [part.propose(context, limit) for part in self._parts]
        self._guesses[context] = guesses
        fused = Tree(match=max((guess.match for guess in guesses), default=0))
        for number, guess in enumerate(guesses):
            trusted = Tree()
            stack = [(guess.roots, trusted.roots, guess.match)]
            while stack:
                theirs, ours, match = stack.pop()
                for token, node in theirs.items():
                    own = ours[token] = Node(self.trust(_kind(number, match, node), node.probability))
                    stack.append((node.children, own.children, match + 1))
            fused.fuse(trusted)
        return fused.pruned(self._size)

    def learn(self, context: Context, decoded: Sequence[int], tops: Tops) -> None:
        for number, guess in enumerate(self._guesses.pop(context, ())):
            level = guess.roots
            for match, token in enumerate(decoded, start=guess.match):
                for each, node in level.items():
                    self._judged(_kind(number, match, node), held=each == token)
                if token not in level:
                    break
                level = level[token].children
        for part in self._parts:
            part.learn(context, decoded, tops)

    def trust(self, kind: Kind, estimate: float) -> float:
        """How likely a guess of this kind holds."""
        held, asked = self._trust.get(kind, (0.0, 0.0))
        return (held + _PRIOR * estimate) / (asked + _PRIOR)

    def _judged(self, kind: Kind, *, held: bool) -> None:
        record = self._trust.setdefault(kind, [0.0, 0.0])
        record[0] += held
        record[1] += 1.0
        if record[1] > _MEMORY:
            record[:] = [record[0] / 2, record[1] / 2]


def _kind(part: int, match: int, node: Node) -> Kind:
    return part, min(match, _LONGEST), min(int(node.probability * _STEPS), _STEPS - 1)
