"""The real command, as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from stratagem.cli import main

Completed = subprocess.CompletedProcess[str]
_COMMAND = [sys.executable, "-m", "stratagem.cli"]


def _environment(changes: dict[str, str] | None) -> dict[str, str]:
    """This one without what would change the output; one thread of BLAS, as elsewhere in the tests."""
    clean = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    return clean | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"} | (changes or {})


@pytest.fixture
def cli() -> Callable[..., Completed]:
    """``cli("solve", "...", stdin=b"", env={})`` runs to the end and gives exit code, stdout and stderr."""

    def run(*arguments: str | bytes, stdin: bytes = b"", env: dict[str, str] | None = None) -> Completed:
        done = subprocess.run(
            [*_COMMAND, *arguments], input=stdin, capture_output=True, env=_environment(env), timeout=300
        )
        return Completed(arguments, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture
def inside(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Completed]:
    """As ``cli``, in this process: for many short calls. Call it where no event loop runs."""

    def run(*arguments: str | bytes) -> Completed:
        given = [os.fsdecode(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["stratagem", *given])
        code = main()
        shown = capfd.readouterr()
        return Completed(arguments, code, shown.out, shown.err)

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``start("bench", ...)`` leaves it running; whatever still runs after the test is killed."""
    running: list[subprocess.Popen[str]] = []

    def popen(*arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*_COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=_environment(env),
        )
        running.append(process)
        return process

    yield popen
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()
