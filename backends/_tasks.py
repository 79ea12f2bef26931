"""Ending a task that works for a context, whatever happens to the context."""

from __future__ import annotations

import asyncio
from typing import Any


async def stopped(*tasks: asyncio.Future[Any]) -> None:
    """Cancels the tasks and waits for their end, even if this one is cancelled meanwhile."""
    cancelled: asyncio.CancelledError | None = None
    for task in tasks:
        task.cancel()
    while pending := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
