"""Token sequences of past runs, and where in them a run of tokens stands.

A suffix array: the places of all tokens, sorted by what stands there, up to :data:`DEPTH` tokens. All places where
the same tokens begin are neighbours in it, and two binary searches find them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from stratagem.core.errors import ConfigurationError, StoreError

DEPTH = 32  # tokens by which places are sorted: the longest match and what follows it
END = -1  # stands after each sequence


class Datastore:
    """The sequences, one after another; about 12 bytes of memory a token, and 4 on disk before compression.

    Args:
        tokens: all of them, with :data:`END` after each sequence.
        vocabulary: the digest of the vocabulary that they are of, if it is known.
    """

    def __init__(self, tokens: NDArray[np.int32], vocabulary: str = "") -> None:
        self.tokens = tokens
        self.vocabulary = vocabulary
        self._places = _sorted_places(tokens)

    @classmethod
    def of(cls, sequences: Iterable[Sequence[int]], vocabulary: str = "") -> Self:
        """From sequences of token ids."""
        parts = [np.asarray([*sequence, END], np.int32) for sequence in sequences if len(sequence)]
        return cls(np.concatenate(parts) if parts else np.empty(0, np.int32), vocabulary)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """From a file of :meth:`save`.

        Raises:
            ConfigurationError: it cannot be read, or is no such file.
        """
        remedy = "Make one with: stratagem vllm datastore"
        try:
            with np.load(path, allow_pickle=False) as file:
                tokens = file["tokens"]
                vocabulary = str(file["vocabulary"]) if "vocabulary" in file else ""
        except OSError as error:
            raise ConfigurationError(
                f"The datastore {path} cannot be read: {error.strerror}.", remedy=remedy
            ) from error
        except (ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            raise ConfigurationError(f"{path} is no datastore.", remedy=remedy) from error
        if tokens.dtype != np.int32 or tokens.ndim != 1 or (len(tokens) and tokens[-1] != END):
            raise ConfigurationError(f"{path} is no datastore.", remedy=remedy)
        return cls(tokens, vocabulary)

    def save(self, path: str | Path) -> None:
        """Write it to a file, compressed. Raises StoreError."""
        try:
            with Path(path).open("wb") as file:
                np.savez_compressed(file, tokens=self.tokens, vocabulary=self.vocabulary)
        except OSError as error:
            raise StoreError(f"The datastore {path} cannot be written: {error.strerror}.") from error

    @property
    def sequences(self) -> int:
        """How many there are."""
        return int(np.count_nonzero(self.tokens == END))

    def find(self, context: Sequence[int]) -> tuple[NDArray[np.int64], int]:
        """Where something stands that the longest end of ``context`` is followed by.

        Args:
            context: its last tokens; at most ``DEPTH`` are looked at.

        Returns:
            The places after it, sorted by the tokens there, and how many tokens match; without a match no places.
        """
        shortest, longest = 0, min(len(context), DEPTH)
        found = self._places[:0]
        # What a longer end is found for, a shorter one is.
        while shortest < longest:
            middle = (shortest + longest + 1) // 2
            places = self._range(tuple(context[len(context) - middle :]))
            if len(places):
                shortest, found = middle, places
            else:
                longest = middle - 1
        return found + shortest, shortest

    def _range(self, wanted: tuple[int, ...]) -> NDArray[np.int64]:
        """The places where these tokens stand and something follows."""
        wanted_end = (*wanted, 0)  # END, which sorts first, is nothing that follows
        low = self._bound(wanted_end, len(wanted) + 1)
        return self._places[low : self._bound((*wanted[:-1], wanted[-1] + 1), len(wanted))]

    def _bound(self, wanted: tuple[int, ...], length: int) -> int:
        """How many places hold something before ``wanted`` in their first ``length`` tokens."""
        low, high = 0, len(self._places)
        while low < high:
            middle = (low + high) // 2
            place = int(self._places[middle])
            if tuple(self.tokens[place : place + length].tolist()) < wanted:
                low = middle + 1
            else:
                high = middle
        return low

    def following(self, places: NDArray[np.int64], limit: int) -> list[list[int]]:
        """What stands at those places, at most ``limit`` tokens of each, without its sequence's end."""
        rows = [self.tokens[place : place + limit].tolist() for place in places]
        return [list(itertools.takewhile(lambda token: token != END, row)) for row in rows]


def _sorted_places(tokens: NDArray[np.int32]) -> NDArray[np.int64]:
    """All places, by the DEPTH + 1 tokens there at least: ranks by one token, then by two, four, ..."""
    if not len(tokens):
        return np.empty(0, np.int64)
    _, ranks = np.unique(tokens, return_inverse=True)
    places = np.argsort(ranks, kind="stable")
    span = 1
    while span <= DEPTH and ranks[places[-1]] + 1 < len(ranks):  # else all differ already
        after = np.full(len(ranks), -1)
        after[:-span] = ranks[span:]
        both = (ranks + 1) * (len(ranks) + 2) + after + 1
        places = np.argsort(both, kind="stable")
        ordered = both[places]
        steps = np.concatenate(([0], np.cumsum(ordered[1:] != ordered[:-1])))
        ranks = np.empty(len(ranks), np.int64)
        ranks[places] = steps
        span *= 2
    return places
