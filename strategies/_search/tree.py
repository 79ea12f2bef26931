"""The tree of partial answers that a search grows, and how its driver talks to what decides (a core).

A core is told what has come and asked what to do next; it awaits nothing, and what it decides does not depend on
the order in which results have come. So the same seed gives the same answer however long each step takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from stratagem.strategies._search.steps import Partial


@dataclass(eq=False, slots=True)
class Node:
    """A partial answer in the tree."""

    partial: Partial
    score: float  # in [0, 1]; less where it has not been judged
    bound: float  # no answer that begins like this can score more
    parent: Node | None = None
    lane: int = 0  # of independent searches at the same time, the one it belongs to
    children: list[Node] = field(default_factory=list)
    asked: bool = False  # its expansion has been asked for
    coming: int = 0  # children that may still come
    logprob: float = 0.0  # of the whole partial answer

    @property
    def ended(self) -> bool:
        """Whether it is an answer."""
        return self.partial.ended

    @property
    def rank(self) -> tuple[float, int, float, str]:
        """The better is less: by score, then fewer steps, then likelier, then by the text, to decide every tie."""
        return -self.score, self.partial.steps, -self.logprob, self.partial.written


def root(lane: int = 0) -> Node:
    """The answer of which nothing has been written."""
    return Node(Partial(), score=0.0, bound=1.0, lane=lane)


class Ask(NamedTuple):
    """To draw ``n`` steps after ``node``; ``whole``: to the end of the answer instead."""

    node: Node
    n: int
    whole: bool = False


class Core(Protocol):
    """What a search decides by."""

    root: Node

    def ask(self) -> Ask | None:
        """The next expansion that can start now; none: nothing, until more is told."""
        ...

    def tell(self, node: Node, child: Node | None) -> None:
        """One of the steps asked for after ``node`` has come; ``None``: it brought nothing new."""
        ...

    def told(self, node: Node) -> None:
        """No more children of ``node`` will come."""
        ...

    def needless(self) -> Iterable[Node]:
        """Nodes whose expansion has become needless since this was last asked."""
        ...

    def finished(self) -> Sequence[Node]:
        """The answers that no order of arrivals would have left out, the best first."""
        ...
