"""Functions that block, each in a thread of its own that nothing waits for: a pool would queue calls behind ones
that hang, run what was cancelled in the queue, and hold up the end of the process."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from stratagem.tools._places import Places

MOST = 64
"""Threads at a time in one event loop."""
GRACE = 2.0
"""Seconds that a call which is cancelled has to end."""
_abandoned: set[asyncio.Future[Any]] = set()
_rooms: WeakKeyDictionary[asyncio.AbstractEventLoop, Places] = WeakKeyDictionary()


class Raised(Exception):
    """What a function has raised, whatever its class: some, as SystemExit, would end more than the call."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


def room() -> Places:
    """For threads in this event loop."""
    return _rooms.setdefault(asyncio.get_running_loop(), Places(MOST))


async def in_thread(call: Callable[[], Any], ended: Callable[[bool], None]) -> Any:
    """What ``call`` gives. An awaitable that it gives, as a wrapper around an async function does, is awaited.

    ``ended`` is called in the loop when the thread has ended, also if nobody waits by then: with whether the call
    goes on, for an awaitable; and once more when that has ended.

    Raises Raised: what ``call`` raises.
    """
    loop = asyncio.get_running_loop()
    waiting: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(value: Any, error: BaseException | None) -> None:
        goes_on = inspect.isawaitable(value) and not waiting.done()
        ended(goes_on)
        if not waiting.done():
            waiting.set_result((value, error))
        elif inspect.iscoroutine(value):
            value.close()

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
        ended(False)
        raise Raised(none_left) from none_left
    try:
        value, error = await waiting
    except asyncio.CancelledError:
        if not waiting.cancelled() and inspect.iscoroutine(waiting.result()[0]):
            waiting.result()[0].close()
            ended(False)
        raise
    if error is not None:
        raise Raised(error)
    return await releasing(guarded(value), partial(ended, False)) if inspect.isawaitable(value) else value


async def releasing(call: Awaitable[Any], release: Callable[[], None]) -> Any:
    """What an awaitable gives; ``release`` when it has ended."""
    try:
        return await call
    finally:
        release()


async def stopped(running: asyncio.Future[Any]) -> None:
    """Cancel a call and give it some time to end. One that does not is left alone: nothing may wait for it for
    ever."""
    _abandoned.add(running)  # the loop alone would not keep it
    running.add_done_callback(_forget)
    running.cancel()
    await asyncio.wait({running}, timeout=GRACE)


def _forget(running: asyncio.Future[Any]) -> None:
    _abandoned.discard(running)
    if not running.cancelled():
        running.exception()  # nobody else will look


async def guarded(call: Any) -> Any:
    """What an awaitable gives. Raises Raised: what it raises, but for a cancellation and Ctrl-C."""
    try:
        return await call
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise Raised(error) from error
