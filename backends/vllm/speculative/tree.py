"""Branches of draft tokens that share their prefixes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Node:
    """A draft token. ``probability``: estimated, that it is the next one if all before it are right."""

    probability: float
    children: dict[int, Node] = field(default_factory=dict["int", "Node"])


class Tree:
    """A tree of draft tokens; fusing keeps the highest estimate that a node was given.

    Args:
        branches: tokens and their estimates.
        match: how many of the context's last tokens the guess rests on.
    """

    __slots__ = ("match", "roots")

    def __init__(
        self, branches: Iterable[tuple[Sequence[int], Sequence[float]]] = (), *, match: int = 0
    ) -> None:
        self.match = match
        self.roots: dict[int, Node] = {}
        for tokens, estimates in branches:
            self.add(tokens, estimates)

    def add(self, tokens: Sequence[int], estimates: Sequence[float]) -> None:
        """Put a branch in; the prefix that is already there is shared."""
        level = self.roots
        for token, estimate in zip(tokens, estimates, strict=True):
            node = level.get(token)
            if node is None:
                node = level[token] = Node(estimate)
            else:
                node.probability = max(node.probability, estimate)
            level = node.children

    def fuse(self, other: Tree) -> None:
        """Put another tree in."""
        stack = [(self.roots, other.roots)]
        while stack:
            mine, theirs = stack.pop()
            for token, node in theirs.items():
                own = mine.setdefault(token, Node(node.probability))
                own.probability = max(own.probability, node.probability)
                stack.append((own.children, node.children))

    def paths(self) -> Iterator[tuple[float, tuple[int, ...], Node]]:
        """Every node, parents first: the estimate that all up to it is right, its path, itself."""
        stack: list[tuple[float, tuple[int, ...], Node]] = [
            (node.probability, (token,), node) for token, node in self.roots.items()
        ]
        while stack:
            reach, path, node = stack.pop()
            yield reach, path, node
            stack.extend(
                (reach * child.probability, (*path, token), child) for token, child in node.children.items()
            )

    def __len__(self) -> int:
        return sum(1 for _ in self.paths())

    def pruned(self, size: int) -> Tree:
        """The ``size`` likeliest nodes."""
        nodes = list(self.paths())
        # A child is never likelier than its parent; of equals the shorter path goes first: what is kept hangs
        # together.
        nodes.sort(key=lambda each: (-each[0], len(each[1])))
        kept = Tree(match=self.match)
        for _, path, node in nodes[:size]:
            level = kept.roots
            for token in path[:-1]:
                level = level[token].children
            level[path[-1]] = Node(node.probability)
        return kept

    def best(self, limit: int, floor: float = 0.0) -> list[int]:
        """The branch of which the most tokens are expected to be accepted, at most ``limit`` long.

        Expected are sum_j prod_{i<=j} p_i tokens. The branch is cut where all up to there is right with a
        probability under ``floor``.
        """

        def grown(children: dict[int, Node], left: int, reach: float) -> tuple[float, list[int]]:
            most, branch = 0.0, list[int]()
            if not left:
                return most, branch
            for token, node in children.items():
                through = reach * node.probability
                if through < floor:
                    continue
                value, rest = grown(node.children, left - 1, through)
                value = node.probability * (1.0 + value)
                if value > most or not branch:
                    most, branch = value, [token, *rest]
            return most, branch

        return grown(self.roots, limit, 1.0)[1]
