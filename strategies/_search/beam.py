"""Beam search, level by level: B_k+1 = top b of the children of B_k by score; and forests of such searches.

A level is decided as soon as nothing that is still to come can change it, not when all has come: a child that is
in the beam for certain is expanded at once, and an expansion none of whose children can enter the beam is needless.
What is to come is bounded by its parent's bound: with the least or the product of step rewards, the parent's score.

An answer leaves its slot in the beam empty. The search goes on only for what can score more than the best answer.
Which of the others are still finished depends on timing; those that are given back are the same in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stratagem.strategies._search.tree import Ask, Node


class Beam:
    """The core of beam search: ``beams`` partial answers, ``width`` steps drawn after each (``beams * width`` after
    the root)."""

    def __init__(self, root: Node, beams: int, width: int) -> None:
        self.root = root
        self.level = [root]  # the beam whose children are now coming
        self.done: list[Node] = []
        self._slots, self._width = beams, width
        self._needless: list[Node] = []
        root.coming = beams * width

    def ask(self) -> Ask | None:
        node = next((n for n in (*self.level, *self._certain()) if not n.asked), None)
        if node is None:
            return None
        node.asked = True
        node.coming = node.coming or self._width
        return Ask(node, node.coming)

    def tell(self, node: Node, child: Node | None) -> None:
        node.coming -= 1
        if child is not None:
            node.children.append(child)
        self._decide()

    def told(self, node: Node) -> None:
        node.coming = 0
        self._decide()

    def needless(self) -> Iterable[Node]:
        needless, self._needless = self._needless, []
        return needless

    def finished(self) -> Sequence[Node]:
        return undisputed(self.done)

    def reached(self) -> float:
        """The score of the best answer so far that will count whatever comes."""
        # What is to come can lift the last place of the next beam to this, and not higher.
        scores = [c.score for c in self._known()] + [n.bound for n in self.level for _ in range(n.coming)]
        full = 0 < self._slots <= len(scores)
        least = sorted(scores, reverse=True)[self._slots - 1] if full else -1.0
        sure = [c for node in self.level if node.bound >= least for c in node.children if c.ended]
        return max((answer.score for answer in (*self.done, *sure)), default=-1.0)

    def cut(self, score: float) -> None:
        """Give up what cannot reach this score."""
        self._needless += [node for node in self.level if node.bound < score]
        self.level = [node for node in self.level if node.bound >= score]

    def _known(self) -> list[Node]:
        """What has come of this level, the best first, each text once."""
        known: dict[tuple[str, bool], Node] = {}
        for child in sorted((c for node in self.level for c in node.children), key=lambda c: c.rank):
            known.setdefault((child.partial.written, child.ended), child)
        return list(known.values())

    def _certain(self) -> Iterable[Node]:
        """What will be in the next beam whatever comes, and is to be expanded there."""
        for better, child in enumerate(self._known()[: self._slots]):
            rivals = sum(node.coming for node in self.level if node.bound >= child.score)
            if better + rivals < self._slots and not child.ended:
                yield child

    def _decide(self) -> None:
        """Go on to the next level, if this one is decided."""
        while self.level:
            self.cut(self.reached())
            best = self._known()[: self._slots]
            coming = [node for node in self.level if node.coming]
            least = best[-1].score if len(best) == self._slots else -1.0
            if any(node.bound >= least for node in coming):
                return
            self._needless += coming
            # Answers outside the beam count too, but not those whose expansion may have been found needless.
            complete = [node for node in self.level if node.bound >= least]
            self.done += [c for node in complete for c in node.children if c.ended]
            reached = max((node.score for node in self.done), default=-1.0)
            beam = [c for c in best if not c.ended and c.bound > reached]
            early = [c for node in self.level for c in node.children if c.asked and c not in beam]
            self._needless += early
            self._slots -= sum(c.ended for c in best)
            for node in beam:
                node.coming = node.coming if node.asked else self._width
            self.level = beam


class Forest:
    """Independent beam searches, one a lane. One that cannot reach the best answer of all is needless."""

    def __init__(self, trees: Sequence[Beam]) -> None:
        self.root = trees[0].root
        self._trees = trees

    def ask(self) -> Ask | None:
        return next((ask for tree in self._trees if (ask := tree.ask()) is not None), None)

    def tell(self, node: Node, child: Node | None) -> None:
        self._trees[node.lane].tell(node, child)

    def told(self, node: Node) -> None:
        self._trees[node.lane].told(node)

    def needless(self) -> Iterable[Node]:
        reached = max(tree.reached() for tree in self._trees)
        for tree in self._trees:
            tree.cut(reached)
            yield from tree.needless()

    def finished(self) -> Sequence[Node]:
        return undisputed([node for tree in self._trees for node in tree.done])


def undisputed(answers: Sequence[Node]) -> list[Node]:
    """The answers whose search no better one could have stopped, the best first."""
    ranked = sorted(answers, key=lambda node: node.rank)
    return [node for node in ranked if node.parent is None or node.parent.bound >= ranked[0].score]
