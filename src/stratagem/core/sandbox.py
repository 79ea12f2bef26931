"""Programs that a model wrote, run where they can do no harm; implemented in ``stratagem.tools.sandbox``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

Ended: TypeAlias = Literal[
    "done", "syntax", "exception", "timeout", "memory", "output", "result", "refused", "crash"
]
"""How a program ended. ``exception``: it raised one; ``output``: it wrote more than it may; ``result``: its value
is no JSON or too large; ``refused``: it asked for what the sandbox does not give; ``crash``: its process died."""


@dataclass(frozen=True, slots=True)
class Executed:
    """What became of a program."""

    ended: Ended
    value: Any = None  # of its last line, where that is an expression, as JSON data
    output: str = ""  # what it printed, up to the limit
    error: str = ""  # in words for whoever wrote it; "" where it is done
    seconds: float = 0.0  # wall time

    @property
    def ok(self) -> bool:
        """Whether it ran to its end."""
        return self.ended == "done"


class Sandbox(Protocol):
    """Runs Python without network, files, environment or other processes, in limits of time, memory and output."""

    async def run(self, program: str, inputs: Mapping[str, Any] | None = None) -> Executed:
        """Run a program with ``inputs`` (JSON data) as its global names. Whatever it does is data, no exception.

        Cancelling this kills the program at once.

        Raises:
            ConfigurationError: the sandbox cannot run on this machine; said before the program begins.
        """
        ...
