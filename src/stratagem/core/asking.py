"""What is asked of a model, by whom, and how its answer is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from stratagem.core.backend import Constraint, Message, Request
from stratagem.core.task import Task

Prompt = str | Task | Sequence[Message]
POLICY = "policy"
JUDGE = "judge"
REWARD = "reward"


def as_messages(prompt: Prompt) -> tuple[Message, ...]:
    """A conversation from a plain question, a task or messages."""
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    return prompt.messages if isinstance(prompt, Task) else tuple(prompt)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample; ``None`` is the model's own default."""

    temperature: float | None = None
    top_p: float = 1.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    constraint: Constraint | None = None
    tools: str = ""  # see Request
    calls: bool = True  # see Request
    processors: str = ""  # see Request

    def request(self, messages: tuple[Message, ...], n: int = 1, priority: int = 0) -> Request:
        """What asks for such samples."""
        how: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        return Request(messages, n, priority=priority, **how)
