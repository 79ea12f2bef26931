"""``stratagem demo``: problems the shipped model has never seen, with more and more computation on each."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from shutil import which

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import stratagem as sg
from stratagem._cli.bench import points
from stratagem._cli.console import ACCENT, BAD, DIM, GOOD, SEPARATOR, STRONG, count, say_error, show, stderr
from stratagem._cli.interrupt import INTERRUPTED
from stratagem._cli.live import watched
from stratagem._cli.scoreboard import Scoreboard
from stratagem._cli.votes import votes
from stratagem.bench.data import Problem, load
from stratagem.bench.gym import Grade, skills
from stratagem.bench.results import Cell, Results
from stratagem.bench.runner import run_bench
from stratagem.bench.summary import Row, Summary, summarise

SKILL = "words"
PROBLEMS = 32
WAVE = 4  # problems that all strategies finish before the next are begun
SECONDS = 70.0  # then it ends, with the waves that are finished

ONE, GREEDY = "one sample", "one greedy sample"
VOTE, JUDGED = "vote of 16", "best of 16 by judge"


def strategies() -> dict[str, sg.Strategy]:
    """What is compared, by the name it is shown under."""
    return {
        ONE: sg.ChainOfThought(),
        GREEDY: sg.ChainOfThought(temperature=0.0),
        VOTE: sg.SelfConsistency(
            n=16, temperature=0.7
        ),  # cooler than the model's own: such votes beat greedy
        JUDGED: sg.BestOfN(n=16),
    }


async def demo(llm: sg.Backend, *, problems: int = PROBLEMS, limit: float = SECONDS) -> int:
    """Run for at most ``limit`` seconds, print what came out, and give the exit code."""
    data = load(f"gym:{SKILL}", limit=problems)
    board = Scoreboard(list(strategies()), len(data))
    spent: dict[str, float] = {}  # seconds of each strategy, over finished waves
    done = 0
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
            with watched(board):
                async with asyncio.timeout(limit):
                    for wave in _waves(data.problems):
                        await _one_wave(wave, llm, Path(folder), board, spent)
                        done += len(wave)
        except TimeoutError:
            pass  # what is finished is shown, and that there was no time for more
        except asyncio.CancelledError:
            code = INTERRUPTED
        if not done:
            why = "" if code else f" after {limit:.0f} s: this machine is very busy or slow"
            say_error(f"not {WAVE} problems are finished{why}", label="stopped")
            return code or 1
        finished = {problem.id for problem in data.problems[:done]}
        results = _only(Results.read(folder), finished)
    summary = await asyncio.to_thread(summarise, results)
    show(*_rendered(summary, results, spent, asked=len(data), stopped=bool(code)))
    return code


def _waves(problems: Sequence[Problem]) -> Iterator[Sequence[Problem]]:
    return (problems[start : start + WAVE] for start in range(0, len(problems), WAVE))


async def _one_wave(
    wave: Sequence[Problem], llm: sg.Backend, folder: Path, board: Scoreboard, spent: dict[str, float]
) -> None:
    """Each strategy in its turn, so that the seconds are its own."""
    took: dict[str, float] = {}
    for name, strategy in strategies().items():
        began = time.monotonic()
        await run_bench(
            wave, {name: strategy}, {"policy": llm}, out=folder, concurrency=WAVE, listener=board.follow
        )
        took[name] = time.monotonic() - began
    for name, seconds in took.items():
        spent[name] = spent.get(name, 0.0) + seconds


def _only(results: Results, problems: set[str]) -> Results:
    """The cells of these problems, which all strategies have finished."""
    return replace(
        results,
        problems=tuple(p for p in results.problems if p.id in problems),
        cells={key: cell for key, cell in results.cells.items() if key[0] in problems},
    )


def _rendered(
    summary: Summary, results: Results, spent: Mapping[str, float], *, asked: int, stopped: bool
) -> list[RenderableType]:
    done = len(results.problems)
    parts: list[RenderableType] = [_table(summary, spent)]
    if stopped or done < asked:
        why = "stopped: cancelled" if stopped else "stopped: time is up"
        parts += [Text(), Text(f"{done} of {asked} problems{SEPARATOR}{why}", style=BAD)]
    parts += [Text(), *_example(results)]
    if len(summary.rows) > 1:
        parts += [Text(), _moral(summary)]
    return [*parts, Text(), *_next()]


def _table(summary: Summary, spent: Mapping[str, float]) -> Table:
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
            f"{spent[row.strategy]:.1f}",
        )
    return table


def _moral(summary: Summary) -> Text:
    """What the extra computation bought, in figures."""
    text = Text()
    for name in (VOTE, JUDGED):
        over, greedy = (summary.difference(name, other) for other in (ONE, GREEDY))
        text.append_text(
            Text.assemble(
                (name.capitalize(), STRONG),
                " over one sample: ",
                points(over, signed=True),
                " points, over a greedy one ",
                points(greedy, signed=True),
                ", for ",
                (f"{_ratio(summary.row(name), summary.row(ONE)):.0f} times", STRONG),
                " the tokens.\n",
            )
        )
    text.append("An interval that includes zero may be chance: these are few problems. ", style=DIM)
    total = count(round(sum(row.tokens.total for row in summary.rows)), "token")
    return text.append(f"All of it cost {total}.")


def _ratio(row: Row, base: Row) -> float:
    return row.tokens.mean.value / max(1.0, base.tokens.mean.value)


def _example(results: Results) -> list[RenderableType]:
    """One problem that a single sample got wrong and the other two got right, or the best there is."""
    found = _most_telling(results)
    if found is None:
        return [Text("On none of these problems did more samples help one that was wrong.", style=DIM)]
    problem, one, better = found
    ticks = {True: ("✓ ", GOOD), False: ("✗ ", BAD)}

    def worked(text: str) -> Padding:
        graded = _graded(problem, text)
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


def _graded(problem: Problem, text: str) -> Grade:
    task = skills()[SKILL]
    return task.grade(task.problem("test", int(problem.id.rsplit("/", 1)[1])), text)


def _most_telling(results: Results) -> tuple[Problem, Cell, Cell] | None:
    ways = ((VOTE, JUDGED), (JUDGED,), (VOTE,))
    for sound, wanted in product((True, False), ways):  # rather one whose steps are right, too
        for problem in results.problems:
            one = results.cells.get((problem.id, ONE, 0))
            others = [results.cells.get((problem.id, name, 0)) for name in wanted]
            right = [cell for cell in others if cell is not None and cell.correct]
            if one is None or not one.text or one.correct or len(right) < len(wanted):
                continue
            if not sound or all(_graded(problem, right[-1].text).right):
                return problem, one, right[-1]
    return None


def _next() -> list[RenderableType]:
    commands = {
        "Ask it something": 'solve "Tina has 35 beads. Tina loses 27 beads. How many has Tina?"',
        "Ask your server": 'solve "..." -s best_of_n --base-url http://localhost:8000/v1',
        "Measure": "bench gym:words --strategies chain_of_thought,best_of_n --limit 50 --out words",
    }
    parts: list[RenderableType] = [Text("Next", style=STRONG)]
    here = Path(sys.argv[0])
    program = str(here) if here.name == "stratagem" and which("stratagem") is None else "stratagem"
    for what, command in commands.items():
        parts.append(Text.assemble((f"{what}: ", DIM), (f"{program} {command}", ACCENT)))
    return parts
