"""What servers count, through pools and wrappers; servers that tell nothing."""

from __future__ import annotations

import asyncio

import pytest

from openai_kit import connected
from stratagem.backends.cached import Cached
from stratagem.backends.openai import OpenAIBackend
from stratagem.backends.pooled import Pooled
from stratagem.core.counts import counts_of
from stratagem.core.errors import ProtocolError, UnavailableError
from stratagem.testing.toy import ToyModel

NOBODY = "http://127.0.0.1:9/v1"


def test_a_server_without_metrics_says_so_and_is_left_out() -> None:
    async def main() -> None:
        async with connected() as (_, backend):
            with pytest.raises(ProtocolError, match=r"shows no metrics\. Ask vLLM itself"):
                await backend.counts()
            assert await counts_of([Cached(Pooled([backend], name="pool")), ToyModel()]) == {}
            assert await backend.configuration() is None

    asyncio.run(main())


def test_a_server_that_is_not_there() -> None:
    async def main() -> None:
        backend = OpenAIBackend(NOBODY, retries=0)
        with pytest.raises(UnavailableError):
            await backend.counts()
        assert await counts_of([backend]) == {}
        await backend.aclose()

    asyncio.run(main())
