"""The skill `words`: multi-step word problems, graded step by step."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from stratagem.bench.gym.base import (
    Document,
    Grade,
    Message,
    Probe,
    Problem,
    Split,
    answer_line,
    partition,
    seeded,
)
from stratagem.bench.gym.registry import register
from stratagem.bench.gym.words.corrupt import corrupt, wrong_steps
from stratagem.bench.gym.words.draft import Draft, Rejected
from stratagem.bench.gym.words.families import FAMILIES
from stratagem.core.prompts import ANSWER_ONLY, STEP_BY_STEP, STEP_QUESTION

_ANSWER = re.compile(r"The answer is (-?\d+)\.")
_EXPRESSION = re.compile(r"(\d+) ([+*]) (\d+) = ")


def _key(line: str) -> str:
    """The line with the operands of + and * in ascending order: either order is right."""

    def ordered(match: re.Match[str]) -> str:
        a, op, b = match.groups()
        low, high = sorted((a, b), key=lambda digits: (len(digits), digits))
        return f"{low} {op} {high} = "

    return _EXPRESSION.sub(ordered, line.strip(), count=1)


def _steps(weights: tuple[int, ...]) -> Mapping[int, int]:
    return {steps: weight for steps, weight in enumerate(weights) if weight}


@register
@dataclass(frozen=True)
class Words:
    """Word problems. `steps`: for each split, the weight of each number of steps; `distractors`: at most so
    many statements that do not matter."""

    name: str = "words"
    steps: Mapping[Split, Mapping[int, int]] = field(
        default_factory=lambda: {
            "train": _steps((0, 0, 15, 25, 30, 30)),
            "dev": _steps((0, 0, 3, 3, 2, 1)),
            "test": _steps((0, 0, 3, 3, 2, 1)),
            "hard": _steps((0, 0, 0, 0, 0, 0, 5, 3, 2)),
        }
    )
    distractors: int = 2

    def problem(self, split: Split, index: int) -> Problem:
        """The `index`-th problem of the split."""
        return self._draw(seeded(self.name, split, index), split, f"{self.name}/{split}/{index}")

    def _draw(self, rng: random.Random, split: Split, name: str) -> Problem:
        weights = self.steps[split]
        families = {key: share for key, (_, share) in FAMILIES.items()}
        steps = rng.choices(list(weights), list(weights.values()))[0]
        family = rng.choices(list(families), list(families.values()))[0]
        distractors = rng.randint(0, self.distractors)
        while True:
            draft = Draft(rng)
            try:
                target, ask = FAMILIES[family][0](draft, steps, distractors)
                problem = draft.finish(target, ask, split=split, name=name, family=family)
            except Rejected:
                continue
            if len(problem.steps) == steps and partition(problem.question) == split:
                return problem

    def grade(self, problem: Problem, text: str) -> Grade:
        """A step is right if it is one of the problem's true steps and all it needs stands above it, right."""
        known = [(_key(step.text), step.needs) for step in (*problem.steps, *problem.extras)]
        done: set[int] = set()
        lines = tuple(line.strip() for line in text.splitlines() if line.strip())
        right: list[bool] = []
        answer: str | None = None
        for line in lines:
            found = _ANSWER.fullmatch(line)
            if found:
                answer = found.group(1)
                right.append(answer == problem.answer and done.issuperset(problem.needs))
                continue
            key = _key(line)
            matches = [i for i, (text, needs) in enumerate(known) if text == key and done.issuperset(needs)]
            right.append(bool(matches))
            done.update(next(([i] for i in matches if i not in done), matches))
        return Grade(answer == problem.answer, answer, lines, tuple(right))

    def documents(self, rng: random.Random) -> Iterator[Document]:
        """Solved problems (loss on the solution), and broken solutions with a step judge on each line."""
        while True:
            problem = self._draw(rng, "train", "")
            kind = rng.random()
            if kind < 0.03:
                yield _document(f"{problem.question}\n{ANSWER_ONLY}", answer_line(problem.answer), loss=True)
                continue
            question = problem.question if rng.random() < 0.55 else f"{problem.question}\n{STEP_BY_STEP}"
            if kind < 0.08:
                text = corrupt(problem, rng)
                yield _document(
                    question, text, loss=False, probes=step_probes(self.grade(problem, text), text)
                )
            else:
                probes = self._contrasts(problem, rng) if kind < 0.8 else ()
                yield _document(question, problem.solution, loss=True, probes=probes)

    def _contrasts(self, problem: Problem, rng: random.Random) -> tuple[Probe, ...]:
        """At each line two probes: on the right line, and on a wrong one in its place.

        As many "yes" as "no" at each place: the judge cannot do with how often a line of its kind is right.
        """
        text = problem.solution
        probes: list[Probe] = []
        start = 0
        for right, wrong in zip(
            step_probes(self.grade(problem, text), text), wrong_steps(problem, rng), strict=True
        ):
            head = text[:start]
            if not self.grade(problem, head + wrong).right[-1]:
                probes += [right, Probe(start, STEP_QUESTION, 0.0, wrong)]
            start = right.at + 1
        return tuple(probes)


def _document(question: str, text: str, *, loss: bool, probes: tuple[Probe, ...] = ()) -> Document:
    return Document((Message("user", question), Message("assistant", text, loss=loss)), probes)


def step_probes(grade: Grade, text: str) -> tuple[Probe, ...]:
    """A step-judge probe at the end of each line up to the first wrong one: no step after it can be used."""
    probes: list[Probe] = []
    start = 0
    for line, right in zip(grade.lines, grade.right, strict=True):
        start = text.index(line, start) + len(line)
        probes.append(Probe(start, STEP_QUESTION, float(right)))
    return tuple(probes)
