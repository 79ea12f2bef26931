"""What the framework must not cost: heavy imports, and anything that does not hold for many runs at once."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from stratagem.core.asking import POLICY
from stratagem.core.budget import Budget, Ledger
from stratagem.core.execute import execute
from stratagem.core.protocols import Strategy
from stratagem.core.run import Run
from stratagem.core.task import Answer, Task
from stratagem.testing.loops import run
from stratagem.testing.toy import ToyModel

TASK = Task.of("How many apples are left?")


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, stratagem\nprint(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    heavy = {"numpy", "sympy", "openai", "langgraph", "tokenizers", "torch", "matplotlib", "pyarrow", "typer"}
    assert "stratagem" in printed.split()
    assert heavy.isdisjoint(printed.split())


def test_1000_runs_at_once_hold() -> None:
    async def main() -> None:
        toy = ToyModel(permits=64)
        strategy = Strategy.load({"kind": "self_consistency", "n": 4, "max_tokens": 20})

        async def one(seed: int) -> tuple[Answer, Ledger]:
            ledger = Ledger(Budget(tokens=1000))
            return await execute(strategy, TASK, Run({POLICY: toy}, ledger=ledger, seed=seed)), ledger

        ended = await asyncio.gather(*map(one, range(1000)))
        assert toy.books.peak == 64
        assert (toy.books.in_flight, toy.books.permits) == (0, 0)
        assert all(ledger.idle for _, ledger in ended)
        assert sum(answer.usage.tokens for answer, _ in ended) == toy.books.usage.tokens
        alone = await execute(strategy, TASK, Run({POLICY: ToyModel()}, seed=7))
        assert ended[7][0].text == alone.text

    run(main())
