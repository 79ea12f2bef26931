"""The live display, on a pseudo-terminal: drawn while work goes on, gone when it has ended."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from stratagem.testing.server import SimSettings, SimulatedServer


def watched(*arguments: str) -> tuple[str, str]:
    """Standard output, and what the terminal on standard error was sent."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "stratagem.cli", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
    ) as process:
        os.close(theirs)
        seen = bytearray()
        while piece := _read(ours):
            seen += piece
        os.close(ours)
        assert process.stdout is not None
        out = process.stdout.read().decode()
    assert process.returncode == 0, seen.decode()
    return out, seen.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so where the other end is closed
        return b""


@pytest.mark.parametrize("command", ["solve", "bench"])
def test_it_is_drawn_and_leaves_nothing(command: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "What is 1 + 1?", "answer": "2"}\n')
    arguments = {
        "solve": ("solve", "What is 1 + 1?", "--set", "n=3"),
        "bench": ("bench", f"jsonl:{rows}", "--strategies", "direct", "--out", str(tmp_path / "out")),
    }[command]
    drawn, last = {"solve": ("in flight", "in flight"), "bench": ("0/1", "1/1")}[command]

    async def main() -> None:
        async with SimulatedServer(SimSettings(first_token=0.3)) as server:
            out, seen = await asyncio.to_thread(watched, *arguments, "--base-url", server.url)
            assert drawn in seen
            assert drawn not in out
            assert "\x1b" not in out
            assert "\x1b[2K" in seen.rpartition(last)[2]  # the last picture is wiped

    asyncio.run(main())
