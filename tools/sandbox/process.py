"""The second sandbox: all of CPython, in a process that the kernel confines (see ``_confined.py`` for how).

Guaranteed, on Linux with Landlock (5.13 and later) and seccomp, without root: no file can be opened but those of
the standard library and the system's libraries, to be read (and none of an installed package); no file changed,
made or removed; no socket; no other process or program started, signalled or traced; no environment; memory, time
and output bounded; nothing is left after the end, after a cancellation, or after the death of the parent. Only the
system calls that computing needs reach the kernel. Not hidden: whether a path exists, its size and times; the
clock; the machine's name and load. Not bounded: with ``threads=True``, how many threads there are, and the kernel's
memory for them. A hole in the kernel behind a call that is let through is a hole here: where that is not enough,
put the whole service into a virtual machine, or use :class:`~stratagem.tools.sandbox.monty.MontySandbox`, which
makes no system calls for it.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from stratagem.core.concurrency import task_group
from stratagem.core.errors import ConfigurationError
from stratagem.core.sandbox import Ended, Executed
from stratagem.tools.sandbox._limits import as_json, checked

_CHILD = Path(__file__).with_name("_confined.py")
_REPORT = 20_000  # bytes of a report beside its value; an error has 2,000 characters
_START = 60.0  # seconds for the interpreter to start and to confine itself, on the busiest machine


class ProcessSandbox:
    """Runs CPython with the standard library.

    Args:
        timeout: seconds of each program.
        memory: bytes of address space beside the interpreter's own.
        output: most bytes that it may print, and that its value may have as JSON.
        permits: programs at a time.
        threads: whether a program may start threads.

    Raises:
        ConfigurationError: a limit is not above 0, or the platform is not Linux on x86-64 or 64-bit Arm.
    """

    def __init__(
        self,
        *,
        timeout: float = 5.0,
        memory: int = 200_000_000,
        output: int = 20_000,
        permits: int = 4,
        threads: bool = False,
    ) -> None:
        checked(timeout=timeout, memory=memory, output=output, permits=permits)
        if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
            raise ConfigurationError(
                f"ProcessSandbox confines processes on Linux only, not on {sys.platform} ({platform.machine()}).",
                remedy="Use MontySandbox.",
            )
        self._timeout = timeout
        self._memory = memory
        self._output = output
        self._permits = asyncio.Semaphore(permits)
        self._threads = threads

    async def run(self, program: str, inputs: Mapping[str, Any] | None = None) -> Executed:
        """See :meth:`stratagem.core.sandbox.Sandbox.run`."""
        asked = {
            "program": program,
            "inputs": as_json(inputs),
            "memory": self._memory + 100_000_000,
            "cpu": int(self._timeout) + 2,
            "result": self._output,
            "threads": self._threads,
            "parent": os.getpid(),
        }
        async with self._permits:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", "-B", str(_CHILD),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                cwd="/", env={}, start_new_session=True,
            )  # fmt: skip
            try:
                return await self._watch(child, json.dumps(asked).encode())
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                await asyncio.shield(_bury(child))

    async def _watch(self, child: asyncio.subprocess.Process, asked: bytes) -> Executed:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        with suppress(BrokenPipeError, ConnectionResetError):  # what it says of its end is read below
            child.stdin.write(asked)
            await child.stdin.drain()
            child.stdin.close()
        try:
            async with asyncio.timeout(_START):
                first = await child.stderr.readline()
        except TimeoutError:
            first = b""
        if first != b"confined\n":
            raise ConfigurationError(
                f"This machine cannot confine a process: {first.decode(errors='replace').strip() or 'no answer'}.",
                remedy="Use MontySandbox, or Linux 5.13 or later with Landlock and seccomp.",
            )
        started = time.monotonic()
        printed, report = bytearray(), bytearray()
        ended: Executed
        try:
            async with asyncio.timeout(self._timeout), task_group() as group:
                group.create_task(_read(child, child.stdout, printed, self._output))
                group.create_task(_read(child, child.stderr, report, self._output + _REPORT))
            code = await child.wait()
            if len(printed) > self._output:
                ended = Executed("output", error=f"It printed more than {self._output} bytes.")
            else:
                ended = self._reported(bytes(report), code)
        except TimeoutError:
            ended = Executed("timeout", error=self._late)
        output = bytes(printed[: self._output]).decode(errors="replace")
        return Executed(ended.ended, ended.value, output, ended.error, time.monotonic() - started)

    def _reported(self, report: bytes, code: int) -> Executed:
        """What the child says of its end, which the program may have written itself: checked like any input."""
        with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            found = json.loads(report, parse_constant=_no_json)
            ended: Ended = found["ended"]
            if ended in get_args(Ended):
                return Executed(ended, found.get("value"), error=str(found.get("error", ""))[:_REPORT])
        if code == -signal.SIGXCPU:
            return Executed("timeout", error=self._late)
        return Executed("crash", error=f"Its process died (status {code}).")

    @property
    def _late(self) -> str:
        return f"It took longer than {self._timeout:g} s."


async def _read(
    child: asyncio.subprocess.Process, stream: asyncio.StreamReader, kept: bytearray, most: int
) -> None:
    """Read to the end; a child that writes more than ``most`` bytes is killed, and the rest not kept."""
    while chunk := await stream.read(65_536):
        if len(kept) <= most:
            kept += chunk
            if len(kept) > most:
                child.kill()


async def _bury(child: asyncio.subprocess.Process) -> None:
    """Wait for a killed child. Its pipes are emptied first: asyncio waits for their ends too."""
    for stream in (child.stdout, child.stderr):
        while stream and await stream.read(65_536):
            pass
    await child.wait()


def _no_json(name: str) -> None:
    raise ValueError(name)
