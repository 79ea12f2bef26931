"""Breaking a worked solution in the ways a weak solver does."""

from __future__ import annotations

import random
import re

from stratagem.bench.gym.base import Problem, answer_line
from stratagem.bench.gym.words.lexicon import NAMES

_WORD = re.compile(r"\w+")
_EXPRESSION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


def corrupt(problem: Problem, rng: random.Random) -> str:
    """A solution with one error; the steps after a wrong value go on from that value.

    Kinds: wrong arithmetic, a wrong operand, a wrong operator, a step left out, an answer given too early.
    """
    lines = [step.text for step in problem.steps]
    kind = rng.choice(("arithmetic", "operand", "operator", "skip", "early"))
    if kind in ("skip", "early") and len(lines) > 1:
        if kind == "early":
            lines = lines[: rng.randint(1, len(lines) - 1)]
        else:
            del lines[rng.randrange(len(lines) - 1)]
        return "\n".join([*lines, answer_line(_value(lines[-1]))])
    at = rng.randrange(len(lines))
    old = _value(lines[at])
    new = _broken(lines[at], problem.question, kind, rng)
    if new is None or _value(new) == old:
        new = _broken(lines[at], problem.question, "arithmetic", rng)
        assert new is not None
    value = _value(new)
    lines[at] = new
    for later in range(at + 1, len(lines)):
        if at in problem.steps[later].needs:
            lines[later] = _carried(lines[later], old, value)
    answer = problem.answer if lines[-1] == problem.steps[-1].text else _value(lines[-1])
    return "\n".join([*lines, answer_line(answer)])


def wrong_steps(problem: Problem, rng: random.Random) -> list[str]:
    """For each line of the solution a wrong one that a weak solver might write in its place.

    The lines before it are right, so that only checking the line itself tells it from the right one.
    """
    lines = [*(step.text for step in problem.steps), answer_line(problem.answer)]
    people = [name for name in NAMES if name in set(_WORD.findall(problem.question))]
    wrong: list[str] = []
    for index, line in enumerate(lines[:-1]):
        new: str | None = None
        while new is None or new == line:
            new = _replacement(lines, index, problem, people, rng)
        wrong.append(new)
    others = {_value(line) for line in lines[:-1]} - {problem.answer}
    number = rng.choice([*sorted(others), str(int(problem.answer) + rng.randint(1, 9))])
    return [*wrong, answer_line(number)]


def _replacement(
    lines: list[str], index: int, problem: Problem, people: list[str], rng: random.Random
) -> str | None:
    line = lines[index]
    kind = rng.choices(("arithmetic", "operand", "operator", "subject", "skip", "early"), (1, 2, 1, 2, 1, 1))[
        0
    ]
    if kind == "skip":
        return lines[index + 1] if index + 2 < len(lines) else None
    if kind == "early":
        return answer_line(_value(lines[index - 1]) if index and rng.random() < 0.7 else problem.answer)
    if kind == "subject":
        named = next((word for word in _WORD.findall(line) if word in people), None)
        others = [name for name in people if name != named]
        return line.replace(named, rng.choice(others), 1) if named and others else None
    if kind == "operand" and index and rng.random() < 0.5:
        a, op, b, _ = _parts(line)
        other = _value(rng.choice(lines[:index]))
        a, b = (other, b) if rng.random() < 0.5 else (a, other)
        result = _calculate(a, op, b)
        return None if result is None else _write(line, a, op, b, result)
    return _broken(line, problem.question, kind, rng)


def _parts(line: str) -> tuple[str, str, str, str]:
    match = _EXPRESSION.search(line)
    assert match is not None
    a, op, b, value = match.groups()
    return a, op, b, value


def _value(line: str) -> str:
    return _parts(line)[3]


def _calculate(a: str, op: str, b: str) -> str | None:
    x, y = int(a), int(b)
    if op == "/":
        return str(x // y) if y and x % y == 0 and x else None
    value = {"+": x + y, "-": x - y, "*": x * y}[op]
    return str(value) if value > 0 else None


def _write(line: str, a: str, op: str, b: str, value: str) -> str:
    return _EXPRESSION.sub(f"{a} {op} {b} = {value}", line, count=1)


def _broken(line: str, question: str, kind: str, rng: random.Random) -> str | None:
    a, op, b, value = _parts(line)
    if kind == "operand":
        other = rng.choice(re.findall(r"\d+", question))
        a, b = (other, b) if rng.random() < 0.5 else (a, other)
        result = _calculate(a, op, b)
        return None if result is None else _write(line, a, op, b, result)
    if kind == "operator":
        op = rng.choice([other for other in "+-*/" if other != op])
        result = _calculate(a, op, b)
        return None if result is None or len(result) > 3 else _write(line, a, op, b, result)
    shift = rng.choice((1, -1, 2, -2, 10, -10, 100, -100, rng.randint(3, 9)))
    wrong = int(value) + shift
    return _write(line, a, op, b, str(wrong if wrong > 0 else int(value) + abs(shift)))


def _carried(line: str, old: str, new: str) -> str:
    a, op, b, value = _parts(line)
    if a == old:
        a = new
    elif b == old:
        b = new
    return _write(line, a, op, b, _calculate(a, op, b) or value)
