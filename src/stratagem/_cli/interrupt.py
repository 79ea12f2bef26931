"""Ctrl-C and SIGTERM: the first cancels what runs, so that engines stop and files are closed; the second ends at
once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from types import FrameType
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

INTERRUPTED = 130  # exit code: 128 + SIGINT, as shells have it
_SHOW_CURSOR = "\x1b[?25h"


def run(main: Coroutine[Any, Any, T]) -> T:
    """The result of ``main``, which sees a first Ctrl-C or SIGTERM as its cancellation.

    Raises:
        asyncio.CancelledError: it was cancelled and did not turn that into a result.
    """
    presses = 0
    running: asyncio.Task[T] | None = None

    def pressed(_signal: int, _frame: FrameType | None) -> None:
        nonlocal presses
        presses += 1
        if presses > 1:
            _leave()
        if running is not None:
            # From the handler the loop may sit in select(): only this call wakes it.
            running.get_loop().call_soon_threadsafe(running.cancel)

    async def start() -> T:
        nonlocal running
        running = asyncio.create_task(main)
        if presses:
            running.cancel()
        return await running

    previous = {number: signal.signal(number, pressed) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return asyncio.run(start())
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _leave() -> NoReturn:
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), _SHOW_CURSOR.encode())
    os._exit(INTERRUPTED)
