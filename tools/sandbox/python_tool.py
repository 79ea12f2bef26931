"""A sandbox as a tool that a model may call."""

from __future__ import annotations

from typing import Any

from stratagem.core.sandbox import Sandbox
from stratagem.tools.tool import Tool, tool


class _ProgramError(Exception):
    """A program did not run to its end."""


def python_tool(sandbox: Sandbox, *, name: str = "python", timeout: float = 60.0) -> Tool:
    """The tool ``python(code)``, which gives what the code prints and the value of its last line.

    It changes nothing outside the sandbox, so equal calls of a plan are made once. ``timeout`` is of the call with
    its wait for the sandbox's permits; the sandbox has limits of its own.
    """

    async def python(code: str) -> dict[str, Any]:
        """Run Python and get what it prints and the value of its last line. It has no network and no files."""
        done = await sandbox.run(code)
        if not done.ok:
            raise _ProgramError(
                f"{done.ended}: {done.error}" + (f" It printed: {done.output}" if done.output else "")
            )
        return {"output": done.output, "value": done.value}

    return tool(name=name, effect="read_only", timeout=timeout)(python)
