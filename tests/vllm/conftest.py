"""Real vLLM servers with the shipped model, each started once for all tests that ask for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from stratagem.backends.vllm.server import VLLMServer
from vllm_kit import FLAGS, serving


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without vLLM these are skipped: `make test-vllm` runs them."""
    missing = importlib.util.find_spec("vllm") is None
    for item in items:
        if item.get_closest_marker("vllm") and missing:
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed here: make test-vllm"))


@pytest.fixture(scope="session")
def server() -> Iterator[VLLMServer]:
    """By the profile `agent`."""
    with serving("agent", FLAGS) as started:
        yield started


@pytest.fixture(scope="session")
def eight_bits() -> Iterator[VLLMServer]:
    """By the profile `long-context`: a KV cache of 8 bits; and no prefixes shared."""
    with serving("long-context", [*FLAGS, "--no-enable-prefix-caching"]) as started:
        yield started
