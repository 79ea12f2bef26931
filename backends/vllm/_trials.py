"""The folder of a search: a header and a line per trial, each written through, so that a kill loses one at most."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from stratagem.core.errors import ConfigurationError, StoreError
from stratagem.core.files import lock

FILE = "trials.jsonl"


class TrialFile:
    """Open for one search; another process that opens it is refused."""

    def __init__(self, path: Path, file: int, header: dict[str, Any], lines: list[dict[str, Any]]) -> None:
        self._path = path
        self._file = file
        self.header = header
        self.lines = lines

    @classmethod
    def open(cls, folder: Path, asked: Mapping[str, Any], found: Mapping[str, Any]) -> Self:
        """Begin with a header of what was asked for and what was found out, or go on with the one that is there.

        Raises:
            ConfigurationError: it holds a search of something else; names what differs.
            StoreError: it cannot be written, is damaged, or is in use.
        """
        path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise StoreError(f"Cannot write to {folder}: {error.strerror}.") from None
        try:
            lock(file, folder, "search")
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            os.ftruncate(file, len(whole))  # cut off the line that a kill has torn
            lines = list(_parsed(path, whole))
            fresh = {"asked": dict(asked), **found}
            made = cls(path, file, lines[0] if lines else fresh, lines[1:])
            there = made._asked()
            if made.lines:
                _same(folder, there, asked)
            else:  # nothing was measured yet: what was asked for may have been what failed
                os.ftruncate(file, 0)
                made.header = fresh
                made._write(fresh)
        except BaseException:
            os.close(file)
            raise
        return made

    def append(self, line: dict[str, Any]) -> None:
        """Write a trial through to the disk."""
        self._write(line)
        self.lines.append(line)

    def close(self) -> None:
        """Let others in."""
        os.close(self._file)

    def _write(self, line: dict[str, Any]) -> None:
        left = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        try:
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except OSError as error:
            raise StoreError(f"Cannot write {self._path}: {error.strerror}.") from error

    def _asked(self) -> Mapping[str, Any]:
        there = self.header.get("asked")
        if not isinstance(there, dict):
            raise StoreError(f"{self._path} is not the file of a search.", remedy="Give another folder.")
        return there


def _same(folder: Path, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    now = json.loads(json.dumps(asked))
    differing = [
        f"{key} is {there.get(key)!r} there and {now.get(key)!r} now"
        for key in dict.fromkeys((*there, *now))
        if there.get(key) != now.get(key)
    ]
    if differing:
        raise ConfigurationError(
            f"{folder} holds a search of something else: {'; '.join(differing)}.",
            remedy="Give another folder, or the settings that are there.",
        )


def _parsed(path: Path, data: bytes) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise StoreError(
                f"{path}:{number} is damaged.", remedy="Delete that line; its trial is run again."
            )
        yield found
