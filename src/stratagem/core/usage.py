"""What model calls cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Usage:
    """Cost of one or more model calls, in the server's own tokens.

    ``uncertain_tokens`` bounds what the server may have decoded or prefilled beyond the other counts
    without telling us (a connection that dropped, an abort noticed one step late). The true cost lies in
    ``[tokens, tokens + uncertain_tokens]``; budgets are charged the upper end.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0  # part of prompt_tokens that the server's prefix cache answered
    uncertain_tokens: int = 0
    calls: int = 0  # requests the server took on; one it refused unheard (429, no connection) is none
    money: float = 0.0  # in the currency of the backend's price list

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens that are known to have been processed."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.uncertain_tokens + other.uncertain_tokens,
            self.calls + other.calls,
            self.money + other.money,
        )


def _always() -> bool:
    return True


@dataclass(slots=True)
class Meter:
    """Collects what a call spends while it runs, so that a failed or cancelled call is billed too.

    A backend asks :attr:`again` before it sends a request once more that may have been billed already; the
    caller reserves the same cost again or answers no.
    """

    usage: Usage = field(default_factory=Usage)
    again: Callable[[], bool] = _always

    def add(self, usage: Usage) -> None:
        """Count ``usage`` as spent."""
        self.usage = self.usage + usage


@dataclass(frozen=True, slots=True)
class Prices:
    """Price list of an endpoint, per million tokens."""

    prompt: float = 0.0
    completion: float = 0.0

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Money for that many tokens."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6
