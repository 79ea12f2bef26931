"""Accuracy against tokens of every strategy that spends samples, by family, on the embedded model and problems that
it has never seen.

    python benchmarks/families.py [--limit 300] [--families votes best-of-n steps particles revisions]

Methods are drawn at several widths, so that each is a line. Goals on the split `test`: RPC at 8 samples is at least
as accurate as self-consistency at 16; particle filtering with N particles is at least as accurate as beam search
with 4 N partial answers. Where the second is missed, the true scaling ratio stands beside it: how many times N
partial answers beam search needs to be as accurate as N particles, and what it has decoded until then. Tokens are
those that the engine has decoded, judgements and stopped samples included. Accuracies and differences come with
95 % bootstrap intervals over problems.

A picture (`families.png`, a panel per family, all methods in every panel), the figures (`families.json`) and a
report are written beside the results. Interrupted, the same command goes on. Exits with 1 if a goal is missed
(--informative: with 0).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import stratagem as sg
from accuracy import interval
from adaptive import measured
from goals import Goals, parser
from stratagem.bench.data import load
from stratagem.bench.report import write_report
from stratagem.bench.summary import Row, Summary, summarise
from stratagem.core.protocols import Strategy

ONE, GREEDY = "one sample", "greedy"
COOL = {"temperature": 0.7}  # a vote of likelier samples; alone they are worth less than a greedy one
Widths = Mapping[int, Mapping[str, Any]]


def _by(key: str, *widths: int, **fixed: Any) -> Widths:
    return {width: {key: width, **fixed} for width in widths}


def _square(key: str, **fixed: Any) -> Widths:
    """Width and the other number alike: 4, 16 and 64 steps at a depth."""
    return {side * side: {key: side, "width": side, **fixed} for side in (2, 4, 8)}


FAMILIES: Mapping[str, Mapping[str, tuple[str, Widths]]] = {
    "votes": {
        "self-consistency": ("self_consistency", _by("n", 2, 4, 8, 16, 32)),
        "self-consistency at 0.7": ("self_consistency", _by("n", 4, 16, **COOL)),
        "early stopping": ("early_stopping_consistency", _by("n", 16, 32)),
        "weighted vote": ("weighted_vote", _by("n", 4, 8, 16)),
        "vote by step judge": ("weighted_vote", _by("n", 4, 8, 16, by="verifier", verifier="step_judge")),
        "vote by step judge at 0.7": (
            "weighted_vote",
            _by("n", 4, 16, by="verifier", verifier="step_judge", **COOL),
        ),
        "RPC": ("rpc", _by("n", 4, 8, 16)),
        "self-certainty": ("self_certainty", _by("n", 4, 16)),
        "deep confidence": ("deep_confidence", {32: {"n": 32}}),
    },
    "best-of-n": {
        "best-of-n": ("best_of_n", _by("n", 2, 4, 8, 16, 32)),
        "best-of-n by restart": ("best_of_n", _by("n", 4, 16, verifier="restart")),
        "adaptive": ("adaptive_best_of_n", _by("n", 4, 16, verifier="step_judge")),
        "pruned": ("pruned_best_of_n", _by("n", 8, 16, 32, verifier="restart")),
        "tournament": ("tournament", _by("n", 4)),
    },
    "steps": {
        "step best-of-n": ("step_best_of_n", _by("n", 4, 16)),
        "beam search": ("beam_search", _square("beams")),
        "DVTS": ("dvts", _square("trees")),
        "best-first": ("best_first", _by("expansions", 8, 16)),
        "MCTS": ("mcts", _by("simulations", 2, 5)),
    },
    "particles": {
        "particle filtering": ("particle_filtering", _by("n", 4, 8, 16, 32)),
        "without barrier": ("particle_filtering", _by("n", 8, 16, together=4)),
        "particle Gibbs": ("particle_gibbs", _by("n", 4, 8)),
        "parallel tempering": ("parallel_tempering", _by("n", 4)),
    },
    "revisions": {
        "self-refine": ("self_refine", _by("rounds", 1)),
        "critique and revise": ("critique_revise", _by("rounds", 1)),
        "debate": ("debate", _by("n", 3)),
        "dynamic prompting": ("dynamic_prompting", {1: {}}),
    },
}


def name(method: str, width: int) -> str:
    """What the results of a method at a width go under."""
    return f"{method} {width}"


def strategies(families: Sequence[str]) -> dict[str, Strategy]:
    """What is compared, by the names in the report."""
    one = {"kind": "chain_of_thought"}
    return {ONE: Strategy.load(one), GREEDY: Strategy.load({**one, "temperature": 0.0})} | {
        name(method, width): Strategy.load({"kind": kind, **told})
        for family in families
        for method, (kind, widths) in FAMILIES[family].items()
        for width, told in widths.items()
    }


def line(summary: Summary, family: str, method: str) -> list[Row]:
    """The figures of a method, from the narrowest to the widest."""
    return [summary.row(name(method, width)) for width in FAMILIES[family][method][1]]


def show(summary: Summary, families: Sequence[str], goals: Goals) -> None:
    """Print the figures and whether they reach the goals."""
    print(
        f"\n{'strategy':<28}{'accuracy, %':>20}{'over one sample':>22}{'over a greedy one':>22}"
        f"{'decoded':>10}{'calls':>8}   per problem"
    )
    for row in summary.rows:
        gaps = (
            "" if row.strategy == other else interval(summary.difference(row.strategy, other), signed=True)
            for other in (ONE, GREEDY)
        )
        costs = f"{row.completion_tokens.mean.value:>10,.1f}{row.calls.mean.value:>8,.1f}"
        print(f"{row.strategy:<28}{interval(row.accuracy):>20}{''.join(f'{gap:>22}' for gap in gaps)}{costs}")
    print()
    if "votes" in families:
        gap = summary.difference(name("RPC", 8), name("self-consistency", 16))
        verdict = goals.check(gap.value >= 0, "at least as accurate")
        print(f"RPC at 8 beside self-consistency at 16: {interval(gap, signed=True)} points   {verdict}")
    if {"steps", "particles"} <= set(families):
        _scaling(summary, goals)


def _scaling(summary: Summary, goals: Goals) -> None:
    """Particles against the beam with four times as many partial answers."""
    beams = line(summary, "steps", "beam search")
    sizes = list(FAMILIES["steps"]["beam search"][1])
    for n, row in zip(
        FAMILIES["particles"]["particle filtering"][1],
        line(summary, "particles", "particle filtering"),
        strict=True,
    ):
        needed = _first(sizes, beams, row.accuracy.value)
        if needed is None:
            told = f"beam search is less accurate at all widths up to {sizes[-1]}"
        else:
            size, decoded = needed
            share = row.completion_tokens.mean.value / decoded
            most = "at most " if size == sizes[0] else ""
            told = f"beam search first is as accurate at {most}{size / n:.2f} N"
            told += f"; particles decode {share:.2f} of its tokens"
        verdict = ""
        if 4 * n in sizes:
            gap = summary.difference(row.strategy, name("beam search", 4 * n))
            verdict = f": {interval(gap, signed=True)} points   " + goals.check(
                gap.value >= 0, f"as accurate as beam search with {4 * n}"
            )
        print(f"{n} particles{verdict}\n  {told}")


def _first(sizes: Sequence[int], rows: Sequence[Row], accuracy: float) -> tuple[float, float] | None:
    """(size, decoded tokens) at which a line first is as accurate, between its points on logarithmic scales."""
    if rows[0].accuracy.value >= accuracy:
        return sizes[0], rows[0].completion_tokens.mean.value
    for i, (a, b) in enumerate(itertools.pairwise(rows)):
        if a.accuracy.value < accuracy <= b.accuracy.value:
            share = (accuracy - a.accuracy.value) / (b.accuracy.value - a.accuracy.value)
            low, high = a.completion_tokens.mean.value, b.completion_tokens.mean.value
            return (
                sizes[i] * (sizes[i + 1] / sizes[i]) ** share,
                math.exp(math.log(low) + share * math.log(high / low)),
            )
    return None


def picture(summary: Summary, families: Sequence[str], path: Path, title: str) -> None:
    """A panel per family in colours, all other methods behind it in grey."""
    from matplotlib.figure import Figure

    colours = (
        "#0072b2",
        "#d55e00",
        "#009e73",
        "#cc79a7",
        "#56b4e9",
        "#e69f00",
        "#5d4a8a",
        "#8c6d31",
        "#a50f15",
    )
    columns = min(len(families), 3)
    rows = -(-len(families) // columns)
    figure = Figure(figsize=(4.6 * columns, 4.1 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()

    def drawn(axes: Any, rows: Sequence[Row], **style: Any) -> None:
        x = [row.completion_tokens.mean.value for row in rows]
        y = [100 * row.accuracy.value for row in rows]
        below = [100 * (row.accuracy.value - row.accuracy.low) for row in rows]
        above = [100 * (row.accuracy.high - row.accuracy.value) for row in rows]
        axes.errorbar(x, y, yerr=[below, above], capsize=2, linewidth=1.4, elinewidth=0.9, **style)

    for axes, family in zip(panels, families, strict=False):
        for other in families:
            for method in FAMILIES[other] if other != family else ():
                there = line(summary, other, method)
                axes.plot(
                    [row.completion_tokens.mean.value for row in there],
                    [100 * row.accuracy.value for row in there],
                    "o-",
                    color="#c9ccd1",
                    markersize=2.5,
                    linewidth=0.9,
                    zorder=1,
                )
        for method, colour, marker in zip(FAMILIES[family], colours, "osD^vPXh<", strict=False):
            drawn(
                axes, line(summary, family, method), color=colour, marker=marker, markersize=5.5, label=method
            )
        drawn(axes, [summary.row(ONE)], color="#1a1c20", marker="*", markersize=9, label=ONE)
        drawn(axes, [summary.row(GREEDY)], color="#7a7f87", marker="p", markersize=7, label=GREEDY)
        axes.set_xscale("log")
        axes.set_title(family, loc="left", fontweight="bold", fontsize=11)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7.5, loc="lower right", framealpha=0.85)
    for axes in panels[len(families) :]:
        axes.set_visible(False)
    figure.supxlabel("Tokens decoded per problem", fontsize=10)
    figure.supylabel("Accuracy, %, 95 % interval", fontsize=10)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.savefig(path, dpi=150)


async def main() -> int:
    takes = parser(__doc__)
    takes.add_argument("--limit", type=int, default=300, help="problems")
    takes.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    takes.add_argument("--split", default="test", help="test, or hard: longer than any in training")
    takes.add_argument("--model", help="a model folder (default: the shipped one)")
    takes.add_argument("--concurrency", type=int, default=8, help="problems at the same time")
    takes.add_argument("--out", type=Path, help="default: a folder for the model under runs/families")
    args = takes.parse_args()

    llm = sg.connect(model=args.model)
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in llm.name)
    out: Path = args.out or Path("runs", "families", f"{safe}-{args.split}")
    data = load("gym:words", split=args.split, limit=args.limit)
    try:
        results = await measured(data, strategies(args.families), llm, out, args.concurrency)
    finally:
        await llm.aclose()
    summary = summarise(results)
    about = f"{len(results.problems)} problems of {results.manifest['data']}"
    print(f"\n{llm.name}, {about}")
    goals = Goals(informative=args.informative or args.split != "test")
    show(summary, args.families, goals)
    figures = {
        row.strategy: {
            "accuracy": [row.accuracy.value, row.accuracy.low, row.accuracy.high],
            "decoded": row.completion_tokens.mean.value,
            "calls": row.calls.mean.value,
        }
        for row in summary.rows
    }
    (out / "families.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    picture(summary, args.families, out / "families.png", about)
    write_report(results, out / "report.html", summary)
    print(f"\npicture: {out / 'families.png'}")
    return goals.code


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
