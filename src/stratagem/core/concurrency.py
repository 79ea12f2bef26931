"""Structured concurrency whose errors are single errors.

``asyncio.TaskGroup`` raises exception groups, also when one child failed; what a caller can act on is the
first cause. The others were cancelled because of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from stratagem.core.errors import BudgetExhausted


def root_cause(error: BaseException) -> BaseException:
    """The error in a (nested) group that explains the others: a failure before an exhausted budget."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [root_cause(e) for e in error.exceptions]
    return next((e for e in causes if not isinstance(e, BudgetExhausted)), causes[0])


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that raises the root cause of what went wrong in it."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        raise root_cause(errors) from errors
