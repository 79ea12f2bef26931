"""Problems with known answers: from the gym, or from files of one JSON object a line.

A spec names where they come from: ``gym:SKILL`` or ``gym:SKILL/SPLIT`` (generated, split ``test`` by default),
``gsm8k:FILE`` (Cobbe et al. 2021), ``svamp:FILE`` (Patel et al. 2021), ``jsonl:FILE`` (keys ``question`` and
``answer``, and ``id`` where there is one).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from stratagem.core.errors import ConfigurationError, DataError
from stratagem.core.task import Task

GYM_LIMIT = 300  # problems of a skill, which has them without end, where no limit is given


@dataclass(frozen=True, slots=True)
class Problem:
    """A task and its gold answer, which no strategy sees."""

    id: str
    task: Task
    gold: str
    functions: tuple[Callable[..., Any], ...] = field(default=(), compare=False)  # tools, read-only ones


@dataclass(frozen=True, slots=True)
class Dataset(Sequence[Problem]):
    """Problems, with where they come from and what was left out there."""

    spec: str  # without folders, so that results do not depend on where a file lies
    problems: tuple[Problem, ...]
    skipped: tuple[str, ...] = ()  # one sentence per broken line

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Problem, ...]: ...
    def __getitem__(self, index: int | slice) -> Problem | tuple[Problem, ...]:
        return self.problems[index]

    def __len__(self) -> int:
        return len(self.problems)


def load(
    spec: str, *, limit: int | None = None, split: str | None = None, skip_broken: bool = False
) -> Dataset:
    """The first ``limit`` problems of ``spec``.

    Args:
        limit: all of a file by default, ``GYM_LIMIT`` of a gym skill.
        split: of a gym skill, where the spec names none: test, hard, dev or train.
        skip_broken: leave out broken lines and tell of them in ``Dataset.skipped``.

    Raises:
        DataError: the file is missing, or has broken lines (the first is shown), or no usable line.
        ConfigurationError: an unknown spec, skill or split, or a limit below 1.
    """
    source, _, rest = spec.partition(":")
    if source not in ("gym", *_READERS) or not rest:
        known = ", ".join(["gym:SKILL", "gym:SKILL/SPLIT", *(f"{name}:FILE" for name in _READERS)])
        raise ConfigurationError(f"Unknown data {spec!r}.", remedy=f"Known are: {known}.")
    if limit is not None and limit < 1:
        raise ConfigurationError(f"limit = {limit}: take at least one problem.")
    if source == "gym":
        return _gym(rest, limit, split)
    if split is not None:
        raise ConfigurationError(f"{spec!r} is a file and has no splits.", remedy="Leave split out.")
    return _file(source, Path(rest), limit, skip_broken)


def _gym(rest: str, limit: int | None, split: str | None) -> Dataset:
    from stratagem.bench.gym import SPLITS, Split, skills

    name, slash, named = rest.partition("/")
    if slash and split is not None and split != named:
        raise ConfigurationError(f"gym:{rest} and split {split!r} differ.", remedy="Give one of them.")
    known = skills()
    if name not in known:
        raise ConfigurationError(f"No gym skill {name!r}.", remedy=f"Known are: {', '.join(known)}.")
    wanted = named if slash else split or "test"
    splits: dict[str, Split] = {s: s for s in SPLITS}
    chosen = splits.get(wanted)
    if chosen is None:
        raise ConfigurationError(
            f"gym:{name} has no split {wanted!r}.", remedy=f"It has: {', '.join(SPLITS)}."
        )
    problems = (known[name].problem(chosen, index) for index in range(limit or GYM_LIMIT))
    tools = getattr(known[name], "functions", None)  # of skills that are about tools

    def functions(problem: Any) -> tuple[Callable[..., Any], ...]:
        return tuple(tools(problem)) if tools is not None else ()

    return Dataset(
        f"gym:{name}/{chosen}",
        tuple(Problem(p.id, Task.of(p.question, id=p.id), p.answer, functions(p)) for p in problems),
    )


def _file(source: str, path: Path, limit: int | None, skip_broken: bool) -> Dataset:
    reader, stem = _READERS[source], source if source != "jsonl" else path.stem
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from None
    problems: list[Problem] = []
    broken: list[tuple[int, str]] = []
    seen: dict[str, int] = {}
    for number, line in _lines(data):
        if len(problems) == limit:
            break
        try:
            problem = _problem(reader, line, f"{stem}/{number}")
            if problem.id in seen:
                raise _Broken(f"id {problem.id!r} is that of line {seen[problem.id]} too")
        except _Broken as error:
            broken.append((number, str(error)))
            continue
        seen[problem.id] = number
        problems.append(problem)
    if broken and not (skip_broken and problems):
        raise _explain(path, broken, usable=len(problems))
    if not problems:
        raise DataError(f"{path} holds no problem.", remedy=f"{source} files have one JSON object a line.")
    skipped = tuple(f"{path.name}:{number}: {why}" for number, why in broken)
    return Dataset(f"{source}:{path.name}", tuple(problems), skipped)


def _explain(path: Path, broken: list[tuple[int, str]], *, usable: int) -> DataError:
    (number, why), *others = broken
    more = ""
    if others:
        numbers = ", ".join(str(n) for n, _ in others[:8]) + (", ..." if len(others) > 8 else "")
        more = f" (and {len(others)} more broken line{'s' * (len(others) > 1)}: {numbers})"
    remedy = "Correct it, or leave broken lines out with --skip-broken (skip_broken=True)."
    return DataError(f"{path}:{number}: {why}{more}.", remedy=remedy if usable else "No line is usable.")


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Non-blank lines with their numbers, from 1; of a file that is a JSON array, as SVAMP is, its elements."""
    if data.lstrip().startswith(b"["):
        try:
            rows = json.loads(data)
        except (RecursionError, ValueError):  # lines, of which the first may be broken
            rows = None
        if isinstance(rows, list) and len(rows) > 1:
            yield from ((number, json.dumps(row).encode()) for number, row in enumerate(rows, start=1))
            return
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            yield number, line


class _Broken(ValueError):
    """What is wrong with a line."""


def _problem(reader: Callable[[_Row], tuple[str, str, str]], line: bytes, name: str) -> Problem:
    try:
        fields = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise _Broken(f"not UTF-8 text (byte {error.start + 1} of the line)") from None
    except json.JSONDecodeError as error:
        raise _Broken(f"not JSON: {error.msg} at column {error.colno}") from None
    except (RecursionError, ValueError) as error:  # nested too deep; an integer of thousands of digits
        raise _Broken(f"not JSON that can be read: {error}") from None
    if not isinstance(fields, dict):
        raise _Broken(f"a JSON object is expected, not {type(fields).__name__}")
    question, gold, name = reader(_Row(fields, name))
    try:
        f"{question}{gold}{name}".encode()
    except UnicodeEncodeError:
        raise _Broken("it holds half a character (a lone surrogate)") from None
    return Problem(name, Task.of(question, id=name), gold)


@dataclass(frozen=True, slots=True)
class _Row:
    fields: dict[str, Any]
    name: str

    def text(self, key: str) -> str:
        value = self._get(key)
        if not isinstance(value, str) or not value.strip():
            raise _Broken(f"{key!r} is not a text with something in it")
        return value.strip()

    def answer(self, key: str) -> str:
        value = self._get(key)
        if isinstance(value, str) and value.strip():
            return value.strip()
        if isinstance(value, bool) or not isinstance(value, int | float) or value - value != 0:
            raise _Broken(f"{key!r} is neither a text nor a finite number")
        return str(int(value)) if value == int(value) else str(value)

    def id(self, key: str) -> str:
        value = self.fields.get(key, self.name)
        if not isinstance(value, str | int) or value == "":
            raise _Broken(f"{key!r} is neither a text nor a whole number")
        return str(value)

    def _get(self, key: str) -> Any:
        if key not in self.fields:
            raise _Broken(f"no key {key!r}; there are {', '.join(map(repr, self.fields)) or 'none'}")
        return self.fields[key]


def _gsm8k(row: _Row) -> tuple[str, str, str]:
    _, mark, gold = row.text("answer").rpartition("####")
    if not mark or not gold.strip():
        raise _Broken("'answer' ends with no '#### NUMBER'")
    return row.text("question"), gold.strip().replace(",", ""), row.name


def _svamp(row: _Row) -> tuple[str, str, str]:
    body = row.text("Body")
    stop = "" if body.endswith((".", "!", "?", ",", ";", ":")) else "."
    return f"{body}{stop} {row.text('Question')}", row.answer("Answer"), row.id("ID")


def _jsonl(row: _Row) -> tuple[str, str, str]:
    return row.text("question"), row.answer("answer"), row.id("id")


_READERS = {"gsm8k": _gsm8k, "svamp": _svamp, "jsonl": _jsonl}
