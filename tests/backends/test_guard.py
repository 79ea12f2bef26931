"""The guard between this process and a server: nothing that it started outlives its parent."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

# Opens the pipe, starts two more of its kind in sessions of their own, one below the other, and waits; it ignores
# the polite signal.
TREE = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
alive = open(sys.argv[1], "w")
depth = int(sys.argv[2])
if depth:
    subprocess.Popen([sys.executable, __file__, sys.argv[1], str(depth - 1)], start_new_session=True)
alive.write("x")
alive.flush()
signal.pause()
"""
PARENT = """
import signal, subprocess, sys
subprocess.Popen([sys.executable, "-m", "stratagem.backends.vllm._guard", *sys.argv[1:]], stdin=subprocess.PIPE)
signal.pause()
"""


def read(pipe: BinaryIO, count: int) -> bytes:
    """So many bytes, or fewer at the end: when all who could write are gone."""
    found = b""
    while len(found) < count:
        assert select.select([pipe], [], [], 60)[0], f"still waiting after {found!r}"
        piece = os.read(pipe.fileno(), count - len(found))
        if not piece:
            break
        found += piece
    return found


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    fifo, tree = tmp_path / "alive", tmp_path / "tree.py"
    os.mkfifo(fifo)
    tree.write_text(TREE)
    command = [sys.executable, "-c", PARENT, "0.2", sys.executable, str(tree), str(fifo), "2"]
    with subprocess.Popen(command) as parent:
        with fifo.open("rb", buffering=0) as alive:
            assert read(alive, 3) == b"xxx", "all three run"
            parent.send_signal(how)
            assert read(alive, 1) == b"", "all three are gone"
        parent.wait()


def guard(*command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "stratagem.backends.vllm._guard", "5", sys.executable, "-c", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def test_the_exit_code_is_the_commands() -> None:
    with guard("import sys; print('hello'); sys.exit(3)") as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"hello\n"
        assert process.wait() == 3


def test_a_command_that_can_end_by_itself_is_let() -> None:
    polite = """
import signal, sys
def end(*_):
    print("bye", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("up", flush=True)
signal.pause()
"""
    with guard(polite) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"up\n"
        process.stdin.close()
        assert process.stdout.read() == b"bye\n"
        assert process.wait() == 0
