"""Whether samples are spent well on the embedded model, on problems that it has never seen: what adaptive
best-of-N, pruning and early-stopping consistency save, and what they lose.

    python benchmarks/adaptive.py [--limit 300] [--dev 300] [--split test] [--verifier step_judge]

The threshold of adaptive best-of-n is calibrated on the split `dev` first, to keep 0.8 of the gain there. Then, on
the same problems and, but for the adaptive one, the same draws, against the goals on the split `test`:

- adaptive best-of-n keeps at least 74 % of what best-of-n gains over one sample, with at most 2 samples on average;
- pruned best-of-n by self-evaluation decodes at most half the tokens of best-of-n by it, within 1 point of it;
- early-stopping consistency decodes at most half the tokens of the vote of 2 n and is within 1 point of it.

Tokens are those that the engine has decoded, judgements and stopped samples included. Accuracies and differences
come with 95 % bootstrap intervals over problems. Interrupted, the same command goes on. Exits with 1 if a goal is
missed (--informative: with 0).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import stratagem as sg
from accuracy import interval
from goals import Goals, parser
from stratagem.bench.calibration import calibrate
from stratagem.bench.data import Dataset, load
from stratagem.bench.plot import save_plot
from stratagem.bench.report import write_report
from stratagem.bench.results import Results
from stratagem.bench.runner import Progress, run_bench
from stratagem.bench.statistics import bootstrap_mean
from stratagem.bench.summary import Summary, summarise
from stratagem.core.protocols import Strategy

ONE, GREEDY, VOTE = "one sample", "greedy", "consistency"
BEST, WHOLE = "best of n", "best of n by restart"
ADAPTIVE, PRUNED, CONTINUOUS, EARLY = "adaptive", "pruned", "pruned continuously", "early stopping"
SHARE, SAMPLES, SAVED, POINTS = 0.74, 2.0, 0.5, 0.01  # the goals
ASKED = 0.8  # of the gain, on the development set: a margin for what differs on others


def strategies(n: int, verifier: str, tau: float) -> dict[str, Strategy]:
    """What is compared, by the names in the report."""
    judged = {"n": n, "verifier": verifier}
    return {
        ONE: Strategy.load("chain_of_thought"),
        GREEDY: Strategy.load({"kind": "chain_of_thought", "temperature": 0.0}),
        BEST: Strategy.load({"kind": "best_of_n", **judged}),
        ADAPTIVE: Strategy.load({"kind": "adaptive_best_of_n", "tau": tau, **judged}),
        WHOLE: Strategy.load({"kind": "best_of_n", "n": n, "verifier": "restart"}),
        PRUNED: Strategy.load({"kind": "pruned_best_of_n", "n": n, "verifier": "restart"}),
        CONTINUOUS: Strategy.load({"kind": "pruned_best_of_n", "n": n, "verifier": "restart", "every": 1}),
        VOTE: Strategy.load({"kind": "self_consistency", "n": 2 * n}),
        EARLY: Strategy.load({"kind": "early_stopping_consistency", "n": 2 * n}),
    }


def show(results: Results, summary: Summary, goals: Goals) -> None:
    """Print the figures and whether they reach the goals."""
    print(f"\n{'strategy':<22}{'accuracy, %':>20}{'decoded':>10}{'all tokens':>12}{'calls':>8}   per problem")
    for row in summary.rows:
        decoded, tokens, calls = (c.mean.value for c in (row.completion_tokens, row.tokens, row.calls))
        print(
            f"{row.strategy:<22}{interval(row.accuracy):>20}{decoded:>10,.1f}{tokens:>12,.0f}{calls:>8,.1f}"
        )
    drawn = bootstrap_mean([_samples(results, problem.id) for problem in results.problems])
    gain, kept = summary.difference(BEST, ONE), summary.difference(ADAPTIVE, ONE)
    share = kept.value / gain.value if gain.value > 0 else float("nan")
    print(
        f"\n{BEST} over {ONE}: {interval(gain, signed=True)} points; {ADAPTIVE}: {interval(kept, signed=True)}"
    )
    greedy = interval(summary.difference(ADAPTIVE, GREEDY), signed=True)
    print(f"{ADAPTIVE} over {GREEDY}, which its first sample is: {greedy} points")
    print(f"{ADAPTIVE}: share of the gain {share:.2f}   {goals.at_least(share, SHARE)}")
    few = f"{drawn.value:.2f} [{drawn.low:.2f}, {drawn.high:.2f}]"
    print(f"{ADAPTIVE}: samples that count {few}   {goals.at_most(drawn.value, SAMPLES)}")
    _pair(summary, PRUNED, WHOLE, goals.check)
    _pair(summary, CONTINUOUS, WHOLE, lambda _, what: f"informative: {what}")
    _pair(summary, EARLY, VOTE, goals.check)


def _samples(results: Results, problem: str) -> float:
    """Samples that counted; those drawn ahead and stopped are in the tokens."""
    cells = results.of(ADAPTIVE, problem)
    return sum(len(cell.samples) for cell in cells) / len(cells)


def _pair(summary: Summary, less: str, more: str, verdict: Callable[[bool, str], str]) -> None:
    saved = 1 - summary.row(less).completion_tokens.total / summary.row(more).completion_tokens.total
    gap = summary.difference(less, more)
    print(f"{less}: decoded tokens saved {saved:.1%}   {verdict(saved >= SAVED, f'at least {SAVED:.0%}')}")
    within = verdict(gap.value >= -POINTS, f"within {100 * POINTS:g} point of {more}")
    print(f"{less}: points over {more} {interval(gap, signed=True)}   {within}")


async def measured(
    data: Dataset, chosen: Mapping[str, Strategy], llm: sg.Backend, out: Path, concurrency: int
) -> Results:
    """The results of a bench that says how far it is: one strategy after the other, so that what each decodes until
    a verdict has come does not depend on what the others ask of the engine."""
    started = last = time.monotonic()

    def listen(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last > 5 or progress.done + progress.failed == progress.total:
            last = time.monotonic()
            print(f"{progress.done} of {progress.total} runs, {last - started:.0f} s", flush=True)

    for name, strategy in chosen.items():
        print(name, flush=True)
        await run_bench(
            data, {name: strategy}, {"policy": llm}, out=out, concurrency=concurrency, listener=listen
        )
    return await run_bench(data, chosen, {"policy": llm}, out=out, concurrency=concurrency)


async def threshold(args: argparse.Namespace, llm: sg.Backend, out: Path) -> float:
    """Calibrated on the development set."""
    every = {ADAPTIVE: strategies(args.n, args.verifier, 2.0)[ADAPTIVE]}
    dev = await measured(load("gym:words/dev", limit=args.dev), every, llm, out, args.concurrency)
    runs = [[cell.samples for cell in dev.of(ADAPTIVE, problem.id)] for problem in dev.problems]
    chosen = calibrate(runs, args.verifier, ASKED).chosen
    print(f"tau {chosen.tau:.4g}: on dev {chosen.share:.2f} of the gain, {chosen.samples:.2f} samples")
    return chosen.tau


async def main() -> int:
    takes = parser(__doc__)
    takes.add_argument("--limit", type=int, default=300, help="problems")
    takes.add_argument("--dev", type=int, default=300, help="problems of the development set")
    takes.add_argument("--n", type=int, default=16, help="samples of best-of-n; a vote has twice as many")
    takes.add_argument("--split", default="test", help="test, or hard: longer than any in training")
    takes.add_argument("--verifier", default="step_judge", help="of best-of-n, plain and adaptive")
    takes.add_argument("--tau", type=float, help="of adaptive best-of-n, instead of a calibration")
    takes.add_argument("--model", help="a model folder (default: the shipped one)")
    takes.add_argument("--concurrency", type=int, default=8, help="problems at the same time")
    takes.add_argument("--out", type=Path, help="default: a folder for the model under runs/adaptive")
    args = takes.parse_args()

    llm = sg.connect(model=args.model)
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in llm.name)
    out: Path = args.out or Path("runs", "adaptive", f"{safe}-{args.split}-{args.n}-{args.verifier}")
    try:
        tau: float = args.tau if args.tau is not None else await threshold(args, llm, out / "dev")
        results = await measured(
            load("gym:words", split=args.split, limit=args.limit),
            strategies(args.n, args.verifier, tau),
            llm,
            out / f"{tau:.6g}",
            args.concurrency,
        )
    finally:
        await llm.aclose()
    summary = summarise(results)
    about = f"{len(results.problems)} problems of {results.manifest['data']}, n = {args.n}, {args.verifier}"
    print(f"\n{llm.name}, {about}")
    goals = Goals(informative=args.informative or args.split != "test")
    show(results, summary, goals)
    write_report(results, out / "report.html", summary)
    save_plot(
        summary, out / "plot.png", title=f"{results.manifest['data']}, {len(results.problems)} problems"
    )
    print(f"\nreport: {out / 'report.html'}")
    return goals.code


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
