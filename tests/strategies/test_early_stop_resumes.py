"""Strategies that stop samples early, cancelled anywhere and run again with their journal, give the same answer."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

import stratagem as sg
from stratagem.backends.journaled import Journal, Journaled
from stratagem.core.trace import Record
from stratagem.testing.toy import ToyModel, jittered

Running = asyncio.Future[sg.Answer]
SETTINGS: list[dict[str, Any]] = [
    {"kind": "adaptive_best_of_n", "n": 8, "tau": 0.95},
    {"kind": "early_stopping_consistency", "n": 16, "ahead": 2},
    {"kind": "pruned_best_of_n", "n": 8},
    {"kind": "pruned_best_of_n", "n": 8, "every": 1, "margin": 0.2, "verifier": "step_judge"},
    {"kind": "pruned_best_of_n", "n": 8, "unit": "token", "checkpoints": [1, 2], "explore": 0.2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_the_same_answer_and_nothing_finished_is_paid_for_twice(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    strategy = sg.Strategy.load(settings)
    rng = random.Random(0)

    def shape(answer: sg.Answer) -> tuple[object, ...]:
        return answer.text, answer.confidence, [(c.text, c.scores) for c in answer.candidates]

    async def main() -> None:
        whole = await sg.solve("Which?", strategy, llm=ToyModel(), seed=3)
        journal = Journal(tmp_path / "calls.sqlite")
        for trial in range(4):
            finished: list[int] = []
            for sitting in range(3):
                toy = ToyModel(pace=jittered(rng.randint(0, 99)))
                trace = sg.Trace()
                llm = Journaled(toy, journal, f"run {trial}")
                running = asyncio.ensure_future(sg.solve("Which?", strategy, llm=llm, seed=3, trace=trace))
                if sitting < 2:
                    events = rng.randint(1, 40)

                    def listen(record: Record, events: int = events, one: Running = running) -> None:
                        if record.number == events:
                            one.cancel()

                    trace.listeners.append(listen)
                await asyncio.wait([running])
                assert toy.books.in_flight == 0
                finished.append(toy.books.usage.calls - toy.books.aborted)
                if not running.cancelled():
                    assert shape(running.result()) == shape(whole)
            assert sum(finished) <= 3 * whole.usage.calls
        await journal.aclose()

    asyncio.run(main())
