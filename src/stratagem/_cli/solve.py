"""``stratagem solve``: one question, one answer, what it cost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

import stratagem as sg
from stratagem._cli.console import (
    ACCENT,
    BAD,
    DIM,
    SEPARATOR,
    STRONG,
    count,
    percent,
    say_error,
    seconds,
    show,
    stderr,
    write_line,
)
from stratagem._cli.interrupt import INTERRUPTED
from stratagem._cli.progress import Progress

_ROWS = 6  # of the table of answers
_BAR = 16

_WHY = {
    "complete": "complete",
    "budget": "stopped: budget",
    "deadline": "stopped: deadline",
    "cancelled": "stopped: cancelled",
}


async def solve(
    question: str,
    strategy: sg.Strategy,
    llm: sg.Backend,
    *,
    budget: sg.Budget | None,
    seed: int,
    store: str | None,
    run_id: str | None,
    as_json: bool,
    trace_file: str | None,
) -> int:
    """Answer, print, and give the exit code."""
    task = sg.Task.of(question)
    progress = Progress(task, strategy.kind)
    trace = sg.Trace(listeners=[progress])
    with ExitStack() as stack:
        if trace_file is not None:
            lines = sg.JsonLines(trace_file)
            stack.callback(lines.close)
            trace.listeners.append(lines)
        try:
            with progress.shown():
                answer: sg.Answer | None = await sg.solve(
                    task, strategy, llm=llm, budget=budget, seed=seed, store=store, run_id=run_id, trace=trace
                )
            code = 0
        except asyncio.CancelledError:
            answer, code = progress.partial(trace.run_id), INTERRUPTED
        finally:
            await llm.aclose()
    if answer is None:
        spent = count(progress.spent.tokens, "token")
        say_error(f"no answer yet, {spent} spent{_how_to_resume(store, trace.run_id)}", label="stopped")
    elif as_json:
        write_line(json.dumps(as_data(answer, task, strategy, llm, seed), ensure_ascii=False))
    else:
        show(*rendered(answer, strategy, llm))
    if answer is not None and code and store is not None:
        stderr().print(Text(_how_to_resume(store, trace.run_id).strip(". "), style=DIM), soft_wrap=True)
    return code


def _how_to_resume(store: str | None, run_id: str) -> str:
    return "" if store is None else f". Run the same with --run-id {run_id} to go on"


def as_data(
    answer: sg.Answer, task: sg.Task, strategy: sg.Strategy, llm: sg.Backend, seed: int
) -> dict[str, Any]:
    """What ``--json`` prints."""
    usage = answer.usage
    return {
        "answer": answer.value,
        "text": answer.text,
        "confidence": answer.confidence,
        "stopped": answer.stopped,
        "usage": {
            "tokens": usage.tokens,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
            "uncertain_tokens": usage.uncertain_tokens,
            "calls": usage.calls,
            "money": usage.money,
        },
        "seconds": answer.seconds,
        "run_id": answer.run_id,
        "question": task.question,
        "strategy": strategy.dump(),
        "model": llm.name,
        "seed": seed,
        "candidates": [
            {"answer": c.answer, "text": c.text, "finish": c.finish, "logprob": c.logprob, "scores": c.scores}
            for c in answer.candidates
        ],
    }


def rendered(answer: sg.Answer, strategy: sg.Strategy, llm: sg.Backend) -> list[RenderableType]:
    """The answer, how it came about, what it cost."""
    headline = Text(answer.value if answer.value is not None else "no answer", style=f"{STRONG} {ACCENT}")
    if answer.value is None:
        headline.stylize(BAD)
    if answer.confidence is not None:
        headline.append(f"   confidence {percent(answer.confidence)}", style="not bold default dim")
    parts: list[RenderableType] = [headline]
    if answer.text.strip() and answer.text.strip() != answer.value:
        parts += [Text(), Text(answer.text.strip())]
    if len(answer.candidates) > 1:
        parts += [Text(), votes(answer.candidates, answer.value)]
    return [*parts, Text(), cost_line(answer, strategy, llm)]


def cost_line(answer: sg.Answer, strategy: sg.Strategy, llm: sg.Backend) -> Text:
    """Strategy, model, tokens, calls, seconds, and why it stopped."""
    usage = answer.usage
    parts = [strategy.kind, count(usage.tokens, "token"), count(usage.calls, "call"), seconds(answer.seconds)]
    if usage.uncertain_tokens:
        parts.insert(2, f"up to {usage.uncertain_tokens:,} more")
    if usage.money:
        parts.append(f"{usage.money:.4f} money")
    line = Text(SEPARATOR.join([*parts, ""]), style=DIM)
    line.append(_WHY[answer.stopped], style=DIM if answer.stopped == "complete" else f"not dim {BAD}")
    line.append(f"\n{llm.name}{SEPARATOR}run {answer.run_id}", style=DIM)
    return line


def votes(candidates: Sequence[sg.Candidate], chosen: str | None) -> Table:
    """Candidates grouped by their answer, the chosen one first, with the best score of each group."""
    groups: dict[str | None, list[sg.Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(None if candidate.answer is None else candidate.answer.strip(), []).append(
            candidate
        )
    key = None if chosen is None else chosen.strip()
    order = sorted(groups, key=lambda a: (a != key, a is None, -len(groups[a])))
    scores = sorted({name for c in candidates for name in c.scores})
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style=DIM)
    table.add_column("answer", overflow="fold", max_width=40)
    table.add_column("votes")
    for name in scores:
        table.add_column(f"best {name}", justify="right")
    for answer in order[:_ROWS]:
        members = groups[answer]
        style = STRONG if answer == key else ""
        bar = "━" * max(1, round(_BAR * len(members) / len(candidates)))
        table.add_row(
            Text(
                answer if answer is not None else "no answer", style=style or (DIM if answer is None else "")
            ),
            Text.assemble((bar, ACCENT if answer == key else DIM), f" {len(members)}"),
            *(_best(members, name) for name in scores),
        )
    if len(order) > _ROWS:
        rest = sum(len(groups[a]) for a in order[_ROWS:])
        table.add_row(Text(f"{len(order) - _ROWS} more", style=DIM), Text(str(rest), style=DIM))
    return table


def _best(members: Sequence[sg.Candidate], name: str) -> Text:
    known = [c.scores[name] for c in members if name in c.scores]
    return Text(f"{max(known):.2f}" if known else "abstained", style="" if known else DIM)
