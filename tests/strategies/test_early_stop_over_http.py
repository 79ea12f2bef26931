"""Over HTTP too one of many samples is stopped in the engine, and the rest goes on: by the server's own books."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, ClassVar

import pytest

import stratagem as sg
from stratagem.testing.loops import run
from stratagem.testing.server import SimSettings, SimulatedServer

SETTINGS: list[dict[str, Any]] = [
    {"kind": "pruned_best_of_n", "n": 12, "unit": "token", "checkpoints": (10,), "keep": 0.25},
    {"kind": "pruned_best_of_n", "n": 12, "unit": "token", "every": 10, "margin": 0.2},
    {"kind": "adaptive_best_of_n", "n": 16, "tau": 0.9},
]


class Start(sg.Verifier):
    """A score by the first word of a text."""

    kind: ClassVar[str] = "start_in_tests"

    async def __call__(
        self, task: sg.Task, candidates: Sequence[sg.Candidate], run: sg.Run
    ) -> list[sg.Verdict]:
        return [sg.Verdict(zlib.crc32(c.text.split()[0].encode()) % 100 / 100) for c in candidates]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_the_server_decodes_no_more_than_is_needed(settings: dict[str, Any]) -> None:
    async def main() -> None:
        strategy = sg.Strategy.load({**settings, "verifier": Start()})
        stopped = 0
        for seed in range(4):
            async with SimulatedServer(SimSettings(mean_tokens=60, spread=0.2, per_token=0.01)) as server:
                async with aclosing(sg.connect(server.url)) as llm:
                    answer = await sg.solve("Which?", strategy, llm=llm, seed=seed)
                totals = server.totals()
                stopped += totals.aborted
                usage, uncertain = answer.usage.completion_tokens, answer.usage.uncertain_tokens
                assert usage <= totals.decoded <= usage + uncertain
                assert answer.stopped == "complete"
        assert stopped > 0

    run(main())
