"""What searches decide, without a model: known numbers, brute force, and no dependence on the order of arrivals."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import NamedTuple

import pytest

from stratagem.strategies._search.beam import Beam, Forest
from stratagem.strategies._search.frontier import Frontier
from stratagem.strategies._search.mcts import Simulations, exploration, puct, uct
from stratagem.strategies._search.steps import Partial
from stratagem.strategies._search.tree import Ask, Core, Node, root


class World(NamedTuple):
    """A tree of answers: what follows a node depends on its text alone. ``falls``: as the least of rewards does."""

    number: int
    falls: bool = True
    depth: int = 4

    def children(self, ask: Ask) -> list[Node | None]:
        """What is drawn; ``None`` for a step that is drawn again."""
        node = ask.node
        rng = random.Random(f"{self.number} {node.lane} {node.partial.written} {ask.whole}")
        drawn: dict[str, Node] = {}
        result: list[Node | None] = []
        for _ in range(ask.n):
            name = rng.choice("abcd")
            result.append(None if name in drawn else drawn.setdefault(name, self.child(ask, name)))
        return result

    def child(self, ask: Ask, name: str) -> Node:
        parent = ask.node
        text, steps = parent.partial.text + name, parent.partial.steps + 1
        rng = random.Random(f"{self.number} {text}")
        # A coarse grid, for ties.
        reward = rng.choice([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
        ended = ask.whole or steps == self.depth or rng.random() < 0.2
        score = min(reward, parent.score) if self.falls and steps > 1 else reward
        bound = score if self.falls or ended else 1.0
        partial = Partial(text=text, steps=steps, ended=ended)
        return Node(partial, score, bound, parent, parent.lane, logprob=parent.logprob - rng.random())


def play(core: Core, world: World, rng: random.Random | None = None) -> list[str]:
    """The expansions of a search whose results come one by one, in the order of ``rng`` or of asking."""
    coming: dict[Node, list[Node | None]] = {}
    asked: list[str] = []
    while True:
        for node in core.needless():
            coming.pop(node, None)
        while (ask := core.ask()) is not None:
            asked.append(ask.node.partial.text)
            coming[ask.node] = world.children(ask)
            if rng is not None:
                rng.shuffle(coming[ask.node])
        if not coming:
            return asked
        node = next(iter(coming)) if rng is None else rng.choice(list(coming))
        if coming[node]:
            core.tell(node, coming[node].pop())
        else:
            del coming[node]
            core.told(node)


def texts(core: Core) -> list[str]:
    return [node.partial.text for node in core.finished()]


CORES: dict[str, Callable[[], Core]] = {
    "greedy": lambda: Beam(root(), 1, 4),
    "beam": lambda: Beam(root(), 3, 3),
    "forest": lambda: Forest([Beam(root(lane), 1, 3) for lane in range(4)]),
    "best-first": lambda: Frontier(root(), 3, 12, 3),
    "best-first in turn": lambda: Frontier(root(), 3, 5, 1),
    "puct": lambda: Simulations(
        root(), puct(1.25, 19652, prior=True), simulations=9, width=3, parallel=4, virtual_loss=1
    ),
    "uct": lambda: Simulations(root(), uct(1.4), simulations=7, width=3, parallel=2, virtual_loss=0.5),
}


@pytest.mark.parametrize("name", CORES)
@pytest.mark.parametrize("falls", [True, False])
def test_the_order_of_arrivals_decides_nothing(name: str, falls: bool) -> None:
    for number in range(20):
        world = World(number, falls)
        first = CORES[name]()
        asked = play(first, world)
        assert texts(first)
        for shuffle in range(6):
            again = CORES[name]()
            same = sorted(play(again, world, random.Random(shuffle)))
            assert texts(again) == texts(first)
            if name in ("puct", "uct"):  # nothing there is needless
                assert same == sorted(asked)


def everything(world: World, node: Node, width: int) -> list[Node]:
    """All answers in the tree that is grown by expanding every node."""
    drawn = [child for child in world.children(Ask(node, width)) if child is not None]
    return [a for child in drawn for a in ([child] if child.ended else everything(world, child, width))]


@pytest.mark.parametrize("parallel", [1, 2, 5])
def test_best_first_finds_the_best_answer_of_the_tree_with_the_fewest_expansions(parallel: int) -> None:
    for number in range(20):
        world = World(number)
        core = Frontier(root(), 4, 1000, parallel)
        asked = play(core, world, random.Random(number))
        best = max(everything(world, root(), 4), key=lambda node: node.score)
        assert core.finished()[0].score == best.score
        # In turn it expands nothing that is worse than the answer; otherwise little.
        if parallel == 1:
            worst = min((score(world, text) for text in asked if text), default=1.0)
            assert worst >= best.score


def score(world: World, text: str) -> float:
    return min(world.child(Ask(root(), 1), text[:k]).score for k in range(1, len(text) + 1))


def by_the_book(world: World, beams: int, width: int) -> list[Node]:
    """Beam search that waits for all of every depth."""
    level, done, slots = [root()], list[Node](), beams
    n = beams * width
    while level:
        grown = {p: [c for c in world.children(Ask(p, n)) if c is not None] for p in level}
        best = sorted((c for children in grown.values() for c in children), key=lambda c: c.rank)[:slots]
        least = best[-1].score if len(best) == slots else -1.0
        done += [c for p, children in grown.items() if p.bound >= least for c in children if c.ended]
        slots -= sum(c.ended for c in best)
        level, n = [c for c in best if not c.ended], width
    return sorted(done, key=lambda node: node.rank)


@pytest.mark.parametrize(("beams", "width"), [(1, 4), (2, 2), (4, 3)])
def test_beams_that_do_not_wait_find_what_beams_by_the_book_find(beams: int, width: int) -> None:
    for number in range(60):
        for falls in (True, False):
            world = World(number, falls)
            core = Beam(root(), beams, width)
            play(core, world, random.Random(number))
            best = by_the_book(world, beams, width)[0]
            assert core.finished()[0].partial == best.partial


def test_a_forest_finds_the_best_of_its_trees() -> None:
    for number in range(60):
        world = World(number)
        forest = Forest([Beam(root(lane), 1, 3) for lane in range(5)])
        asked = play(forest, world, random.Random(number))
        trees = [Beam(root(lane), 1, 3) for lane in range(5)]
        alone = sum(len(play(tree, world)) for tree in trees)
        best = min((tree.finished()[0] for tree in trees), key=lambda node: node.rank)
        assert texts(forest)[0] == best.partial.text
        assert len(asked) <= alone


# -- known numbers -------------------------------------------------------------------------------------


def test_the_constant_of_puct() -> None:
    assert exploration(5, 1.25, 19652) == pytest.approx(1.2503, abs=5e-6 + 5e-5)
    assert puct(1.25, 19652, prior=False)(2, 5, 0.1) == pytest.approx(
        (1.25 + math.log(19658 / 19652)) * 5**0.5 / 3
    )
    assert puct(1.25, 19652, prior=True)(2, 5, 0.1) == pytest.approx(
        0.1 * (1.25 + math.log(19658 / 19652)) * 5**0.5 / 3
    )
    assert uct(2.0)(3, 9, 0.1) == pytest.approx(2 * math.sqrt(math.log(9) / 3))


def child(parent: Node, name: str, score: float, ended: bool = False) -> Node:
    partial = Partial(text=parent.partial.text + name, steps=parent.partial.steps + 1, ended=ended)
    return Node(partial, score, score, parent)


def simulations(virtual_loss: float, parallel: int, scores: dict[str, float]) -> list[str]:
    """What is expanded after the root, where its children have these scores and an answer follows each."""
    core = Simulations(
        root(),
        puct(0.1, 19652, prior=False),
        simulations=parallel,
        width=2,
        parallel=parallel,
        virtual_loss=virtual_loss,
    )
    assert core.ask() == Ask(core.root, 2)
    assert core.ask() is None  # all wait for the same expansion
    for name, score in scores.items():
        core.tell(core.root, child(core.root, name, score))
    core.told(core.root)
    expanded = []
    while (ask := core.ask()) is not None:
        expanded.append(ask.node.partial.text)
    return expanded


def test_virtual_loss_sends_simulations_elsewhere() -> None:
    assert simulations(1.0, 2, {"a": 0.6, "b": 0.5}) == ["a", "b"]
    assert simulations(0.0, 2, {"a": 0.6, "b": 0.5}) == ["a"]  # nothing tells the second of the first
    # As a visit of value 0: 0.9 / 2 + 0.1 sqrt(N) / 3 is still more than 0.3 + 0.1 sqrt(N) / 2.
    assert simulations(1.0, 2, {"a": 0.9, "b": 0.3}) == ["a"]
    # Ten lost visits are not.
    assert simulations(10.0, 2, {"a": 0.9, "b": 0.3}) == ["a", "b"]
    assert simulations(1.0, 3, {"a": 0.9, "b": 0.4}) == ["a", "b"]


def test_values_go_to_all_that_a_simulation_passed() -> None:
    """Two children: the likelier looks better and holds nothing; after some simulations the other is chosen."""
    core = Simulations(
        root(), puct(1.25, 19652, prior=False), simulations=6, width=2, parallel=1, virtual_loss=1
    )
    ways: list[str] = []
    while (ask := core.ask()) is not None:
        node = ask.node
        ways.append(node.partial.text)
        if node is core.root:
            core.tell(node, child(node, "a", 0.9))
            core.tell(node, child(node, "b", 0.8))
        else:
            core.tell(node, child(node, "x", 0.1 if node.partial.text[0] == "a" else 0.7, ended=True))
            core.tell(node, None)
        core.told(node)
    assert ways == ["", "a", "b"]
    assert [node.partial.text for node in core.finished()] == ["bx", "ax"]
    _, b = core.root.children
    assert core.choose(core.root, 6) is b


def test_a_certain_member_of_the_next_beam_is_expanded_at_once() -> None:
    core = Beam(root(), 2, 2)
    ask = core.ask()
    assert ask is not None
    assert ask.n == 4
    a, b, c = (child(core.root, name, score) for name, score in (("a", 0.9), ("b", 0.5), ("c", 0.4)))
    core.tell(core.root, a)
    core.tell(core.root, b)
    assert core.ask() is None  # two more may be better
    core.tell(core.root, c)
    assert core.ask() == Ask(a, 2)  # only one more
    assert core.ask() is None
    core.tell(core.root, child(core.root, "d", 0.7))
    assert core.ask() == (core.level[1], 2, False)
    assert [node.partial.text for node in core.level] == ["a", "d"]


def test_an_expansion_that_cannot_enter_the_beam_is_needless() -> None:
    core = Beam(root(), 2, 1)
    core.ask()
    a, b = child(core.root, "a", 0.9), child(core.root, "b", 0.3)
    core.tell(core.root, a)
    core.tell(core.root, b)
    assert core.ask() == Ask(a, 1)
    assert core.ask() == Ask(b, 1)
    core = Beam(root(), 1, 3)
    core.ask()
    core.tell(core.root, child(core.root, "a", 0.9))
    core.tell(core.root, child(core.root, "z", 0.8, ended=True))
    core.told(core.root)
    assert core.ask() == Ask(core.level[0], 3)
    below = child(core.level[0], "c", 0.8)
    core.tell(core.level[0], below)
    core.told(core.level[0])
    assert core.ask() is None  # it could at best equal the answer
    assert texts(core) == ["z"]
