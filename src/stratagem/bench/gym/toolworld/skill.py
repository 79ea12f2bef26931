"""The skill `toolworld`: questions about a world that only its tools know."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stratagem.bench.gym.base import (
    Document,
    Grade,
    Message,
    Problem,
    Split,
    Step,
    answer_line,
    partition,
    seeded,
)
from stratagem.bench.gym.registry import register
from stratagem.bench.gym.toolworld.families import COMMUTATIVE, FAMILIES, IDS, Draft, Drafted, Ref, plain
from stratagem.bench.gym.toolworld.world import KINDS, World
from stratagem.core.prompts import DIVIDE, ONE_CALL, REACT

_ANSWER = re.compile(r"The answer is (.+)\.")
_CALL = re.compile(r"(\w+) = (\w+)\((.*)\)")
_PART = re.compile(r'"[^"]*"|-?\d+|\w+')
_FAULTS = (
    "it took longer than 30 s.",
    "no connection.",
    "it is busy.",
    "{name}: TimeoutError: no reply",
    "{name}: ConnectionError: server closed",
)
_MOST_DISTRACTORS = 3
_FAULTY = 0.12
"""Share of the training talks in which one call fails once."""


@register
@dataclass(frozen=True)
class ToolWorld:
    """Questions that two to ten calls of tools answer, in one plan or, where a choice depends on what a first one
    gave, in two. The plan notation is that of :mod:`stratagem.tools.notation`."""

    name: str = "toolworld"

    def problem(self, split: Split, index: int) -> Problem:
        """The `index`-th problem of the split. `hard` has the questions with the most calls."""
        return self._draw(seeded(self.name, split, index), split, f"{self.name}/{split}/{index}")[0]

    def world(self, problem: Problem) -> World:
        """The world that a problem is about."""
        names = problem.meta["tools"]
        assert isinstance(names, dict)
        return World(int(str(problem.meta["seed"])), names)

    def functions(self, problem: Problem, latency: float = 0.0) -> list[Callable[..., Any]]:
        """The problem's tools as typed async functions that take `latency` seconds; all only read."""
        return self.world(problem).functions(latency)

    def _draw(self, rng: random.Random, split: Split, name: str) -> tuple[Problem, Draft]:
        shares = {key: share for key, (_, share) in FAMILIES.items()}
        family = rng.choices(list(shares), list(shares.values()))[0]
        while True:
            world = World(
                rng.randrange(2**31), {kind: rng.choice(each.names) for kind, each in KINDS.items()}
            )
            draft = Draft(rng, world)
            target, question = FAMILIES[family][0](draft)
            if partition(question) == split and (
                split != "hard" or len(draft.calls) >= 5 or family == "choice"
            ):
                break
            if split == "hard":
                family = rng.choices(list(shares), list(shares.values()))[0]
        used = {call.kind for call in draft.calls}
        others = [kind for kind in KINDS if kind not in used]
        kinds = [*used, *rng.sample(others, rng.randint(1, _MOST_DISTRACTORS))]
        kinds.sort()
        rng.shuffle(kinds)
        draft.world = World(world.seed, {kind: world.names[kind] for kind in kinds})
        steps = tuple(
            Step(line(draft.world, IDS[i], call), tuple(a.call for a in call.arguments if isinstance(a, Ref)))
            for i, call in enumerate(draft.calls)
        )
        meta = {
            "family": family,
            "seed": world.seed,
            "tools": dict(draft.world.names),
            "rounds": [call.round for call in draft.calls],
        }
        return Problem(name, question, str(target.value), steps, split, (target.call,), meta=meta), draft

    def grade(self, problem: Problem, text: str) -> Grade:
        """A call is right if it is one of the gold plan, whatever it is named and in whatever order; the answer
        line is right if the calls that it rests on stand above it."""
        gold = [_meaning(step.text, {}) for step in problem.steps]
        known: dict[str, str] = {}
        for step, meaning in zip(problem.steps, gold, strict=True):
            known[step.text.partition(" ")[0]] = _meaning(step.text, known) or meaning or ""
        wanted = set(known.values())
        needed = {known[problem.steps[i].text.partition(" ")[0]] for i in problem.needs}
        found: dict[str, str] = {}
        lines = tuple(each.strip() for each in text.splitlines() if each.strip())
        right: list[bool] = []
        answer: str | None = None
        for each in lines:
            stated = _ANSWER.fullmatch(each)
            if stated:
                answer = stated.group(1)
                right.append(answer == problem.answer and needed <= set(found.values()))
                continue
            meaning = _meaning(each, found)
            right.append(meaning in wanted)
            if meaning in wanted and meaning is not None:
                found[each.partition(" ")[0]] = meaning
        return Grade(answer == problem.answer, answer, lines, tuple(right))

    def documents(self, rng: random.Random) -> Iterator[Document]:
        """Solved talks: whole plans, one call at a time, and thoughts with one call at a time."""
        while True:
            problem, draft = self._draw(rng, "train", "")
            kind = rng.random()
            if kind < 0.55:
                yield _talk(problem, draft, DIVIDE, _rounds(draft), _plan_turn)
            elif kind < 0.85:
                yield _talk(problem, draft, REACT, [[i] for i in range(len(draft.calls))], _react_turn)
            else:
                yield _talk(problem, draft, ONE_CALL, [[i] for i in range(len(draft.calls))], _plan_turn)


def line(world: World, name: str, call: Drafted) -> str:
    """A call of a plan in the plan notation."""
    return f"{name} = {action(world, call, lambda a: IDS[a.call] if isinstance(a, Ref) else json.dumps(a))}"


def action(world: World, call: Drafted, written: Callable[[Any], str]) -> str:
    """A call without a name, its arguments as `written` gives them."""
    return f"{world.names[call.kind]}({', '.join(map(written, call.arguments))})"


def _meaning(text: str, known: dict[str, str]) -> str | None:
    """A call with those that it takes written out in it; None for what is no call or takes an unknown one."""
    match = _CALL.fullmatch(text)
    if match is None:
        return None
    parts: list[str] = []
    for part in _PART.findall(match[3]):
        if part[0] == '"' or part.lstrip("-").isdigit():
            parts.append(part)
        elif part in known:
            parts.append(known[part])
        else:
            return None
    kind = next((k for k, each in KINDS.items() if match[2] in each.names), None)
    return f"{match[2]}({', '.join(sorted(parts) if kind in COMMUTATIVE else parts)})"


def _rounds(draft: Draft) -> list[list[int]]:
    last = max(call.round for call in draft.calls)
    return [[i for i, call in enumerate(draft.calls) if call.round == r] for r in range(last + 1)]


Turn = Callable[[Draft, Sequence[int], dict[int, str]], tuple[str, str]]
"""(draft, calls, failures) -> (what the model writes, what it gets)."""


def _plan_turn(draft: Draft, calls: Sequence[int], failures: dict[int, str]) -> tuple[str, str]:
    lost = set(failures)
    told: list[str] = []
    for i in calls:
        needs = {a.call for a in draft.calls[i].arguments if isinstance(a, Ref)}
        if i in failures:
            told.append(f"{IDS[i]} failed: {failures[i]}")
        elif needs & lost:
            lost.add(i)
            told.append(f"{IDS[i]} skipped")
        else:
            told.append(f"{IDS[i]} = {json.dumps(draft.calls[i].result.value)}")
    return "\n".join(line(draft.world, IDS[i], draft.calls[i]) for i in calls), "\n".join(told)


def _react_turn(draft: Draft, calls: Sequence[int], failures: dict[int, str]) -> tuple[str, str]:
    [i] = calls
    call = draft.calls[i]
    said = f"Thought: {call.thought}\nAction: {action(draft.world, call, lambda a: json.dumps(plain(a)))}"
    if i in failures:
        return said, f"Observation: failed: {failures[i]}"
    return said, f"Observation: {json.dumps(call.result.value)}"


def _talk(problem: Problem, draft: Draft, system: str, rounds: list[list[int]], turn: Turn) -> Document:
    rng = draft.rng
    messages = [
        Message("system", "\n".join([system, *draft.world.signatures()])),
        Message("user", problem.question),
    ]
    failing = rng.randrange(len(draft.calls)) if rng.random() < _FAULTY else None
    for calls in rounds:
        left: Sequence[int] = calls
        while left:
            failures: dict[int, str] = {}
            if failing in left:
                assert failing is not None
                name = draft.world.names[draft.calls[failing].kind]
                failures[failing] = rng.choice(_FAULTS).format(name=name)
                failing = None
            said, got = turn(draft, left, failures)
            messages += [Message("assistant", said, loss=True), Message("user", got)]
            missing = set(failures)
            for i in left:
                if any(isinstance(a, Ref) and a.call in missing for a in draft.calls[i].arguments):
                    missing.add(i)
            left = sorted(missing)
    return Document((*messages, Message("assistant", answer_line(problem.answer), loss=True)))
