"""The beginnings of a completion, whatever the pieces in which it comes. Nothing in here waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from stratagem.core.backend import Chunk, TokenLogprob

Unit = Literal["line", "token"]


class Prefixes:
    """Gives each prefix that a checkpoint asks for, once.

    Args:
        unit: non-empty lines, each up to where its newline begins, once that has come; or tokens, which have to
            be asked for with their log-probabilities: a piece of text may be of several.
        place: of each checkpoint by its number from 0, ascending; ``None``: there is no such checkpoint.
    """

    def __init__(self, unit: Unit, place: Callable[[int], int | None]) -> None:
        self._unit, self._place = unit, place
        self._text = ""
        self._tokens: tuple[TokenLogprob, ...] = ()
        self._lines = self._line_start = 0
        self.reached = 0  # checkpoints

    def add(self, chunk: Chunk) -> Iterator[tuple[int, str]]:
        """The checkpoints that this piece reaches: number and prefix."""
        if self._unit == "line":
            self._text += chunk.text
            yield from self._at_lines()
        else:
            self._tokens += chunk.tokens
            while (place := self._place(self.reached)) is not None and len(self._tokens) >= place:
                self.reached += 1
                yield self.reached - 1, "".join(t.token for t in self._tokens[:place])

    def _at_lines(self) -> Iterator[tuple[int, str]]:
        while (end := self._text.find("\n", self._line_start)) >= 0:
            line, start = self._text[self._line_start : end], self._line_start
            self._line_start = end + 1
            self._lines += bool(line.strip())
            if line.strip() and self._lines == self._place(self.reached):
                self.reached += 1
                yield self.reached - 1, self._text[: start + len(line.rstrip())]
