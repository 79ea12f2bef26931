"""Whether test-time compute pays on the embedded model: one sample, a greedy one, self-consistency and best-of-N,
on problems that it has never seen.

    python benchmarks/accuracy.py [--limit 300] [--n 16] [--split test] [--judges step_judge restart]

Printed are accuracies and paired differences with 95 % bootstrap intervals over problems, against the goals on the
split `test`: +5 points for self-consistency@16, +10 for best-of-16 by the step judge, intervals above zero; other
judges and other splits are informative, and so is what votes of cooler samples gain over a greedy one. A report is
written beside the results. Interrupted, the same command goes on.

Exits with 1 if a goal is missed (--informative: with 0).
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import stratagem as sg
from goals import Goals, parser
from stratagem.bench.data import load
from stratagem.bench.plot import save_plot
from stratagem.bench.report import write_report
from stratagem.bench.runner import Progress, run_bench
from stratagem.bench.statistics import Estimate
from stratagem.bench.summary import Summary, summarise
from stratagem.core.protocols import Strategy

ONE, GREEDY, VOTE, BEST = "one sample", "greedy", "self-consistency", "best of n by "
COOL, JUDGED = "self-consistency at 0.7", "vote by step judge at 0.7"
GOALS = {VOTE: 0.05, BEST + "step_judge": 0.10}  # in accuracy, over one sample


def strategies(n: int, judges: list[str]) -> dict[str, Strategy]:
    """What is compared, by the names in the report."""
    return {
        ONE: Strategy.load("chain_of_thought"),
        GREEDY: Strategy.load({"kind": "chain_of_thought", "temperature": 0.0}),
        VOTE: Strategy.load({"kind": "self_consistency", "n": n}),
        **{BEST + judge: Strategy.load({"kind": "best_of_n", "n": n, "verifier": judge}) for judge in judges},
        COOL: Strategy.load({"kind": "self_consistency", "n": n, "temperature": 0.7}),
        JUDGED: Strategy.load(
            {"kind": "weighted_vote", "n": n, "temperature": 0.7, "by": "verifier", "verifier": "step_judge"}
        ),
    }


def show(summary: Summary, goals: Goals) -> None:
    """Print the figures and whether they reach the goals."""
    print(f"\n{'strategy':<28}{'accuracy, %':>22}{'tokens':>10}{'calls':>8}{'seconds':>9}   per problem")
    for row in summary.rows:
        costs = f"{row.tokens.mean.value:>10,.0f}{row.calls.mean.value:>8,.1f}{row.seconds.mean.value:>9,.2f}"
        print(f"{row.strategy:<28}{interval(row.accuracy):>22}{costs}")
    print(f"\n{'points over one sample':<28}{'difference':>22}   goal")
    for row in summary.rows[1:]:
        goal = GOALS.get(row.strategy)
        gap = summary.difference(row.strategy, ONE)
        if goal is None:
            verdict = "none"
        else:
            reached = gap.value >= goal and gap.low > 0
            verdict = goals.check(reached, f"at least {100 * goal:+.0f}, interval above 0")
        print(f"{row.strategy:<28}{interval(gap, signed=True):>22}   {verdict}")
    print(f"\n{'points over a greedy sample':<28}{'difference':>22}")
    for row in summary.rows[2:]:
        print(f"{row.strategy:<28}{interval(summary.difference(row.strategy, GREEDY), signed=True):>22}")
    for curve in summary.curves:
        print(f"\n{'what k samples give, %':<28}" + "".join(f"{k:>8}" for k in curve.k))
        print(curve.strategy)
        judged = {f"best by {judge}": values for judge, values in curve.best.items()}
        for name, values in {"majority": curve.majority, **judged, "any right": curve.any_right}.items():
            print(f"  {name:<26}" + "".join(f"{100 * value:>8.1f}" for value in values))
    print("\nhow well scores tell right from wrong")
    for c in summary.calibrations:
        print(f"{c.strategy:<28}{c.source:<12} AUC {c.auc:.3f}   ECE {c.ece:.3f}   of {c.size:,}")


def interval(e: Estimate, *, signed: bool = False) -> str:
    """In points, with its interval."""
    return "{:{s}.1f} [{:{s}.1f}, {:{s}.1f}]".format(
        *(100 * x for x in (e.value, e.low, e.high)), s="+" if signed else ""
    )


async def main() -> int:
    takes = parser(__doc__)
    takes.add_argument("--limit", type=int, default=300, help="problems")
    takes.add_argument("--n", type=int, default=16, help="samples of a vote and of best-of-n")
    takes.add_argument("--split", default="test", help="test, or hard: longer than any in training")
    takes.add_argument("--judges", nargs="+", default=["step_judge", "restart"], help="for best-of-n")
    takes.add_argument("--model", help="a model folder (default: the shipped one)")
    takes.add_argument("--concurrency", type=int, default=8, help="problems at the same time")
    takes.add_argument("--out", type=Path, help="default: a folder for the model under runs/accuracy")
    args = takes.parse_args()

    llm = sg.connect(model=args.model)
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in llm.name)
    out: Path = args.out or Path("runs", "accuracy", f"{safe}-{args.split}-{args.n}")
    started = time.monotonic()
    last = 0.0

    def listen(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last > 5 or progress.done + progress.failed == progress.total:
            last = time.monotonic()
            print(f"{progress.done} of {progress.total} runs, {last - started:.0f} s", flush=True)

    try:
        results = await run_bench(
            load("gym:words", split=args.split, limit=args.limit),
            strategies(args.n, args.judges),
            {"policy": llm},
            out=out,
            concurrency=args.concurrency,
            listener=listen,
        )
    finally:
        await llm.aclose()
    summary = summarise(results)
    print(f"\n{llm.name}, {len(results.problems)} problems of {results.manifest['data']}, n = {args.n}")
    goals = Goals(informative=args.informative or args.split != "test")
    show(summary, goals)
    write_report(results, out / "report.html", summary)
    save_plot(
        summary, out / "plot.png", title=f"{results.manifest['data']}, {len(results.problems)} problems"
    )
    print(f"\nreport: {out / 'report.html'}")
    return goals.code


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
