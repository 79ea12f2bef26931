"""One vLLM server with the shipped model for all tests here, in a loop of its own thread."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from stratagem.backends.vllm.server import VLLMServer

MINI = Path(__file__).resolve().parents[2] / "backends/embedded/mini"
FLAGS = ["--enforce-eager", "--dtype", "float32", "--block-size", "32", "--max-model-len", "1024"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without vLLM these are skipped: `make test-vllm` runs them."""
    missing = importlib.util.find_spec("vllm") is None
    for item in items:
        if item.get_closest_marker("vllm") and missing:
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed here: make test-vllm"))


@pytest.fixture(scope="session")
def server() -> Iterator[VLLMServer]:
    """Started once. Its log is read in a thread, whatever the tests' own loops do."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    started = VLLMServer(MINI, FLAGS, name="mini", environment={"VLLM_CPU_KVCACHE_SPACE": "1"})
    try:
        asyncio.run_coroutine_threadsafe(started.__aenter__(), loop).result()
        yield started
        asyncio.run_coroutine_threadsafe(started.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
