"""Structured concurrency whose errors are single errors.

``asyncio.TaskGroup`` raises exception groups, also when one child failed; what a caller can act on is the
first cause. The others were cancelled because of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Generator
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Any, TypeVar

from stratagem.core.errors import root_cause

T = TypeVar("T")


class _Group(asyncio.TaskGroup):
    """Knows its children, so that they can be waited for inside its block.

    A child that fails while Python 3.11's ``TaskGroup`` already waits in ``__aexit__`` leaves the parent's
    ``cancelling()`` one too high for ever (python/cpython#116720), and every later time-out around it ends as a
    cancellation. Inside the block the count is put right.
    """

    def __init__(self) -> None:
        super().__init__()
        self.children: set[asyncio.Task[Any]] = set()

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        try:
            task = super().create_task(coro, name=name, context=context)
        except RuntimeError:  # it is shutting down; Python before 3.13 leaves the coroutine open then
            coro.close()
            raise
        self.children.add(task)
        task.add_done_callback(self.children.discard)
        return task


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that raises the root cause of what went wrong in it; a cancellation comes before any."""
    task = asyncio.current_task()
    requests = task.cancelling() if task else 0
    try:
        async with _Group() as group:
            yield group
            while group.children:
                await asyncio.wait(group.children)
    except BaseExceptionGroup as errors:
        if task and task.cancelling() > requests:  # from outside, while children failed: not to be lost
            raise asyncio.CancelledError from errors
        raise root_cause(errors) from errors
