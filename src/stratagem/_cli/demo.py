"""``stratagem demo``: problems the shipped model has never seen, with more and more computation on each."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import stratagem as sg
from stratagem._cli.bench import points
from stratagem._cli.console import ACCENT, BAD, DIM, GOOD, SEPARATOR, STRONG, count, show, stderr
from stratagem._cli.interrupt import INTERRUPTED
from stratagem._cli.scoreboard import Scoreboard
from stratagem._cli.votes import votes
from stratagem.bench.data import Problem, load
from stratagem.bench.gym import skills
from stratagem.bench.results import Cell, Results
from stratagem.bench.runner import run_bench
from stratagem.bench.summary import Row, Summary, summarise

SKILL = "words"
PROBLEMS = 32
WAVE = 8  # problems that all strategies finish before the next are begun
SECONDS = 60.0  # a wave that would end later than this is not begun

ONE, VOTE, JUDGED = "one sample", "vote of 16", "best of 16 by judge"


def strategies() -> dict[str, sg.Strategy]:
    """What is compared, by the name it is shown under."""
    return {ONE: sg.ChainOfThought(), VOTE: sg.SelfConsistency(n=16), JUDGED: sg.BestOfN(n=16)}


@dataclass(slots=True)
class _Clock:
    """When it began, how long each strategy took on all its problems, and the longest wave."""

    began: float = field(default_factory=time.monotonic)
    spent: dict[str, float] = field(default_factory=dict)
    longest: float = 0.0

    def time_for_another(self) -> bool:
        return time.monotonic() - self.began + self.longest < SECONDS


async def demo(llm: sg.Backend, *, problems: int = PROBLEMS) -> int:
    """Run, print what came out, and give the exit code."""
    data = load(f"gym:{SKILL}", limit=problems)
    board = Scoreboard(list(strategies()), len(data))
    clock = _Clock()
    model = (await llm.capabilities()).model
    stderr().print(
        Text.assemble(
            "\n  ",
            (f"{len(data)} word problems", STRONG),
            f" that the model has never seen.\n  Model: {model}, on this machine's processor.\n",
        )
    )
    code = 0
    with tempfile.TemporaryDirectory(prefix="stratagem-demo-") as folder:
        try:
            with board.shown():
                for wave in _waves(data.problems):
                    if not clock.time_for_another():
                        break
                    await _one_wave(wave, llm, Path(folder), board, clock)
        except asyncio.CancelledError:
            code = INTERRUPTED
        if not board.done:
            raise asyncio.CancelledError
        results = Results.read(folder)
    summary = await asyncio.to_thread(summarise, results)
    show(*_rendered(summary, results, clock, asked=len(data), stopped=bool(code)))
    return code


def _waves(problems: Sequence[Problem]) -> Iterator[Sequence[Problem]]:
    return (problems[start : start + WAVE] for start in range(0, len(problems), WAVE))


async def _one_wave(
    wave: Sequence[Problem], llm: sg.Backend, folder: Path, board: Scoreboard, clock: _Clock
) -> None:
    """Each strategy in its turn, so that the seconds are its own."""

    wave_began = time.monotonic()
    for name, strategy in strategies().items():
        began = time.monotonic()
        try:
            await run_bench(
                wave, {name: strategy}, {"policy": llm}, out=folder, concurrency=WAVE, listener=board.follow
            )
        finally:
            clock.spent[name] = clock.spent.get(name, 0.0) + time.monotonic() - began
    clock.longest = max(clock.longest, time.monotonic() - wave_began)


def _rendered(
    summary: Summary, results: Results, clock: _Clock, *, asked: int, stopped: bool
) -> list[RenderableType]:
    done = len(results.problems)
    parts: list[RenderableType] = [_table(summary, clock)]
    if stopped or done < asked:
        why = "stopped: cancelled" if stopped else f"more would not end within {SECONDS:.0f} s"
        parts += [Text(), Text(f"{done} of {asked} problems{SEPARATOR}{why}", style=BAD)]
    parts += [Text(), *_example(results)]
    if len(summary.rows) > 1:
        parts += [Text(), _moral(summary)]
    return [*parts, Text(), *_next()]


def _table(summary: Summary, clock: _Clock) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style=DIM)
    table.add_column("", overflow="fold")
    for name in ("right", "tokens each", "seconds"):
        table.add_column(name, justify="right")
    best = max(row.accuracy.value for row in summary.rows)
    for row in summary.rows:
        table.add_row(
            Text(row.strategy, style=STRONG if row.accuracy.value == best else ""),
            points(row.accuracy),
            f"{row.tokens.mean.value:,.0f}",
            f"{clock.spent.get(row.strategy, 0.0):.1f}",
        )
    return table


def _moral(summary: Summary) -> Text:
    """What the extra computation bought, in figures."""
    first, last = summary.rows[0], max(summary.rows, key=lambda row: row.accuracy.value)
    total = count(round(sum(row.tokens.total for row in summary.rows)), "token")
    if last is first:
        return Text(f"More computation bought nothing here. All of it cost {total}.")
    gain = summary.difference(last.strategy, first.strategy)
    text = Text.assemble(
        (last.strategy.capitalize(), STRONG),
        " over one sample: ",
        points(gain, signed=True),
        " points, for ",
        (f"{_ratio(last, first):.0f} times", STRONG),
        " the tokens.",
    )
    if not gain.excludes_zero:
        text.append(" The interval includes zero: on so few problems that may be chance.", style=DIM)
    return text.append(f" All of it cost {total}.")


def _ratio(row: Row, base: Row) -> float:
    return row.tokens.mean.value / max(1.0, base.tokens.mean.value)


def _example(results: Results) -> list[RenderableType]:
    """One problem that a single sample got wrong and the other two got right, or the best there is."""
    found = _most_telling(results)
    if found is None:
        return [Text("On none of these problems did more samples help one that was wrong.", style=DIM)]
    problem, one, better = found
    gym = skills()[SKILL].problem("test", int(problem.id.rsplit("/", 1)[1]))
    grade = skills()[SKILL].grade
    ticks = {True: ("✓ ", GOOD), False: ("✗ ", BAD)}

    def worked(text: str) -> Padding:
        graded = grade(gym, text)
        lines = [Text.assemble(ticks[ok], line) for line, ok in zip(graded.lines, graded.right, strict=True)]
        return Padding(Text("\n").join(lines), (0, 0, 0, 2))

    return [
        Text("For example", style=STRONG),
        Text(problem.task.question),
        Text(),
        Text(ONE.capitalize(), style=DIM),
        worked(one.text),
        Text(),
        Text("Sixteen samples, and the judge's best score for each answer", style=DIM),
        Padding(votes(better.samples, better.value), (0, 0, 0, 2)),
        Text(),
        Text(better.strategy.capitalize(), style=DIM),
        worked(better.text),
    ]


def _most_telling(results: Results) -> tuple[Problem, Cell, Cell] | None:
    for wanted in ((VOTE, JUDGED), (JUDGED,), (VOTE,)):
        for problem in results.problems:
            one = results.cells.get((problem.id, ONE, 0))
            others = [results.cells.get((problem.id, name, 0)) for name in wanted]
            right = [cell for cell in others if cell is not None and cell.correct]
            if one is not None and one.text and not one.correct and len(right) == len(wanted):
                return problem, one, right[-1]
    return None


def _next() -> list[RenderableType]:
    commands = {
        "Ask it something": 'stratagem solve "Ana has 3 apples. Ben has twice as many. How many has Ben?"',
        "Ask your server": 'stratagem solve "..." -s best_of_n --base-url http://localhost:8000/v1',
        "Measure": "stratagem bench gym:words --strategies direct,best_of_n --out words",
    }
    parts: list[RenderableType] = [Text("Next", style=STRONG)]
    for what, command in commands.items():
        parts.append(Text.assemble((f"{what}: ", DIM), (command, ACCENT)))
    return parts
