"""Queries at the same time, cancelled, starved and timed out at random: nothing leaks, every token is on a bill."""

from __future__ import annotations

import asyncio
import random

import pytest

from runs_kit import random_runs
from stratagem.core.protocols import Strategy
from stratagem.core.usage import Usage
from stratagem.testing.loops import run
from stratagem.testing.toy import ToyModel, jittered

CHOSEN = [
    {"kind": "rpc", "n": 8},
    {"kind": "self_certainty", "n": 6},
    {"kind": "deep_confidence", "n": 10, "warmup": 3, "window": 2, "keep": 0.4, "parallel": 3},
    {"kind": "deep_confidence", "n": 10, "warmup": 3, "window": 2, "ahead": True, "consensus": 0.8},
    {"kind": "self_refine"},
    {"kind": "critique_revise", "rounds": 2, "verifier": "judge"},
    {"kind": "debate"},
    {"kind": "dynamic_prompting", "probe": 2},
    {"kind": "tournament", "n": 6},
    {"kind": "tournament", "n": 4, "matches": "all"},
]


@pytest.mark.parametrize("permits", [None, 5])
def test_a_soak_leaks_nothing_and_bills_every_token(permits: int | None) -> None:
    async def main() -> None:
        toy = ToyModel(permits=permits, pace=jittered(1))
        chosen = [Strategy.load(data) for data in CHOSEN]
        ended = await random_runs(toy, chosen, range(500), random.Random(2), 50)
        assert len(ended) == 500
        assert (toy.books.in_flight, toy.books.permits) == (0, 0)
        assert toy.books.aborted > 20
        assert sum((one.spent for one in ended.values()), Usage()) == toy.books.usage
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())
