"""The sandbox of first choice: Monty, an interpreter of a subset of Python that has no way out built in.

Source: https://github.com/pydantic/monty. A program runs in a worker process of its own, started for it (some
milliseconds) and gone after it. The interpreter knows no sockets, processes, C extensions or introspection of the
host; files it asks the host for, which gives none. On Linux with util-linux's ``setpriv`` the kernel kills a worker
whose parent was killed; elsewhere it ends with its own limit of time.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from stratagem.core.errors import ConfigurationError
from stratagem.core.sandbox import Ended, Executed
from stratagem.tools.sandbox._limits import as_json, checked

if TYPE_CHECKING:
    from pydantic_monty import MontyError

_GRACE = 1.0  # seconds that the interpreter has to notice the end of its time by itself
_ENDED: Mapping[str, Ended] = {
    "TimeoutError": "timeout",
    "MemoryError": "memory",
    "PermissionError": "refused",
    "ModuleNotFoundError": "refused",
    "NotImplementedError": "refused",
}


class MontySandbox:
    """Runs a subset of Python.

    Args:
        timeout: seconds of each program.
        memory: bytes of its heap.
        output: most characters that it may print, and that its value may have as JSON.
        permits: programs at a time.

    Raises:
        ConfigurationError: a limit is not above 0.
    """

    def __init__(
        self, *, timeout: float = 5.0, memory: int = 100_000_000, output: int = 20_000, permits: int = 4
    ) -> None:
        checked(timeout=timeout, memory=memory, output=output, permits=permits)
        self._timeout = timeout
        self._memory = memory
        self._output = output
        self._permits = asyncio.Semaphore(permits)

    async def run(self, program: str, inputs: Mapping[str, Any] | None = None) -> Executed:
        """See :meth:`stratagem.core.sandbox.Sandbox.run`."""
        try:
            from pydantic_monty import (
                AsyncMonty,
                MontyCrashedError,
                MontyError,
                ResourceLimits,
            )
        except ImportError as error:
            raise ConfigurationError(
                "The sandbox needs pydantic-monty.", remedy="pip install 'stratagem[sandbox]'"
            ) from error
        given = as_json(inputs)
        printed = ""
        limits = ResourceLimits(
            max_feed_duration_secs=self._timeout,
            max_total_sleep_secs=self._timeout,
            max_memory=self._memory,
        )
        async with self._permits:
            started = time.monotonic()
            ended: Ended = "done"
            value, error_text, finished = None, "", False
            loop = asyncio.get_running_loop()
            deadline = asyncio.timeout(self._timeout + _GRACE)

            def note(_: str, text: str) -> None:
                nonlocal printed
                too_much = len(printed) > self._output
                printed += text[: self._output + 1 - len(printed)]
                if len(printed) > self._output and not too_much:  # an error raised here would not stop it
                    loop.call_soon_threadsafe(stop)

            def stop() -> None:
                if not finished and not deadline.expired():
                    deadline.reschedule(loop.time())

            try:
                worker = _worker(os.getpid())
                pool = AsyncMonty(max_processes=1, max_checkouts_per_worker=1, binary_path=worker)
                with suppress(TimeoutError):
                    async with deadline, pool, pool.checkout(limits=limits) as session:
                        value = await session.feed_run(program, inputs=given, print_callback=note)
                if deadline.expired():
                    ended, error_text = "timeout", self._late
            except MontyCrashedError as error:
                ended, error_text = "crash", str(error)
            except MontyError as error:
                ended, error_text = self._failure(error)
            finally:
                finished = True
            seconds = time.monotonic() - started
        if len(printed) > self._output:
            ended, value, error_text = "output", None, f"It printed more than {self._output} characters."
        if ended == "done":
            value, error_text = self._plain(value)
            ended = "result" if error_text else "done"
        return Executed(ended, value, printed[: self._output], error_text, seconds)

    def _failure(self, error: MontyError) -> tuple[Ended, str]:
        from pydantic_monty import MontySyntaxError

        if isinstance(error, MontySyntaxError):
            return "syntax", error.display("type-msg")
        kind = type(error.exception()).__name__
        ended = _ENDED.get(kind, "exception")
        if ended == "timeout":
            return ended, self._late
        return ended, str(error)

    @property
    def _late(self) -> str:
        return f"It took longer than {self._timeout:g} s."

    def _plain(self, value: Any) -> tuple[Any, str]:
        """The value as JSON data. What it shares with itself is still shared here, so it may be endless as text."""
        parts: list[str] = []
        size = 0
        try:
            for part in json.JSONEncoder(allow_nan=False).iterencode(value):
                size += len(part)
                if size > self._output:
                    return None, f"Its value has more than {self._output} characters as JSON."
                parts.append(part)
        except (TypeError, ValueError, RecursionError) as error:
            return None, f"Its value is no JSON: {error}."
        return json.loads("".join(parts)), ""


@cache
def _worker(parent: int) -> str | None:
    """A program that runs Monty's worker in such a way that the kernel kills it when ``parent``, which is this
    process, dies; ``None``, which is Monty's own, where there is no way to."""
    setpriv = shutil.which("setpriv")
    if sys.platform != "linux" or setpriv is None:
        return None
    from pydantic_monty._binary import find_monty_binary

    command = shlex.join([setpriv, "--pdeathsig", "KILL", "--", find_monty_binary()])
    script = os.memfd_create("monty")  # in memory: nothing is left of it, however this process ends
    os.write(script, f'#!/bin/sh\nexec {command} "$@"\n'.encode())
    return f"/proc/{parent}/fd/{script}"
