"""Running strategies over problems: concurrent, durable, resumable."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stratagem import __version__
from stratagem.bench.data import Dataset, Problem
from stratagem.bench.results import Cell, Results, Sample, Served
from stratagem.bench.store import Store, read_served
from stratagem.core.asking import POLICY
from stratagem.core.backend import Backend
from stratagem.core.budget import Budget, Ledger
from stratagem.core.calling import Toolbox
from stratagem.core.concurrency import task_group
from stratagem.core.counts import Counts, counts_of
from stratagem.core.errors import (
    BudgetExhausted,
    ConfigurationError,
    StratagemError,
    UnavailableError,
    VerifierError,
    boundary,
)
from stratagem.core.execute import execute
from stratagem.core.protocols import Strategy, Verifier
from stratagem.core.run import Run
from stratagem.core.seeds import derive
from stratagem.core.task import Answer

_FORMAT = 1  # of the folder; other formats are not mixed
_GIVE_UP = 20  # cells in a row that found no server: it is gone, and what is left need not be tried


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a bench is. ``cell`` is the one just finished, ``None`` at the start."""

    done: int  # finished well, in earlier runs too
    failed: int  # ended with an error in this run
    total: int
    cell: Cell | None = None


async def run_bench(
    problems: Sequence[Problem],
    strategies: Mapping[str, Strategy],
    models: Mapping[str, Backend],
    *,
    out: Path | str,
    seeds: Sequence[int] = (0,),
    budget: Budget | None = None,
    concurrency: int = 32,
    grader: Verifier | None = None,
    listener: Callable[[Progress], None] | None = None,
    journal: Callable[[str, Mapping[str, Backend]], Mapping[str, Backend]] | None = None,
    toolbox: Callable[[Sequence[Callable[..., Any]]], Toolbox] | None = None,
) -> Results:
    """Run every strategy on every problem with every seed, and keep each result in the folder ``out``.

    Started again with the same settings it goes on: finished cells are not run again, failed ones are. More
    problems, strategies and seeds may be added; other settings are refused. When cancelled it stops the
    engine, and what is finished stays (``Results.read(out)``). Where servers count what they do
    (:class:`stratagem.core.counts.Counting`), their figures before and after the sitting go into the results.

    A run is seeded from seed and problem, not from the strategy: strategies that put the same prompt draw the
    same samples, which makes paired differences between them more precise.

    Args:
        strategies: by the name that results go under.
        models: backends by role, one of them ``policy``.
        budget: of each run, not of the bench.
        concurrency: runs at the same time; each may have many model calls under way.
        grader: compares answers with gold ones by its ``equivalent`` (default: the ``math`` verifier).
        listener: told at the start and after each run.
        journal: wraps the models for a run, given its id, so that a run that was killed pays for no
            finished call twice.
        toolbox: makes the tools of a run from the functions of a problem that has some.

    Raises:
        ConfigurationError: settings that cannot be used, or not in this folder.
        BudgetExhausted: no run of some strategy could pay for one call; what others have done is kept.
        UnavailableError: there is no server, or it went away.
        StoreError: the folder cannot be written, is damaged, or is in use.
    """
    _check(problems, strategies, models, seeds, concurrency)
    grader = grader or Verifier.load("math")
    backends = list({id(b): b for b in models.values()}.values())
    for backend in backends:
        await backend.capabilities()  # whatever is wrong with a model is said before the first run
    manifest = {
        "format": _FORMAT,
        "version": __version__,
        "data": problems.spec if isinstance(problems, Dataset) else None,
        "models": {role: backend.name for role, backend in models.items()},
        "budget": (budget or Budget()).model_dump(mode="json", exclude_none=True),
        "grader": grader.dump(),
        "strategies": {name: strategy.dump() for name, strategy in strategies.items()},
        "seeds": list(seeds),
    }
    asked = [(p, name, seed) for p in problems for seed in seeds for name in strategies]
    store = Store.open(Path(out), manifest, problems)
    try:
        waiting = [
            (problem, name, seed)
            for problem, name, seed in asked
            if (cell := store.cells.get((problem.id, name, seed))) is None or cell.error
        ]
        count = _Count(len(asked) - len(waiting), len(asked), listener or _ignore)
        cells = iter(waiting)
        refused: dict[str, list[tuple[Cell, StratagemError]]] = {name: [] for name in strategies}

        async def work() -> None:
            for problem, name, seed in cells:  # shared: whoever is free takes the next
                run_id = f"{problem.id}/{name}/{seed}"
                given = journal(run_id, models) if journal is not None else models
                # Another for each problem, so that runs differ in what they draw by chance.
                own = derive(seed, problem.id)
                tools = toolbox(problem.functions) if toolbox is not None and problem.functions else None
                run = Run(given, ledger=Ledger(budget), seed=own, run_id=run_id, tools=tools)
                cell, error = await _cell(problem, name, strategies[name], seed, run, grader)
                if isinstance(error, BudgetExhausted) and not cell.usage.calls:
                    refused[name].append((cell, error))
                else:
                    await store.append(cell)
                count.add(cell, error)

        before = await counts_of(backends)
        async with task_group() as group:
            for _ in range(min(concurrency, len(waiting))):
                group.create_task(work())
        if waiting:
            await store.keep(_served(before, await counts_of(backends)))
        for name, runs in refused.items():
            if len(runs) == len(problems) * len(seeds):  # not an outcome: such a budget measures nothing
                raise BudgetExhausted(f"No run of {name!r} could pay for a call: {runs[0][1].message}")
            for cell, _ in runs:
                await store.append(cell)
    finally:
        store.close()
    keys = [(problem.id, name, seed) for problem, name, seed in asked]
    return Results(
        manifest,
        tuple(problems),
        tuple(strategies),
        tuple(seeds),
        {key: store.cells[key] for key in keys},
        problems.skipped if isinstance(problems, Dataset) else (),
        read_served(store.folder),
    )


def _served(before: Mapping[str, Counts], after: Mapping[str, Counts]) -> list[Served]:
    """Of the servers that told both times."""
    return [
        Served(where, before[where].figures(), now.figures(), now.since(before[where]).figures())
        for where, now in after.items()
        if where in before
    ]


class _Count:
    """Progress, and when to give up."""

    def __init__(self, done: int, total: int, listener: Callable[[Progress], None]) -> None:
        self._done, self._failed, self._total = done, 0, total
        self._unavailable = 0
        self._listener = listener
        listener(Progress(done, 0, total))

    def add(self, cell: Cell, error: StratagemError | None) -> None:
        self._done += not cell.error
        self._failed += bool(cell.error)
        self._listener(Progress(self._done, self._failed, self._total, cell))
        self._unavailable = self._unavailable + 1 if isinstance(error, UnavailableError) else 0
        if error is not None and self._unavailable >= _GIVE_UP:
            raise error


def _ignore(progress: Progress) -> None:
    pass


async def _cell(
    problem: Problem, name: str, strategy: Strategy, seed: int, run: Run, grader: Verifier
) -> tuple[Cell, StratagemError | None]:
    """The result of one run, and what ended it early; what is wrong with the settings themselves is raised."""
    started = time.monotonic()
    head = (problem.id, name, seed, run.seed)
    try:
        answer = await execute(strategy, problem.task, run)
        correct = await asyncio.to_thread(_grade, grader, problem.gold, answer)
    except ConfigurationError:
        raise
    except BudgetExhausted as error:  # nothing proposed in time is an outcome, and would be the same again
        stopped = "deadline" if run.ledger.seconds_left <= 0 else "budget"
        seconds = time.monotonic() - started
        return Cell(*head, stopped=stopped, usage=run.ledger.spent, seconds=seconds), error
    except StratagemError as error:
        text = f"{type(error).__name__}: {error}"
        return Cell(*head, error=text, usage=run.ledger.spent, seconds=time.monotonic() - started), error
    return (
        Cell(
            *head,
            value=answer.value,
            correct=correct(answer.value),
            text=answer.text,
            confidence=answer.confidence,
            stopped=answer.stopped,
            usage=answer.usage,
            seconds=answer.seconds,
            samples=tuple(
                Sample(c.answer, correct(c.answer), c.token_count, c.scores) for c in answer.candidates
            ),
        ),
        None,
    )


def _grade(grader: Verifier, gold: str, answer: Answer) -> Callable[[str | None], bool]:
    """Whether an answer is right, for all that occur, each compared once. For a thread."""
    values = {answer.value, *(candidate.answer for candidate in answer.candidates)}
    with boundary(VerifierError, f"Verifier {grader.kind!r}"):
        right = {value for value in values if value is not None and grader.equivalent(value, gold)}
    return right.__contains__


def _check(
    problems: Sequence[Problem],
    strategies: Mapping[str, Strategy],
    models: Mapping[str, Backend],
    seeds: Sequence[int],
    concurrency: int,
) -> None:
    if concurrency < 1:
        raise ConfigurationError(f"concurrency = {concurrency}: at least one run at a time is needed.")
    if POLICY not in models:
        raise ConfigurationError(f"models has no {POLICY!r}, only {', '.join(models) or 'nothing'}.")
    for what, items in (
        ("problem", [problem.id for problem in problems]),
        ("strategy", list(strategies)),
        ("seed", list(map(str, seeds))),
    ):
        if not items:
            raise ConfigurationError(f"There is no {what} to run.")
        for item in _repeated(items):
            raise ConfigurationError(f"The {what} {item!r} is there twice.")


def _repeated(items: Sequence[str]) -> Iterator[str]:
    seen: set[str] = set()
    for item in items:
        if item in seen:
            yield item
        seen.add(item)
