"""Divide-Then-Aggregate against ReAct, sequential calling and DFSDT, with the shipped model on unseen tool worlds.

    python benchmarks/agents.py [--problems 200] [--latency 0.1] [--first 0] [--split test] [--out FILE]

Each problem is answered by each strategy with tools that take ``latency`` seconds, one problem at a time, so that
wall time is what a user waits. Printed: success, tokens (prompts with all that they repeat, and completions), wall
time, with 95 % intervals (bootstrap over problems), and how many lines of plans are calls. Goals: success at least
ReAct's and DFSDT's, tokens and time at most 0.6 of theirs (ratios of means), every line of a constrained plan is a
call.

Exits with 1 if a goal is missed (--informative: with 0).
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import stratagem as sg
from goals import Goals, parser
from stratagem.bench.gym import Split
from stratagem.bench.gym.toolworld import ToolWorld
from stratagem.bench.statistics import bootstrap_mean
from stratagem.tools.toolbox import read_only

BOOTSTRAP = 2000
STRATEGIES: dict[str, sg.Strategy] = {
    "dta": sg.DivideThenAggregate(),
    "sequential": sg.SequentialCalling(),
    "react": sg.ReAct(),
    "dfsdt": sg.DFSDT(),
}


@dataclass
class Measured:
    """What one strategy did, problem by problem."""

    right: list[bool] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    lines: int = 0
    calls: int = 0  # lines that are calls


async def measure(
    problems: int, first: int, split: Split, latency: float, model: str | None
) -> dict[str, Measured]:
    world, llm = ToolWorld(), sg.connect(model=model)
    found = {name: Measured() for name in STRATEGIES}
    await llm.generate(sg.Request((sg.Message("user", "Hello."),), max_tokens=1))  # loads the model
    for index in range(first, first + problems):
        problem = world.problem(split, index)
        for name, strategy in STRATEGIES.items():
            tools = read_only(world.functions(problem, latency))
            started = time.monotonic()
            answer = await sg.solve(problem.question, strategy, llm=llm, tools=tools, seed=index)
            one = found[name]
            one.seconds.append(time.monotonic() - started)
            one.right.append(answer.value == problem.answer)
            one.tokens.append(answer.usage.tokens)
            one.lines += len(answer.calls)
            one.calls += sum(bool(call.tool) for call in answer.calls)
    return found


def mean(values: list[int] | list[float] | list[bool]) -> float:
    return sum(values) / len(values)


def ratio_of_means(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """With its 95 % interval, by a bootstrap over problems."""
    rng, pairs = random.Random(0), list(zip(ours, theirs, strict=True))

    def ratio(drawn: Sequence[tuple[float, float]]) -> float:
        return sum(a for a, _ in drawn) / sum(b for _, b in drawn)

    found = sorted(ratio(rng.choices(pairs, k=len(pairs))) for _ in range(BOOTSTRAP))
    return ratio(pairs), found[BOOTSTRAP // 40], found[-BOOTSTRAP // 40]


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--problems", type=int, default=200)
    p.add_argument("--first", type=int, default=0)
    p.add_argument("--split", default="test", choices=("dev", "test", "hard"))
    p.add_argument("--model", help="folder of another model for the embedded engine")
    p.add_argument("--latency", type=float, default=0.1, help="seconds of each call")
    p.add_argument("--out", type=Path, help="write the figures as JSON")
    a = p.parse_args()
    found = asyncio.run(measure(a.problems, a.first, a.split, a.latency, a.model))
    goals = Goals(informative=a.informative)
    for name, one in found.items():
        success = bootstrap_mean([float(right) for right in one.right])
        print(
            f"{name:10}  success {success.value:.3f} [{success.low:.3f}, {success.high:.3f}]"
            f"  tokens {mean(one.tokens):6.0f}  seconds {mean(one.seconds):.3f}"
        )
    dta = found["dta"]
    for name in ("react", "dfsdt"):
        other = found[name]
        gain = mean(dta.right) - mean(other.right)
        print(f"dta beside {name}: success {gain:+.3f} {goals.at_least(gain, 0.0)}")
        for what, ours, theirs in (
            ("tokens", dta.tokens, other.tokens),
            ("time", dta.seconds, other.seconds),
        ):
            ratio, low, high = ratio_of_means(ours, theirs)
            # Who gives up early is quick: the same work is compared only where both do it.
            both = [
                pair
                for pair, *right in zip(zip(ours, theirs, strict=True), dta.right, other.right, strict=True)
                if all(right)
            ]
            solved = f"{ratio_of_means(*zip(*both, strict=True))[0]:.3f}" if both else "none"
            print(
                f"  {what} {ratio:.3f} [{low:.3f}, {high:.3f}] {goals.at_most(ratio, 0.6)};"
                f" where both are right ({len(both)}) {solved}"
            )
    share = dta.calls / max(1, dta.lines)
    print(f"lines of plans that are calls: {dta.calls} of {dta.lines} {goals.at_least(share, 1.0)}")
    if a.out:
        a.out.write_text(json.dumps({name: vars(one) for name, one in found.items()}))
    return goals.code


if __name__ == "__main__":
    sys.exit(main())
