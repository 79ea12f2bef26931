"""A bench in a process of its own, to be killed. Prints a line for each finished run.

python bench_killed.py FOLDER
"""

import asyncio
import sys

from stratagem.bench.data import Problem
from stratagem.bench.runner import Progress, run_bench
from stratagem.core.protocols import Strategy
from stratagem.core.task import Task
from stratagem.strategies.chain_of_thought import ChainOfThought
from stratagem.strategies.self_consistency import SelfConsistency
from stratagem.testing.language import right_answer
from stratagem.testing.toy import ToyModel, jittered
from stratagem.verifiers.exact import Exact

PROBLEMS = [
    Problem(f"q{i}", Task.of(f"Question {i}?", id=f"q{i}"), right_answer(f"Question {i}?")) for i in range(12)
]
STRATEGIES: dict[str, Strategy] = {"one": ChainOfThought(), "vote": SelfConsistency(n=4)}
SEEDS = (0, 1)


def report(progress: Progress) -> None:
    if progress.cell is not None:
        print(progress.cell.key, flush=True)


if __name__ == "__main__":
    model = ToyModel(pace=jittered(len(sys.argv)))
    asyncio.run(
        run_bench(
            PROBLEMS,
            STRATEGIES,
            {"policy": model},
            out=sys.argv[1],
            seeds=SEEDS,
            concurrency=5,
            grader=Exact(),
            listener=report,
        )
    )
