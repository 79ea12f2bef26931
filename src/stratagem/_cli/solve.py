"""``stratagem solve``: one question, one answer, what it cost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
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
    safe,
    say_error,
    seconds,
    show,
    write_line,
)
from stratagem._cli.interrupt import INTERRUPTED
from stratagem._cli.live import watched
from stratagem._cli.progress import Progress
from stratagem._cli.votes import votes
from stratagem.api import new_run_id
from stratagem.core.trace import Chosen

_SHOWN = 200  # characters of a result
_WHY = {
    "complete": "complete",
    "budget": "stopped: budget",
    "deadline": "stopped: deadline",
    "cancelled": "stopped: cancelled",
    "failed": "failed",
}


async def solve(
    question: str,
    strategy: sg.Strategy,
    llm: sg.Backend,
    *,
    others: Mapping[str, sg.Backend],
    tools: sg.Toolbox | None,
    budget: sg.Budget | None,
    seed: int,
    store: str | None,
    run_id: str | None,
    as_json: bool,
    trace_file: str | None,
) -> int:
    """Answer, print, and give the exit code; when cancelled, with the best so far."""
    task = sg.Task.of(question)
    progress = Progress(strategy.kind)
    run_id = run_id or new_run_id()
    trace = sg.Trace(listeners=[progress])
    with ExitStack() as stack:
        if trace_file is not None:
            lines = sg.JsonLines(trace_file)
            stack.callback(lines.close)
            trace.listeners.append(lines)
        try:
            with watched(progress):
                answer = await sg.solve(
                    task,
                    strategy,
                    llm=llm,
                    models=others,
                    tools=tools,
                    budget=budget,
                    seed=seed,
                    store=store,
                    run_id=run_id,
                    trace=trace,
                )
            code = 0
        except asyncio.CancelledError:
            answer = trace.partial or sg.Answer(text="", stopped="cancelled", run_id=run_id)
            code = INTERRUPTED
        except sg.BudgetExhausted as error:
            if store is None:
                raise
            remedy = f"The same with --run-id {run_id} and a larger --budget goes on."
            raise sg.BudgetExhausted(error.message, remedy=remedy) from error
        except sg.StratagemError:
            if trace.partial is not None and trace.partial.candidates and not as_json:
                show(*rendered(trace.partial, strategy, strategy.kind, llm.name))  # before what it failed of
            raise
    found = bool(answer.candidates) or answer.value is not None
    if as_json or found:
        model = (await llm.capabilities()).model if found else llm.name  # negotiated by now
        if as_json:
            write_line(json.dumps(as_data(answer, task, strategy, model, seed), ensure_ascii=False))
        else:
            label = " > ".join([strategy.kind, *(each.strategy["kind"] for each in trace.of(Chosen))])
            show(*await asyncio.to_thread(rendered, answer, strategy, label, model))  # equality may take long
    else:
        say_error(f"no answer yet, {count(answer.usage.tokens, 'token')} spent", label="stopped")
    if answer.stopped != "complete" and store is not None:
        more = "" if code else " and a larger --budget"
        say_error(f"the same with --run-id {answer.run_id}{more} goes on", label="stopped")
    return code


def as_data(answer: sg.Answer, task: sg.Task, strategy: sg.Strategy, model: str, seed: int) -> dict[str, Any]:
    """What ``--json`` prints."""
    usage = answer.usage
    return {
        "answer": answer.value,
        "text": answer.text,
        "confidence": answer.confidence,
        "stopped": answer.stopped,
        "reason": answer.reason,
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
        "model": model,
        "seed": seed,
        "calls": [asdict(call) for call in answer.calls],
        "basis": answer.basis,
        "candidates": [
            {"answer": c.answer, "text": c.text, "finish": c.finish, "logprob": c.logprob, "scores": c.scores}
            for c in answer.candidates
        ],
    }


def rendered(answer: sg.Answer, strategy: sg.Strategy, label: str, model: str) -> list[RenderableType]:
    """The answer, how it came about, what it cost."""
    headline = Text("no answer" if answer.value is None else safe(answer.value), style=f"{STRONG} {ACCENT}")
    if answer.value is None:
        headline.stylize(BAD)
    if answer.confidence is not None:
        headline.append(f"   confidence {percent(answer.confidence)}", style="not bold default dim")
    parts: list[RenderableType] = [headline]
    if answer.text.strip() and answer.text.strip() != answer.value:
        parts += [Text(), Text(safe(answer.text.strip()))]
    if answer.calls:
        parts += [Text(), calls(answer)]
    if len(answer.candidates) > 1:
        parts += [Text(), votes(answer.candidates, answer.value, equality_of(strategy))]
    return [*parts, Text(), cost_line(answer, label, model)]


def calls(answer: sg.Answer) -> Table:
    """The calls of tools, what became of them, and which the answer rests on."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for call in answer.calls:
        style = BAD if call.error else DIM if call.skipped or call.name not in answer.basis else ""
        table.add_row(
            Text(safe(call.name), style=DIM),
            Text(safe(call.call), style=style),
            Text(safe(call.told(_SHOWN)), style=style),
            Text(seconds(call.seconds), style=DIM),
        )
    return table


def equality_of(strategy: sg.Strategy) -> sg.Verifier | None:
    """By what a strategy that votes has grouped answers: its field ``equality``, if it has one."""
    equality = getattr(strategy, "equality", None)
    return equality if isinstance(equality, sg.Verifier) else None


def cost_line(answer: sg.Answer, label: str, model: str) -> Text:
    """Strategy, model, tokens, calls, seconds, and why it stopped."""
    usage = answer.usage
    parts = [label, count(usage.tokens, "token"), count(usage.calls, "call"), seconds(answer.seconds)]
    if usage.uncertain_tokens:
        parts.insert(2, f"up to {usage.uncertain_tokens:,} more")
    if usage.money:
        parts.append(f"{usage.money:.4f} money")
    line = Text(SEPARATOR.join([*parts, ""]), style=DIM)
    line.append(_WHY[answer.stopped], style=DIM if answer.stopped == "complete" else f"not dim {BAD}")
    line.append(f"\n{model}{SEPARATOR}run {answer.run_id}", style=DIM)
    if answer.reason:
        line.append(f"\n{answer.reason}", style=f"not dim {BAD}")
    return line
