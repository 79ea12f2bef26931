"""What a proposer of draft tokens is, and what it sees of a request."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stratagem.backends.vllm.speculative.tree import Tree

Ids = NDArray[np.int32]
Tops = Sequence[tuple[int, Sequence[int]]]


class Context:
    """The tokens of one request so far.

    Args:
        tokens: what was there when it was first seen: its prompt; after a preemption, also what it had decoded.
    """

    __slots__ = ("_buffer", "length", "prompt")

    def __init__(self, tokens: Sequence[int] | Ids) -> None:
        self.length = self.prompt = len(tokens)
        self._buffer = np.empty(max(64, 2 * self.length), np.int32)
        self._buffer[: self.length] = tokens

    @property
    def tokens(self) -> Ids:
        """All of them: a view, good until the next :meth:`extend`."""
        return self._buffer[: self.length]

    def extend(self, tokens: Sequence[int]) -> None:
        """Append what was decoded."""
        end = self.length + len(tokens)
        if end > len(self._buffer):
            grown = np.empty(2 * end, np.int32)
            grown[: self.length] = self.tokens
            self._buffer = grown
        self._buffer[self.length : end] = tokens
        self.length = end

    def last(self, count: int) -> tuple[int, ...]:
        """The last tokens, at most ``count``."""
        return tuple(self._buffer[max(0, self.length - count) : self.length].tolist())


class Proposer(ABC):
    """Guesses how requests go on. It is never told that a guess was bad other than by what was decoded instead.

    One thread calls it. A wrong guess costs time and never changes an output.
    """

    successors: int = 0  # how many of the target's likeliest next tokens it can learn from at each place

    def start(self, context: Context) -> None:  # noqa: B027 - most have nothing to do
        """A request appears, or comes back after a preemption."""

    @abstractmethod
    def propose(self, context: Context, limit: int) -> Tree:
        """Guesses of at most ``limit`` tokens in a row; an empty tree for none."""

    def learn(self, context: Context, decoded: Sequence[int], tops: Tops) -> None:  # noqa: B027 - as above
        """``decoded`` has just become the end of ``context``.

        Args:
            context: the request, with ``decoded``.
            decoded: what the target accepted of the last guess, and its own next token.
            tops: where the engine tells, input tokens of the step (accepted or not), each with the target's
                likeliest next tokens after it, best first.
        """

    def stop(self, context: Context) -> None:  # noqa: B027 - as above
        """The request has ended or is preempted."""
