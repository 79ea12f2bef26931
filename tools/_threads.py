"""Functions that block, each in a thread of its own that nothing waits for: a pool would queue calls behind ones
that hang, run what was cancelled in the queue, and hold up the end of the process."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from stratagem.tools._places import Places

MOST = 64
"""Threads at a time in one event loop."""
_rooms: WeakKeyDictionary[asyncio.AbstractEventLoop, Places] = WeakKeyDictionary()


class Raised(Exception):
    """What a function has raised, whatever its class: some, as SystemExit, would end more than the call."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


def room() -> Places:
    """For threads in this event loop."""
    return _rooms.setdefault(asyncio.get_running_loop(), Places(MOST))


async def in_thread(call: Callable[[], Any], ended: Callable[[], None]) -> Any:
    """What ``call`` gives; ``ended`` is called in the loop when its thread has ended, also if nobody waits by then.

    An awaitable that it gives, as a wrapper around an async function does, is awaited.

    Raises Raised: what ``call`` raises.
    """
    loop = asyncio.get_running_loop()
    waiting: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(value: Any, error: BaseException | None) -> None:
        ended()
        if not waiting.done():
            waiting.set_result((value, error))

    def work() -> None:
        value, error = None, None
        try:
            value = context.run(call)
        except BaseException as raised:  # a thread has nobody else to tell
            error = raised
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, value, error)

    try:
        threading.Thread(target=work, name="stratagem-tool", daemon=True).start()
    except RuntimeError as none_left:
        ended()
        raise Raised(none_left) from none_left
    value, error = await waiting
    if error is not None:
        raise Raised(error)
    return await guarded(value) if inspect.isawaitable(value) else value


async def guarded(call: Any) -> Any:
    """What an awaitable gives. Raises Raised: what it raises, but for a cancellation and Ctrl-C."""
    try:
        return await call
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise Raised(error) from error
