"""Both sandboxes: what they run, their limits, and a battery of attempts to get out."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stratagem as sg
from stratagem.core.sandbox import Executed, Sandbox
from stratagem.tools.sandbox import MontySandbox, ProcessSandbox, python_tool
from stratagem.tools.tool import Failed, Value

BOTH: dict[str, Callable[..., Sandbox]] = {"monty": MontySandbox, "process": ProcessSandbox}
SECRET = "STRATAGEM_TEST_SECRET"


@pytest.fixture(params=list(BOTH))
def make(request: pytest.FixtureRequest) -> Callable[..., Sandbox]:
    return BOTH[request.param]


def ran(sandbox: Sandbox, program: str, **inputs: Any) -> Executed:
    return asyncio.run(sandbox.run(program, inputs))


def test_the_value_of_the_last_line_and_what_is_printed(make: Callable[..., Sandbox]) -> None:
    done = ran(make(), "print('a', x)\ny = [x, {'k': None}]\ny", x=1.5)
    assert (done.ended, done.value, done.output, done.error) == ("done", [1.5, {"k": None}], "a 1.5\n", "")
    assert ran(make(), "x = 1").value is None
    assert ran(make(), "").ok
    assert ran(make(), "('a', {1: True})").value == ["a", {"1": True}]


def test_the_line_of_an_error_is_told() -> None:
    assert ran(ProcessSandbox(), "x = 1\nraise ValueError('no')").error == "ValueError: no (line 2)"
    rude = "class Rude(Exception):\n    def __str__(self): raise Rude\nraise Rude"
    assert ran(ProcessSandbox(), rude).error == "Rude (line 3)"


def test_leaving_with_status_0_is_an_end_like_any() -> None:
    assert ran(ProcessSandbox(), "import sys\nprint('a')\nsys.exit(0)").output == "a\n"
    assert ran(ProcessSandbox(), "import sys\nsys.exit()").ok
    assert ran(ProcessSandbox(), "import sys\nsys.exit('no')").ended == "exception"


def test_a_value_as_large_as_the_limit_comes_back_whole_and_one_byte_more_does_not(
    make: Callable[..., Sandbox],
) -> None:
    sandbox = make(output=1_000_000)
    assert ran(sandbox, "print('b' * 999_999)\n'a' * 999_998").value == "a" * 999_998
    assert ran(sandbox, "'a' * 999_999").ended == "result"


@pytest.mark.parametrize(
    ("program", "ended", "words"),
    [
        ("def (", "syntax", "SyntaxError"),
        ("raise ValueError('no')", "exception", "ValueError: no"),
        ("1 / 0", "exception", "ZeroDivisionError"),
        ("def f(): return f()\nf()", "exception", "RecursionError"),
        ("{1, 2}", "result", "no JSON"),
        ("float('nan')", "result", "no JSON"),
        ("'x' * 30_000", "result", "20000 "),
        ("a = [0] * 9999\nb = [a] * 9999\nc = [b] * 9999\n[c] * 9999", "result", "20000 "),
        ("while True: pass", "timeout", "1 s"),
        ("import time\ntime.sleep(60)", "timeout", "1 s"),
        ("x = 'a' * 10**10", "memory", "Memory"),
        ("x = []\nwhile True: x.append('a' * 10_000_000)", "memory", "Memory"),
        ("while True: print('a' * 1000)", "output", "20000 "),
        ("print('a' * 10_000_000)", "output", "20000 "),
    ],
)
def test_failures_are_data(make: Callable[..., Sandbox], program: str, ended: str, words: str) -> None:
    if "[c]" in program and make is ProcessSandbox:
        ended, words = "timeout", "1 s"  # it writes the value down in the process, in its time and memory
    done = ran(make(timeout=1.0 if ended == "timeout" else 20.0, memory=50_000_000), program)
    assert (done.ended, done.ok, words in done.error) == (ended, False, True), done
    assert len(done.output) <= 20_000


@pytest.mark.parametrize(
    "program", ["10**10**10", "list(range(10**12))", "[] if sorted([0] * 10**12) else 0"]
)
def test_one_endless_operation_is_stopped_like_a_loop(make: Callable[..., Sandbox], program: str) -> None:
    done = ran(make(timeout=0.5), program)
    assert done.ended in ("timeout", "memory"), done


ESCAPES = {
    "read a file": "open('{file}').read()",
    "read a file by os": "import os\nos.read(os.open('{file}', 0), 100)",
    "write a file": "open('{file}', 'w').write('x')",
    "make a file": "open('{file}.new', 'w')",
    "delete a file": "import os\nos.remove('{file}')",
    "rename a file": "import os\nos.rename('{file}', '{file}.moved')",
    "change a mode": "import os\nos.chmod('{file}', 0o777)",
    "change times": "import os\nos.utime('{file}', (0, 0))",
    "link a file": "import os\nos.link('{file}', '{file}.link')",
    "make a symbolic link": "import os\nos.symlink('/', '{file}.link')",
    "make a directory": "import os\nos.mkdir('{file}.dir')",
    "list a directory": "import os\nos.listdir('/')",
    "list what is installed": "import os, sysconfig\nos.listdir(sysconfig.get_path('purelib'))",
    "list the folder around it": "import os\nos.listdir(os.path.dirname(os.__file__))",
    "import what is installed": "import sys, sysconfig\nsys.path.append(sysconfig.get_path('purelib'))\nimport pip",
    "a file by pathlib": "from pathlib import Path\nPath('{file}').read_text()",
    "the environment of the parent": "open('/proc/{parent}/environ').read()",
    "the memory of the parent": "open('/proc/{parent}/mem', 'rb')",
    "its own descriptors": "import os\nos.listdir('/proc/self/fd')",
    "a socket": "import socket\nsocket.socket()",
    "a request": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{port}/')",
    "a local socket": "import socket\nsocket.socket(socket.AF_UNIX)",
    "a shell": "import os\nassert os.system('true') == 0",
    "a program": "import subprocess\nsubprocess.run(['true'], check=True)",
    "a program by exec": "import os\nos.execv('/bin/sh', ['sh', '-c', 'touch {file}.new'])",
    "a spawned program": "import os\nos.posix_spawn('/bin/sh', ['sh', '-c', 'touch {file}.new'], {{}})",
    "a fork": "import os\nos.fork()",
    "a fork bomb": "import os\nwhile True: os.fork()",
    "multiprocessing": "import multiprocessing\nmultiprocessing.Process(target=print).start()",
    "a signal to the parent": "import os\nos.kill({parent}, 9)",
    "a signal to all": "import os\nos.kill(-1, 9)",
    "a new session": "import os\nos.setsid()",
    "a trace of the parent": "import ctypes\nassert ctypes.CDLL(None).ptrace(16, {parent}, 0, 0) == 0",
    "another user": "import os\nos.setuid(65534)",
    "shared memory": "from multiprocessing import shared_memory\nshared_memory.SharedMemory(create=True, size=10)",
    "a namespace": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "a mount": "import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, 0) == 0",
    "a raw system call": "import ctypes\nassert ctypes.CDLL(None).syscall(41, 2, 1, 0) >= 0",
    "more memory": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "the limits of the parent": "import resource\nresource.prlimit({parent}, resource.RLIMIT_NOFILE, (1, 1))",
    "signals by a pipe's owner": "import fcntl, os\nfcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, {parent})",
    "a datagram to an address": "import socket\nsocket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "a stream to an address": "import socket\nsocket.socketpair()[0].sendto(b'x', '{file}')",
    "truncate what can be read": "import os\nos.open(os.__file__, os.O_RDONLY | os.O_TRUNC)",
    "memory of no limit": "import os\nos.memfd_create('x')",
    "a link of the parent": "import os\nos.readlink('/proc/{parent}/cwd')",
    "clone3": "import ctypes\nassert ctypes.CDLL(None).syscall(435, 0, 0) >= 0",
    "to outlive the parent": "import ctypes\nassert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0",
    "calls of another architecture": "import ctypes, mmap, platform\nassert platform.machine() == 'x86_64'\n"
    "code = mmap.mmap(-1, 4096, prot=7)\ncode.write(bytes.fromhex('b814000000cd80c3'))\n"  # int 0x80
    "ctypes.CFUNCTYPE(int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()",
    "a library of its own": "import ctypes\nctypes.CDLL('{file}')",
    "threads": "import threading\nthreading.Thread(target=print).start()",
    "the secret": "import os\nos.environ['{secret}']",
}


# What CPython reports in other words than those of a refusal.
OTHERWISE = {
    "a request", "a shell", "a trace of the parent", "a namespace", "a mount", "a raw system call", "more memory",
    "a stream to an address", "clone3", "to outlive the parent", "calls of another architecture",
    "a library of its own", "import what is installed", "threads", "the secret",
}  # fmt: skip

# Attempts that do no harm, and succeed where nothing confines them.
HARMLESS = [
    "read a file", "read a file by os", "write a file", "make a file", "delete a file", "rename a file",
    "change a mode", "change times", "link a file", "make a symbolic link", "make a directory",
    "list a directory", "list what is installed", "list the folder around it", "import what is installed",
    "a file by pathlib", "the environment of the parent", "its own descriptors", "a socket",
    "a local socket", "a shell", "a program", "a program by exec", "a spawned program", "a fork",
    "multiprocessing", "shared memory", "a raw system call", "a datagram to an address", "memory of no limit",
    "signals by a pipe's owner", "threads", "the secret",
]  # fmt: skip


def attempt(name: str, file: Path, port: int = 0) -> str:
    return ESCAPES[name].format(file=file, parent=os.getpid(), port=port, secret=SECRET)


def test_the_attempts_succeed_where_nothing_confines_them(tmp_path: Path) -> None:
    """Else they would prove nothing."""
    running = []
    for number, name in enumerate(HARMLESS):
        file = tmp_path / f"kept{number}"
        file.write_text("hush")
        command = [sys.executable, "-I", "-S", "-c", attempt(name, file)]
        running.append(subprocess.Popen(command, env={SECRET: "hush"}, stdout=subprocess.DEVNULL))
    assert [name for name, each in zip(HARMLESS, running, strict=True) if each.wait()] == []


@pytest.mark.parametrize("name", ESCAPES)
def test_there_is_no_way_out(
    make: Callable[..., Sandbox], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRET, "hush")
    file = tmp_path / "kept"
    file.write_text("hush")
    before = file.stat()

    async def main() -> tuple[Executed, int]:
        reached = 0

        def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal reached
            reached += 1
            writer.close()

        async with await asyncio.start_server(note, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await make(timeout=10.0).run(attempt(name, file, port)), reached

    done, reached = asyncio.run(main())
    assert done.ended in ("refused", "exception", "crash"), done
    assert make is MontySandbox or name in OTHERWISE or done.ended == "refused", done
    assert "hush" not in f"{done.value}{done.output}{done.error}"
    assert not reached
    assert file.read_text() == "hush"
    assert (before.st_mode, before.st_mtime_ns) == (file.stat().st_mode, file.stat().st_mtime_ns)
    assert os.listdir(tmp_path) == ["kept"]


WALKS = [
    "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close'][0]"
    ".__init__.__globals__['system']('true') == 0 and 1 / 0",
    "import sys\nsys._getframe(3).f_globals['os'].system('true') == 0 and 1 / 0",
    "import sys\nsys.modules['os'].system('true') == 0 and 1 / 0",
    "import gc\n[o for o in gc.get_objects() if type(o).__name__ == 'Popen'][0]",
    "eval(\"__import__('os').system('true')\") == 0 and 1 / 0",
    '\N{MATHEMATICAL BOLD SCRIPT SMALL E}xec("import os\\nos.fork()")',  # which is exec
    "import sys\nsys.settrace(lambda *a: None)\nimport os\nos.fork()",
]


@pytest.mark.parametrize("program", WALKS)
def test_walks_through_the_interpreter_lead_nowhere(make: Callable[..., Sandbox], program: str) -> None:
    """Whatever a program finds in its own process, the process can do nothing with it."""
    done = ran(make(timeout=2.0), program)
    assert "ZeroDivisionError" not in done.error, done
    assert done.value in (None, False), done


@pytest.mark.parametrize(
    "program",
    [
        'import os\nfor fd in range(3, 64):\n    try: os.write(fd, b\'{"ended": "done", "value": 7}\\n\')\n'
        "    except OSError: pass\nos._exit(0)",
        "import os\nos.write(2, b'confined')\nos._exit(0)",
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'[' * 100_000)\n    except OSError: pass\n"
        "os._exit(1)",
        "import os\nfor fd in range(64):\n    try: os.close(fd)\n    except OSError: pass",
        'import os\nfor fd in range(3, 64):\n    try: os.write(fd, b\'{"ended": "done", "value": NaN}\')\n'
        "    except OSError: pass\nos._exit(0)",
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'[7]')\n    except OSError: pass\n"
        "os._exit(0)",
    ],
)
def test_a_report_that_the_program_forges_is_no_more_than_its_value(program: str) -> None:
    done = ran(ProcessSandbox(timeout=2.0), program)
    assert (done.ended, done.value) in (("done", 7), ("crash", None), ("done", None), ("timeout", None)), done


def test_signals_ignored_and_threads_left_behind_do_not_keep_it_alive() -> None:
    deaf = (
        "import signal\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
    )
    assert ran(ProcessSandbox(timeout=0.5), deaf + "while True: pass").ended == "timeout"
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n5"
    done = ran(ProcessSandbox(timeout=10.0, threads=True), thread)
    assert (done.ended, done.value) == ("done", 5)


STANDARD = """
import importlib.util, sys
missing = []
for name in sys.stdlib_module_names - {"antigravity", "this", "idlelib", "turtledemo", "turtle", "tkinter"}:
    try:
        importlib.import_module(name)
    except ImportError:
        missing.append(name)
sorted(missing)
"""


def test_the_whole_standard_library_is_there_in_the_process() -> None:
    """What can be imported beside the sandbox, can be in it."""
    beside = STANDARD.replace("sorted(missing)", "print(sorted(missing))")
    command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", beside]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    done = ran(ProcessSandbox(timeout=60.0, memory=2_000_000_000), STANDARD)
    assert str(done.value) == there.strip(), done.error
    program = (
        "import asyncio, base64, hashlib, sqlite3, zlib, zoneinfo\n"
        "async def one(): return await asyncio.sleep(0, 1)\n"
        "base = sqlite3.connect(':memory:')\n"
        "[asyncio.run(one()), base.execute('select 1 + 1').fetchone(), hashlib.sha256(b'').hexdigest()[:8],"
        " zlib.decompress(zlib.compress(b'a')).decode()]"
    )
    assert ran(ProcessSandbox(timeout=60.0), program).value == [1, [2], "e3b0c442", "a"]


def children(parent: int) -> set[int]:
    """Processes that live (a zombie does not)."""
    command = ["ps", "-o", "pid=,stat=,comm=", "--ppid", str(parent)]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = (line.split(maxsplit=2) for line in listed.splitlines())
    return {int(pid) for pid, state, name in found if "Z" not in state and name != "ps"}


def lives(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return ") Z " not in stat.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(holds: Callable[[], bool]) -> bool:
    """Whether it comes to hold within ten seconds."""
    for _ in range(200):
        if holds():
            return True
        signal.sigtimedwait([], 0.05)
    return False


def test_cancelling_kills_the_program_at_once(make: Callable[..., Sandbox]) -> None:
    async def main() -> None:
        before = children(os.getpid())  # Python's own, where another test has started processes
        sandbox = make(timeout=60.0, permits=1)
        task = asyncio.ensure_future(sandbox.run("while True: pass"))
        await asyncio.sleep(0.5)  # it runs
        assert children(os.getpid()) - before
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert until(lambda: not children(os.getpid()) - before)
        assert (await sandbox.run("1 + 1")).value == 2  # the permit is back

    asyncio.run(main())


def test_cancelling_a_program_that_floods_its_pipes_leaves_no_process() -> None:
    """asyncio waits for a process only after its pipes have ended, and a full one is read no more."""
    flood = "import os\nfor fd in range(3, 64):\n    try:\n        while True: os.write(fd, b'x' * 65536)\n"

    async def main() -> None:
        before = children(os.getpid())
        sandbox = ProcessSandbox(timeout=60.0)
        assert (await sandbox.run(flood + "    except OSError: pass")).ended == "crash"
        task = asyncio.ensure_future(sandbox.run("print('x' * 19_000, flush=True)\nwhile True: pass"))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert children(os.getpid()) == before

    asyncio.run(main())


def test_no_more_programs_at_a_time_than_permits(make: Callable[..., Sandbox]) -> None:
    async def main() -> list[int]:
        before = children(os.getpid())
        sandbox = make(timeout=0.4, permits=2)
        tasks = [asyncio.ensure_future(sandbox.run("while True: pass")) for _ in range(4)]
        seen = []
        while not all(task.done() for task in tasks):
            await asyncio.wait(tasks, timeout=0.1)
            seen.append(len(children(os.getpid()) - before))
        assert [task.result().ended for task in tasks] == ["timeout"] * 4
        return seen

    assert max(asyncio.run(main())) == 2


ORPHAN = """
import asyncio, sys
from stratagem.tools.sandbox import MontySandbox, ProcessSandbox
sandbox = MontySandbox(timeout=100.0) if sys.argv[1] == "monty" else ProcessSandbox(timeout=100.0)
asyncio.run(sandbox.run("while True: pass"))
"""


@pytest.mark.parametrize("kind", list(BOTH))
def test_no_orphan_after_the_parent_was_killed(kind: str) -> None:
    """A busy program ends with its parent, not with its own limit of time."""
    with subprocess.Popen([sys.executable, "-c", ORPHAN, kind], start_new_session=True) as parent:
        assert until(lambda: bool(children(parent.pid)))
        signal.sigtimedwait([], 0.5)  # the program runs
        found = children(parent.pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert found
    assert until(lambda: not any(map(lives, found)))


def test_as_a_tool_of_a_model() -> None:
    async def main() -> tuple[Value | Failed, Value | Failed]:
        python = python_tool(MontySandbox())
        return await python(code="print('hi')\n2 + 3"), await python(code="raise ValueError('no')")

    good, bad = asyncio.run(main())
    assert isinstance(good, Value)
    assert good.data == {"output": "hi\n", "value": 5}
    assert isinstance(bad, Failed)
    assert "exception: ValueError: no" in bad.message


def test_what_cannot_be_an_input_or_a_limit_is_refused(make: Callable[..., Sandbox]) -> None:
    with pytest.raises(sg.ConfigurationError, match="no JSON"):
        ran(make(), "1", x={1, 2})
    with pytest.raises(sg.ConfigurationError, match="no name"):
        asyncio.run(make().run("1", {"a b": 1}))
    with pytest.raises(sg.ConfigurationError, match="greater than 0"):
        make(timeout=0)
