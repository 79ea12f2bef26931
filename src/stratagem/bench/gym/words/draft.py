"""A word problem while it is being written: statements, and the steps that solve it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from stratagem.bench.gym.base import Problem, Split, Step

LIMIT = 999


class Rejected(Exception):
    """The numbers drawn do not give a problem of the kind wanted; draw again."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number, and the index of the step that gives it (None: the problem states it)."""

    value: int
    step: int | None = None


class Draft:
    """Collects statements and steps; `finish` keeps the steps that the answer needs."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.statements: list[str] = []
        self.steps: list[tuple[str, tuple[int, ...], int]] = []

    def say(self, *sentences: str) -> None:
        """Add to what the problem states."""
        self.statements.extend(sentences)

    def step(self, frame: str, a: Quantity | int, op: str, b: Quantity | int) -> Quantity:
        """Add a step whose text is `frame` with `{}` replaced by `a op b = value`.

        Raises Rejected if the value is not an integer of 1..999, or the step is one no person would take.
        """
        left = a if isinstance(a, Quantity) else Quantity(a)
        right = b if isinstance(b, Quantity) else Quantity(b)
        x, y = left.value, right.value
        if op == "/" and (y == 0 or x % y):
            raise Rejected
        value = {"+": x + y, "-": x - y, "*": x * y, "/": x // max(y, 1)}[op]
        if not 1 <= value <= LIMIT:
            raise Rejected
        needs = tuple(sorted({q.step for q in (left, right) if q.step is not None}))
        self.steps.append((frame.format(f"{x} {op} {y} = {value}"), needs, value))
        return Quantity(value, len(self.steps) - 1)

    def finish(self, target: Quantity, ask: str, *, split: Split, name: str, family: str) -> Problem:
        """The problem that asks for `target`; steps in the order of a depth-first walk from it."""
        if target.step is None:
            raise Rejected
        order: list[int] = []

        def visit(index: int) -> None:
            if index not in order:
                for need in self.steps[index][1]:
                    visit(need)
                order.append(index)

        visit(target.step)
        rest = [index for index in range(len(self.steps)) if index not in order]
        new = {old: position for position, old in enumerate([*order, *rest])}
        steps = [
            Step(self.steps[old][0], tuple(sorted(new[need] for need in self.steps[old][1])))
            for old in [*order, *rest]
        ]
        return Problem(
            id=name,
            question=" ".join([*self.statements, ask]),
            answer=str(target.value),
            steps=tuple(steps[: len(order)]),
            split=split,
            needs=(new[target.step],),
            extras=tuple(steps[len(order) :]),
            meta={"family": family, "steps": len(order)},
        )
