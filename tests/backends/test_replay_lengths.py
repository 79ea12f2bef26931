"""A completion that ended by itself is remembered whatever `max_tokens` it was asked with; one cut short is not."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from stratagem.backends.journaled import Journaled
from stratagem.core.backend import Message, Request
from stratagem.testing.toy import ToyModel


def test_only_what_was_cut_short_depends_on_max_tokens(tmp_path: Path) -> None:
    async def main() -> None:
        toy = ToyModel()
        journaled = Journaled(toy, tmp_path / "calls.sqlite", "run")
        whole = Request((Message("user", "What is 2 + 3?"),), n=3, seed=5, max_tokens=200)
        counts = [c.token_count for c in (await toy.generate(whole)).completions]
        assert min(counts) < max(counts) < 200
        short = replace(whole, max_tokens=max(counts) - 1)

        async def decoded(request: Request) -> int:
            """Tokens that the model had to decode; what is given is what it gives without a memory."""
            alone = (await toy.generate(request)).completions
            before = toy.books.usage.completion_tokens
            generation = await journaled.generate(request)
            assert generation.completions == alone
            new = toy.books.usage.completion_tokens - before
            assert generation.replayed == (new == 0)
            return new

        most = max(counts)
        assert await decoded(short) == sum(min(count, most - 1) for count in counts)
        assert await decoded(short) == 0
        assert await decoded(whole) == sum(count for count in counts if count == most)  # the others are known
        assert await decoded(replace(whole, max_tokens=500)) == 0
        assert await decoded(short) == 0
        shorter = replace(whole, max_tokens=min(counts) - 1)
        assert await decoded(shorter) == 3 * (min(counts) - 1)
        await journaled.aclose()

    asyncio.run(main())
