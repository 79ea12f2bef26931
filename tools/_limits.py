"""What may be set of any tool, wherever it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from stratagem.tools.tool import Effect


class Limits(TypedDict, total=False):
    """See :func:`stratagem.tools.tool.tool`."""

    name: str
    timeout: float
    retries: int
    concurrency: int | None
    rate: float | None
    cost: float
    effect: Effect
    max_bytes: int
    on_failure: Literal["skip", "ask"]
