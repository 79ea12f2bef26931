"""Best-first search: expand argmax of the score over all partial answers that are not expanded yet.

The search ends where the best of them is an answer. With the least or the product of step rewards as score, which
never rise along an answer, that is the best answer in the tree; otherwise the first that is best in its turn.

``parallel`` expansions run at the same time. Their children join in the order in which their parents were chosen,
so that no choice depends on timing: it knows the children of all chosen before it but the last ``parallel`` - 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from stratagem.strategies._search.tree import Ask, Node


class Frontier:
    """The core of best-first search: at most ``expansions`` of ``width`` steps each. If they find no answer, the
    best partial answer is written to its end."""

    def __init__(self, root: Node, width: int, expansions: int, parallel: int) -> None:
        self.root = root
        self._width, self._left, self._parallel = width, expansions, parallel
        self._frontier = [root]
        self._running: deque[Node] = deque()  # chosen, in that order; their children have not joined
        self._complete: set[Node] = set()
        self._asks: deque[Ask] = deque()
        self._needless: list[Node] = []
        self._done: list[Node] = []
        self._choose()

    def ask(self) -> Ask | None:
        return self._asks.popleft() if self._asks else None

    def tell(self, node: Node, child: Node | None) -> None:
        if child is not None:
            node.children.append(child)

    def told(self, node: Node) -> None:
        self._complete.add(node)
        while self._running and self._running[0] in self._complete:
            node = self._running.popleft()
            if self._worthwhile(node):
                self._frontier += node.children
            self._choose()

    def needless(self) -> Iterable[Node]:
        needless, self._needless = self._needless, []
        return needless

    def finished(self) -> Sequence[Node]:
        return sorted(self._done, key=lambda node: node.rank)

    def _worthwhile(self, node: Node) -> bool:
        """Whether it comes before every answer chosen so far."""
        return all(node.score > answer.score for answer in self._done)

    def _choose(self) -> None:
        """Choose as many as may run now."""
        self._frontier.sort(key=_turn, reverse=True)
        while self._frontier and len(self._running) < self._parallel:
            node = self._frontier[-1]
            if not self._worthwhile(node):
                self._frontier.clear()
            elif node.ended:
                self._done.append(self._frontier.pop())
                self._needless += [n for n in self._running if not self._worthwhile(n)]
                self._complete.update(self._needless)
            elif self._left:
                self._left -= 1
                self._run(Ask(self._frontier.pop(), self._width))
            elif self._running:
                break  # what they bring may be better
            else:
                self._frontier = [n for n in self._frontier if n.ended]
                if not self._frontier and not self._done:
                    self._run(Ask(node, 1, whole=True))

    def _run(self, ask: Ask) -> None:
        ask.node.asked = True
        self._running.append(ask.node)
        self._asks.append(ask)


def _turn(node: Node) -> tuple[float, int, float, str]:
    """The best is least; of equals the one with more steps, which is nearer to an answer."""
    return -node.score, -node.partial.steps, -node.logprob, node.partial.written
