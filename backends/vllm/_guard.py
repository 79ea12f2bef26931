"""Runs a command and ends it, with all its descendants, when standard input closes: when the parent is gone.

    python -m stratagem.backends.vllm._guard GRACE COMMAND...

A parent killed by SIGKILL cannot stop its children; the pipe it held closes all the same. GRACE is the time, in
seconds, between asking the command to end and killing it. Only the standard library: it must start at once.

Processes that multiprocessing starts end themselves when they have been sent a :class:`Leash`.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_SUBREAPER = 36  # prctl: descendants whose parent has died become this process's children


class Leash:
    """Sent to a process that multiprocessing spawns, as a part of anything, it ends that process when the sender is
    gone, however it went (on Linux, since 5.3). Copied, or sent in another way, it does nothing."""

    def __reduce__(self) -> tuple[Callable[[int], Leash], tuple[int]]:
        return _leashed, (os.getpid(),)


def _leashed(sender: int) -> Leash:
    """What comes out of a leash: in a spawned process before it does anything else."""
    spawned = "--multiprocessing-fork" in sys.orig_argv
    if sys.platform == "linux" and spawned and sender != os.getpid():
        try:
            watched = os.pidfd_open(sender)
        except ProcessLookupError:
            os._exit(1)
        except OSError:  # a system that cannot
            return Leash()
        threading.Thread(target=_end_with, args=(watched,), daemon=True).start()
    return Leash()


def _end_with(process: int) -> None:
    select.select([process], [], [])
    os._exit(1)  # nobody is left to hear more


def _children() -> list[int]:
    """Direct children, where the system tells (Linux)."""
    try:
        tasks = list(Path("/proc/self/task").iterdir())
        return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    except OSError:
        return []


def _kill_all(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    while orphans := _children():
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)  # its own children then come up in the next round


def main(grace: float, command: list[str]) -> int:
    """The command's exit code."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    # The terminal's Ctrl-C goes to the parent, which then ends this process; the command has a group of its own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wake, woken = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(woken, b"t"))
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def wait() -> None:
        child.wait()
        os.write(woken, b"e")

    threading.Thread(target=wait, daemon=True).start()
    select.select([0, wake], [], [])  # nothing is ever written to standard input: readable means closed
    if child.poll() is None:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(child.pid, signal.SIGTERM)
            child.wait(grace)
    _kill_all(child)
    return child.returncode


if __name__ == "__main__":
    sys.exit(abs(main(float(sys.argv[1]), sys.argv[2:])))
