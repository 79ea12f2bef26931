"""Monte-Carlo tree search over steps, with several simulations at the same time.

A simulation goes from the root to the end of an answer: at each node to the child of greatest Q + U, and where
there are no children yet, ``width`` are drawn and judged first. Its value, the answer's score, counts for every
node that it passed. A node's own score counts as its first visit, so that

    Q = (score + sum of values) / n,    n = 1 + visits

A simulation that has not ended yet counts as ``virtual_loss`` visits of value 0 (Chaslot et al. 2008), which sends
others elsewhere. So that no choice depends on timing, simulation t knows the values of those up to
t - ``parallel``, all of which have ended when it starts, and takes those after them as running, whether they have
ended or not. It waits only for an expansion on its own way.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence

from stratagem.strategies._search.tree import Ask, Node

Bonus = Callable[[float, float, float], float]
"""U of a child: of its visits, of its parent's, and of the probability of its step among its siblings."""


def uct(c: float) -> Bonus:
    """c sqrt(ln N / n) (Kocsis and Szepesvari 2006)."""
    return lambda n, total, _: c * math.sqrt(math.log(total) / n)


def puct(c_init: float, c_base: float, *, prior: bool) -> Bonus:
    """c(N) P sqrt(N) / (1 + n), with P = 1 unless ``prior`` (Silver et al. 2018)."""
    return lambda n, total, p: (
        exploration(total, c_init, c_base) * (p if prior else 1.0) * math.sqrt(total) / (1 + n)
    )


def exploration(total: float, c_init: float, c_base: float) -> float:
    """c(N) = c_init + ln((N + c_base + 1) / c_base): grows slowly with the visits of the parent."""
    return c_init + math.log((total + c_base + 1) / c_base)


class Simulations:
    """The core of MCTS."""

    def __init__(
        self, root: Node, bonus: Bonus, *, simulations: int, width: int, parallel: int, virtual_loss: float
    ) -> None:
        self.root = root
        self._bonus, self._width, self._parallel = bonus, width, parallel
        self._simulations, self._virtual_loss = simulations, virtual_loss
        self._at: list[Node] = []  # where each simulation is
        self._visits: dict[Node, list[int]] = defaultdict(list)  # the simulations that passed
        self._values: dict[int, float] = {}  # of those that have ended
        self._ended = 0  # all before this one have
        self._waiting: dict[Node, list[int]] = {}
        self._expanded: set[Node] = set()
        self._asks: deque[Ask] = deque()
        self._done: list[Node] = []
        self._start()

    def ask(self) -> Ask | None:
        return self._asks.popleft() if self._asks else None

    def tell(self, node: Node, child: Node | None) -> None:
        if child is not None:
            node.children.append(child)
            if child.ended:
                self._done.append(child)

    def told(self, node: Node) -> None:
        self._expanded.add(node)
        for simulation in self._waiting.pop(node):
            self._go_on(simulation)
        self._start()

    def needless(self) -> Iterable[Node]:
        return ()

    def finished(self) -> Sequence[Node]:
        return sorted(self._done, key=lambda node: node.rank)

    def _start(self) -> None:
        """Start the simulations that may start."""
        while True:
            while self._ended in self._values:
                self._ended += 1
            number = len(self._at)
            if number == self._simulations or number - self._parallel >= self._ended:
                return
            self._at.append(self.root)
            self._visits[self.root].append(number)
            self._go_on(number)

    def _go_on(self, simulation: int) -> None:
        """From where it is to the end of an answer, or to where it has to wait."""
        node = self._at[simulation]
        while node.children and node in self._expanded:
            node = self.choose(node, simulation)
            self._at[simulation] = node
            self._visits[node].append(simulation)
        if node.ended or node in self._expanded:
            self._values[simulation] = node.score
            return
        self._waiting.setdefault(node, []).append(simulation)
        if not node.asked:
            node.asked = True
            self._asks.append(Ask(node, self._width))

    def choose(self, node: Node, simulation: int) -> Node:
        """The child that the simulation goes to."""
        total = self._counted(node, simulation)[0]
        mass = math.fsum(math.exp(child.logprob - node.logprob) for child in node.children)

        def worth(child: Node) -> float:
            n, value = self._counted(child, simulation)
            share = math.exp(child.logprob - node.logprob) / mass if mass else 1 / len(node.children)
            return value / n + self._bonus(n, total, share)

        return min(node.children, key=lambda child: (-worth(child), child.rank))

    def _counted(self, node: Node, simulation: int) -> tuple[float, float]:
        """Visits and sum of values of ``node``, as the simulation knows them."""
        known = [self._values[s] for s in self._visits[node] if s <= simulation - self._parallel]
        running = sum(simulation - self._parallel < s < simulation for s in self._visits[node])
        return 1 + len(known) + self._virtual_loss * running, node.score + math.fsum(known)
