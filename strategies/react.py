"""ReAct: thought, action, observation, in turn: (t_k, a_k) ~ p(. | x, t_<k, a_<k, o_<k).

Source: Yao et al. 2022 (arXiv 2210.03629). There the prompt is few-shot; here an instruction and the tools'
signatures. The engine stops at the end of the action: what a model would go on to imagine as an observation is not
decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from pydantic import field_validator

from stratagem.core.calling import Called, Toolbox
from stratagem.core.component import parameter
from stratagem.core.prompts import REACT
from stratagem.strategies._agent import Agent

_ACTION: Final = "Action:"


class ReAct(Agent):
    """A thought and one call a turn. Cost: calls + 1 completions."""

    kind: ClassVar[str] = "react"
    names_calls: ClassVar[bool] = False

    system: str = parameter(REACT, "Stands before the list of tools.", min_length=1)
    rounds: int = parameter(16, "Most calls; then it has to answer.", ge=1, search=(4, 24))

    @field_validator("format")
    @classmethod
    def _has_thoughts(cls, value: str) -> str:
        if value != "lines":
            raise ValueError(
                "a thought stands before each call, which native calls have no place for; use 'lines'"
            )
        return value

    def pattern(self, tools: Toolbox) -> str:
        """A thought and an action."""
        return f"Thought: [^\\n]+\\n{_ACTION} {tools.pattern(named=False)}"

    def called(self, line: str) -> str | None:
        """What stands after ``Action:``."""
        return line.strip().removeprefix(_ACTION) if line.strip().startswith(_ACTION) else None

    def told(self, calls: Sequence[Called], limit: int) -> str:
        """The observation."""
        return "\n".join(f"Observation: {call.told(limit)}" for call in calls)
