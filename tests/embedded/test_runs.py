"""Runs on the embedded engine: it knows its cost to the token, also of what was stopped at whatever point."""

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from runs_kit import cancel_at_random_points, random_runs, strategies
from stratagem.backends.embedded.backend import EmbeddedBackend
from stratagem.backends.embedded.cache import BlockCache
from stratagem.backends.embedded.forward import Chunk, Model
from stratagem.core.budget import Ledger
from stratagem.core.usage import Usage
from stratagem.testing.loops import StepLoop
from stratagem.testing.loops import run as run_in


@pytest.fixture
def roomy(make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> EmbeddedBackend:
    """A random model with room for a question, an answer and a judge's question about it."""
    monkeypatch.setenv("STRATAGEM_THREADS", "1")
    return EmbeddedBackend(make_model("roomy", max_position_embeddings=512))


def books(backend: EmbeddedBackend) -> Usage:
    """What the engine has worked off in all; nothing is under way."""
    stats = backend.stats()
    assert (stats.running, stats.waiting, stats.blocks_active) == (0, 0, 0)
    prompt = stats.prefilled_tokens + stats.cached_tokens
    return Usage(prompt, stats.decoded_tokens, stats.cached_tokens, calls=stats.ended)


@pytest.mark.slow
def test_1000_random_runs_report_what_the_engine_worked_off(
    roomy: EmbeddedBackend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the token: judges, what was cancelled, and what the engine broke down on included."""
    rng, part = random.Random(5), 50
    forward, breaks = Model.forward, random.Random(6)

    def breaking_at_times(self: Model, chunks: Sequence[Chunk], cache: BlockCache) -> NDArray[np.float32]:
        if breaks.random() < 0.01:
            raise MemoryError("no room")
        return forward(self, chunks, cache)

    async def main() -> str:
        await roomy.capabilities()
        total, cut = Usage(), 0
        for first in range(0, 1000, part):
            ended = await random_runs(roomy, strategies(4, 12), range(first, first + part), rng, 20)
            total = sum((run.spent for run in ended.values()), total)
            assert total == books(roomy)
            cut += sum(run.cut for run in ended.values())
        aborted = roomy.stats().aborted
        await roomy.aclose()
        assert cut > 200
        assert aborted > 100
        return f"1,000 runs, {cut} cut, {aborted} jobs aborted: {total.tokens:,} tokens by both counts"

    monkeypatch.setattr(Model, "forward", breaking_at_times)
    said = asyncio.run(main())
    with capsys.disabled():
        print(f"\nembedded: {said}")


@pytest.mark.slow
def test_500_runs_cancelled_at_random_points_leave_nothing_in_the_engine(
    roomy: EmbeddedBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> tuple[int, int]:
        await roomy.capabilities()
        before = Usage()

        async def check(ledger: Ledger) -> None:
            nonlocal before
            after = books(roomy)
            assert before + ledger.spent == after
            before = after

        taken = await cancel_at_random_points(
            500, strategies(4, 8), lambda _: roomy, check, tokens=[None, 200, 600]
        )
        aborted = roomy.stats().aborted
        await roomy.aclose()
        return taken, aborted

    taken, aborted = run_in(main(), StepLoop)
    with capsys.disabled():
        print(f"\ncancelled at 500 random points in process in {taken} runs; {aborted} jobs aborted")
    assert aborted > 50
