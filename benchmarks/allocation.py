"""Whether one budget for many problems is spent better where it pays than on all alike, on the embedded model and
problems that it has never seen.

    python benchmarks/allocation.py [--limit 300] [--widths 2 4 8] [--verifiers step_judge restart votes]

For each verifier and width, all problems get as many samples first (best-of-n, or the vote for `votes`). Then
allocation gets all tokens that these have cost, prompts and judgements included, and spends them by predicted gain.
Printed are both accuracies, the paired difference with its 95 % bootstrap interval over problems, and what
allocation has spent of the tokens, all and decoded. Goal, over all verifiers and widths: on average at least as
accurate at no more tokens.

Exits with 1 if the goal is missed (--informative: with 0).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from statistics import fmean

import stratagem as sg
from accuracy import interval
from goals import Goals, parser
from stratagem.bench.data import Problem, load
from stratagem.bench.statistics import bootstrap_mean, paired_difference
from stratagem.core.protocols import Strategy

VOTES = "votes"
MOST = 8  # times the width, for one problem


def uniform(verifier: str, n: int) -> Strategy:
    """The same for every problem."""
    if verifier == VOTES:
        return Strategy.load({"kind": "self_consistency", "n": n})
    return Strategy.load({"kind": "best_of_n", "n": n, "verifier": verifier})


def allocated(verifier: str, n: int) -> Strategy:
    """Where it pays."""
    chosen = None if verifier == VOTES else verifier
    return Strategy.load({"kind": "allocation", "n": MOST * n, "least": 0.0, "verifier": chosen})


async def answered(
    problems: Sequence[Problem], strategy: Strategy, llm: sg.Backend, budget: int | None
) -> tuple[list[float], int, int]:
    """Which are right, all tokens, and the decoded ones."""
    limits = sg.Budget(tokens=budget)
    answers = await sg.solve_all([problem.task for problem in problems], strategy, llm=llm, budget=limits)
    right = [float(answer.value == problem.gold) for answer, problem in zip(answers, problems, strict=True)]
    return (
        right,
        sum(answer.usage.tokens for answer in answers),
        sum(answer.usage.completion_tokens for answer in answers),
    )


async def main() -> int:
    takes = parser(__doc__)
    takes.add_argument("--limit", type=int, default=300, help="problems")
    takes.add_argument("--widths", nargs="+", type=int, default=[2, 4, 8])
    takes.add_argument("--verifiers", nargs="+", default=["step_judge", "restart", VOTES])
    takes.add_argument("--split", default="test", help="test, or hard: longer than any in training")
    takes.add_argument("--model", help="a model folder (default: the shipped one)")
    args = takes.parse_args()

    problems = load("gym:words", split=args.split, limit=args.limit).problems
    llm = sg.connect(model=args.model)
    gains: list[float] = []
    print(
        f"{'verifier':<12}{'n':>4}{'the same for all':>20}{'allocated':>20}{'difference':>22}   tokens, decoded"
    )
    try:
        for verifier in args.verifiers:
            for n in args.widths:
                same, tokens, decoded = await answered(problems, uniform(verifier, n), llm, None)
                best, spent, mine = await answered(problems, allocated(verifier, n), llm, tokens)
                gain = paired_difference(best, same)
                gains.append(gain.value)
                figures = (interval(bootstrap_mean(same)), interval(bootstrap_mean(best)))
                print(
                    f"{verifier:<12}{n:>4}{figures[0]:>20}{figures[1]:>20}{interval(gain, signed=True):>22}"
                    f"   {spent / tokens:.3f}, {mine / decoded:.3f}",
                    flush=True,
                )
    finally:
        await llm.aclose()
    goals = Goals(informative=args.informative or args.split != "test")
    print(f"mean difference {100 * fmean(gains):+.1f} points   {goals.at_least(fmean(gains), 0.0)}")
    return goals.code


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
