"""What all strategies that sample whole answers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from stratagem.core.asking import Sampling
from stratagem.core.backend import Message
from stratagem.core.component import parameter
from stratagem.core.prompts import STEP_BY_STEP
from stratagem.core.protocols import Strategy
from stratagem.core.task import Task


class Sampler(Strategy):
    """A strategy that draws whole answers to one prompt."""

    instruction: str = parameter(STEP_BY_STEP, "Stands after the question.")
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = parameter(
        None, "Sampling temperature; none: the model's own default.", search=(0.4, 1.2)
    )
    top_p: float = parameter(1.0, "Nucleus sampling: probability mass kept.", gt=0.0, le=1.0)
    max_tokens: int = parameter(512, "Longest answer, in tokens.", ge=1)

    def prompt(self, task: Task) -> Sequence[Message]:
        """The conversation to complete."""
        return task.ask(self.instruction)

    def sampling(self, *, logprobs: int | None = None) -> Sampling:
        """How to draw."""
        return Sampling(self.temperature, self.top_p, self.max_tokens, logprobs=logprobs)
