"""A backend that records a conversation with a model to a file, or plays it back without the model: for tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stratagem.backends._replay.replaying import Replaying
from stratagem.core.backend import (
    Backend,
    Capabilities,
    Generation,
    Message,
    Request,
    ScoreRequest,
    Scoring,
    Stream,
)
from stratagem.core.errors import DataError, StoreError
from stratagem.core.usage import Meter, Prices

_ABOUT = "about"  # the key of the line that says which backend was recorded


class Recorded(Replaying):
    """Everything that was asked and answered, in a file of JSON lines, one object with `key` and `value` each.

    With a backend it plays what is in the file and records the rest; without one it plays only. What is drawn
    at random (no seed, temperature not 0) is not recorded.

    Args:
        path: the file.
        inner: the backend to record.

    Raises:
        DataError: the file cannot be read.
    """

    def __init__(self, path: str | Path, inner: Backend | None = None) -> None:
        self._path = Path(path)
        self._lines: dict[str, str] = _read(self._path) if inner is None or self._path.exists() else {}
        super().__init__(inner if inner is not None else _Absent(self._path, self._lines.get(_ABOUT)))
        self._recording = inner is not None

    async def capabilities(self) -> Capabilities:
        """The recorded backend's."""
        caps = await super().capabilities()
        if self._recording and _ABOUT not in self._lines:
            about = {**asdict(caps), "constraints": sorted(caps.constraints)}
            await self.remember({_ABOUT: json.dumps({"name": self.name, "capabilities": about})})
        return caps

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        """As recorded, or as the backend says."""
        key = "count/" + json.dumps([asdict(m) for m in messages], ensure_ascii=False)
        if key not in self._lines:
            await self.remember({key: str(await self.inner.count_tokens(messages))})
        return int(self._lines[key])

    async def recall(self, keys: Sequence[str]) -> Mapping[str, str]:
        """What is in the file."""
        return {key: self._lines[key] for key in keys if key in self._lines}

    async def remember(self, rows: Mapping[str, str]) -> None:
        """Raises StoreError."""
        self._lines.update(rows)
        await asyncio.to_thread(self._append, rows)

    def _append(self, rows: Mapping[str, str]) -> None:
        lines = [json.dumps({"key": k, "value": v}, ensure_ascii=False) + "\n" for k, v in rows.items()]
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
        except OSError as error:
            raise StoreError(f"The recording {self._path} cannot be written: {error.strerror}.") from error


def _read(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The recording {path} cannot be read: {error}.") from error
    lines: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            entry = json.loads(line)
            lines[str(entry["key"])] = str(entry["value"])
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"Line {number} of the recording {path} is broken: {error}.") from error
    return lines


class _Absent:
    """Stands for the backend that was recorded: knows what it could, and answers nothing new."""

    def __init__(self, path: Path, about: str | None) -> None:
        self._path = path
        if about is None:
            raise DataError(f"The recording {path} does not say which backend it is of.")
        data: dict[str, Any] = json.loads(about)
        caps = data["capabilities"]
        caps |= {"constraints": frozenset(caps["constraints"]), "prices": Prices(**caps["prices"])}
        self.name = str(data["name"])
        self._capabilities = Capabilities(**caps)

    def _missing(self) -> StoreError:
        remedy = "Record it: give the backend as well."
        return StoreError(f"The recording {self._path} has no answer to this request.", remedy=remedy)

    async def capabilities(self) -> Capabilities:
        return self._capabilities

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        raise self._missing()

    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        raise self._missing()

    @asynccontextmanager
    async def stream(
        self, request: Request, meter: Meter | None = None, *, deltas: bool = True
    ) -> AsyncIterator[Stream]:
        raise self._missing()
        yield

    async def score(self, request: ScoreRequest, meter: Meter | None = None) -> Scoring:
        raise self._missing()

    async def aclose(self) -> None:
        """Nothing to close."""
