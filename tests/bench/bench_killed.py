"""A bench in a process of its own, to be killed. Prints a line for each finished run, and for each paid call.

python bench_killed.py FOLDER
"""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from stratagem.backends.journaled import Journal, Journaled
from stratagem.bench.data import Problem
from stratagem.bench.runner import Progress, run_bench
from stratagem.core.backend import Backend
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


class Told(Journaled):
    """Tells what was paid for and is kept: asked for again, it would be paid twice."""

    async def remember(self, rows: Mapping[str, str]) -> None:
        await super().remember(rows)
        for key in rows:
            print("paid", self._run_id, key, flush=True)


def report(progress: Progress) -> None:
    if progress.cell is not None:
        print("done", progress.cell.key, flush=True)


async def main(out: Path) -> None:
    journal = Journal(out / "journal.sqlite")

    def keep(run_id: str, models: Mapping[str, Backend]) -> Mapping[str, Backend]:
        return {role: Told(model, journal, run_id) for role, model in models.items()}

    try:
        await run_bench(
            PROBLEMS,
            STRATEGIES,
            {"policy": ToyModel(pace=jittered(1))},
            out=out,
            seeds=SEEDS,
            concurrency=5,
            grader=Exact(),
            listener=report,
            journal=keep,
        )
    finally:
        await journal.aclose()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
