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


@pytest.mark.parametrize(
    ("program", "ended", "words"),
    [
        ("def (", "syntax", "SyntaxError"),
        ("raise ValueError('no')", "exception", "ValueError: no"),
        ("1 / 0", "exception", "ZeroDivisionError"),
        ("def f(): return f()\nf()", "exception", "RecursionError"),
        ("{1, 2}", "result", "no JSON"),
        ("float('nan')", "result", "no JSON"),
        ("'x' * 30_000", "result", "20000 bytes"),
        ("while True: pass", "timeout", "1 s"),
        ("import time\ntime.sleep(60)", "timeout", "1 s"),
        ("x = 'a' * 10**10", "memory", "Memory"),
        ("x = []\nwhile True: x.append('a' * 10_000_000)", "memory", "Memory"),
        ("while True: print('a' * 1000)", "output", "20000 bytes"),
        ("print('a' * 10_000_000)", "output", "20000 bytes"),
    ],
)
def test_failures_are_data(make: Callable[..., Sandbox], program: str, ended: str, words: str) -> None:
    done = ran(make(timeout=1.0), program)
    assert (done.ended, done.ok, words in done.error) == (ended, False, True), done
    assert len(done.output) <= 20_000


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
    "a namespace": "import os\nos.unshare(0x10000000)",
    "a mount": "import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, 0) == 0",
    "a raw system call": "import ctypes\nassert ctypes.CDLL(None).syscall(41, 2, 1, 0) >= 0",
    "more memory": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "the limits of the parent": "import resource\nresource.prlimit({parent}, resource.RLIMIT_NOFILE, (1, 1))",
    "the secret": "import os\nos.environ['{secret}']",
}


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
            program = ESCAPES[name].format(file=file, parent=os.getpid(), port=port, secret=SECRET)
            return await make(timeout=2.0).run(program), reached

    done, reached = asyncio.run(main())
    assert done.ended in ("refused", "exception", "crash"), done
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
    ],
)
def test_a_report_that_the_program_forges_is_no_more_than_its_value(program: str) -> None:
    done = ran(ProcessSandbox(timeout=3.0), program)
    assert (done.ended, done.value) in (("done", 7), ("crash", None), ("done", None), ("timeout", None)), done


def test_signals_ignored_and_threads_left_behind_do_not_keep_it_alive() -> None:
    deaf = (
        "import signal\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
    )
    assert ran(ProcessSandbox(timeout=0.5), deaf + "while True: pass").ended == "timeout"
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n5"
    done = ran(ProcessSandbox(timeout=3.0), thread)
    assert (done.ended, done.value) == ("done", 5)


def test_the_whole_standard_library_is_there_in_the_process() -> None:
    program = (
        "import statistics, decimal, fractions, datetime, itertools, re, zoneinfo, dataclasses\n"
        "@dataclasses.dataclass\nclass A:\n    x: int\n"
        "[statistics.mean([1, 2]), str(decimal.Decimal('0.1') + 1), A(3).x]"
    )
    assert ran(ProcessSandbox(), program).value == [1.5, "1.1", 3]


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
        sandbox = make(timeout=60.0, permits=1)
        task = asyncio.ensure_future(sandbox.run("while True: pass"))
        await asyncio.sleep(0.5)  # it runs
        assert children(os.getpid())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert until(lambda: not children(os.getpid()))
        assert (await sandbox.run("1 + 1")).value == 2  # the permit is back

    asyncio.run(main())


ORPHAN = """
import asyncio, sys
from stratagem.tools.sandbox import MontySandbox, ProcessSandbox
sandbox = MontySandbox(timeout=2.0) if sys.argv[1] == "monty" else ProcessSandbox(timeout=100.0)
asyncio.run(sandbox.run("while True: pass"))
"""


@pytest.mark.parametrize("kind", list(BOTH))
def test_no_orphan_after_the_parent_was_killed(kind: str) -> None:
    """Monty's worker ends with its own limit, the confined process with its parent."""
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
