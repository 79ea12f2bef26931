"""The folder of a bench: what is finished survives a kill at any moment.

``manifest.json`` says how the results came about, ``problems.jsonl`` on what, and ``results.jsonl`` holds a
line per finished cell, written through to the disk before the cell counts as finished. ``served.jsonl`` has what
servers have counted around each sitting that came to its end.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from stratagem.bench.data import Problem
from stratagem.bench.results import Cell, Key, Served
from stratagem.core.errors import ConfigurationError, DataError, StoreError
from stratagem.core.files import lock
from stratagem.core.task import Task

MANIFEST, PROBLEMS, RESULTS = "manifest.json", "problems.jsonl", "results.jsonl"
SERVED = "served.jsonl"


class Store:
    """A folder opened for one bench run; another process that opens it is refused."""

    def __init__(self, folder: Path, cells: dict[Key, Cell], file: int) -> None:
        self.folder = folder
        self.cells = cells
        self._file = file
        self._failure: StoreError | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="stratagem-bench")

    @classmethod
    def open(cls, folder: Path, manifest: Mapping[str, Any], problems: Sequence[Problem]) -> Self:
        """Make the folder, or go on in it.

        Raises:
            ConfigurationError: it holds results of other settings; the message names what differs.
            DataError: it holds results of other problems with the same ids.
            StoreError: it cannot be written, is damaged, or is in use.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = os.open(folder / RESULTS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise StoreError(f"Cannot write to {folder}: {error.strerror}.") from None
        try:
            lock(file, folder, "bench")
            cells, size = read_cells(folder)
            _settle_manifest(folder, manifest, fresh=not cells)
            _settle_problems(folder, problems, fresh=not cells)
            os.ftruncate(file, size)  # cut off the line that a kill has torn
        except BaseException:
            os.close(file)
            raise
        return cls(folder, cells, file)

    async def append(self, cell: Cell) -> None:
        """Write a finished cell through to the disk. Cancelling does not undo it."""
        line = json.dumps(asdict(cell)).encode() + b"\n"
        await asyncio.shield(asyncio.wrap_future(self._writer.submit(self._write, line)))
        self.cells[cell.key] = cell

    async def keep(self, served: Sequence[Served]) -> None:
        """Add what servers have counted to that of earlier sittings."""
        if served:
            lines = (json.dumps(asdict(each)) + "\n" for each in (*read_served(self.folder), *served))
            await asyncio.to_thread(_replace, self.folder / SERVED, "".join(lines))

    def _write(self, line: bytes) -> None:
        if self._failure is not None:  # nothing may follow a line that may be torn
            raise self._failure
        try:
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
        except OSError as error:
            self._failure = StoreError(f"Cannot write {self.folder / RESULTS}: {error.strerror}.")
            raise self._failure from error

    def close(self) -> None:
        """Finish what is being written, and let others in."""
        self._writer.shutdown(wait=True)
        os.close(self._file)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The settings that the folder's results came about by."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(f"{folder} holds no bench results.", remedy=f"There is no {MANIFEST}.") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"Cannot read {path}: {error}.") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("strategies"), dict):
        raise StoreError(f"{path} is no manifest of a bench.", remedy="Use another folder.")
    return manifest


def read_problems(folder: Path) -> dict[str, Problem]:
    """The folder's problems by id, in the order in which they were first asked for."""
    path = folder / PROBLEMS
    problems: dict[str, Problem] = {}
    for number, line in enumerate(_whole_lines(path)[0], start=1):
        try:
            data = json.loads(line)
            problem = Problem(data["id"], Task.model_validate(data["task"]), data["gold"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path}:{number} is damaged: {error}.") from None
        problems[problem.id] = problem
    return problems


def read_cells(folder: Path) -> tuple[dict[Key, Cell], int]:
    """The finished cells, the last of each key, and the size in bytes of the whole lines.

    A last line without its end is what a killed process leaves: that cell is not finished.
    """
    path = folder / RESULTS
    lines, size = _whole_lines(path)
    cells: dict[Key, Cell] = {}
    for number, line in enumerate(lines, start=1):
        try:
            cell = Cell.of(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path}:{number} is damaged: {error}.", remedy="Delete that line; its cell is run again."
            ) from None
        cells[cell.key] = cell
    return cells, size


def read_served(folder: Path) -> tuple[Served, ...]:
    """What servers have counted, sitting by sitting."""
    path = folder / SERVED
    try:
        return tuple(Served(**json.loads(line)) for line in _whole_lines(path)[0])
    except (ValueError, TypeError) as error:
        raise StoreError(f"{path} is damaged: {error}.", remedy="Delete it; no result is in it.") from None


def _whole_lines(path: Path) -> tuple[list[bytes], int]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise StoreError(f"Cannot read {path}: {error.strerror}.") from None
    size = data.rfind(b"\n") + 1
    return data[:size].split(b"\n")[:-1], size


def _settle_manifest(folder: Path, manifest: Mapping[str, Any], *, fresh: bool) -> None:
    """Write the manifest, or check it against the one that is there; strategies and seeds may be added.

    In a ``fresh`` folder nothing has come about by the one that is there.
    """
    exists = (folder / MANIFEST).exists()
    there = read_manifest(folder) if exists else {}  # whatever it is: another program's is not written over
    if fresh or not exists:
        _replace(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        return
    seeds = list(dict.fromkeys((*there.get("seeds", ()), *manifest["seeds"])))
    common = [name for name in manifest["strategies"] if name in there["strategies"]]
    differing = list(
        _differences(
            {**there, "seeds": seeds, "strategies": {name: there["strategies"][name] for name in common}},
            {
                **manifest,
                "seeds": seeds,
                "strategies": {name: manifest["strategies"][name] for name in common},
            },
        )
    )
    if differing:
        raise ConfigurationError(
            f"{folder} holds results of other settings: {'; '.join(differing)}.",
            remedy="Use another folder, or the settings that are there.",
        )
    strategies = {**there["strategies"], **manifest["strategies"]}
    whole = {**there, "strategies": strategies, "seeds": seeds}
    if whole != there:
        _replace(folder / MANIFEST, json.dumps(whole, indent=2) + "\n")


def _differences(there: Any, now: Any, path: str = "") -> Iterator[str]:
    if isinstance(there, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*there, *now)):
            yield from _differences(there.get(key), now.get(key), f"{path}.{key}" if path else str(key))
    elif there != now:
        yield f"{path} is {json.dumps(there)} there and {json.dumps(now)} now"


def _settle_problems(folder: Path, problems: Sequence[Problem], *, fresh: bool) -> None:
    there = {} if fresh else read_problems(folder)
    for problem in problems:
        if there.get(problem.id, problem) != problem:
            raise DataError(
                f"Problem {problem.id!r} is not the one that {folder} holds results of.",
                remedy="The data has changed: use another folder.",
            )
    if any(problem.id not in there for problem in problems):
        everything = {**there, **{problem.id: problem for problem in problems}}
        lines = (
            json.dumps({"id": p.id, "gold": p.gold, "task": p.task.model_dump(mode="json")})
            for p in everything.values()
        )
        _replace(folder / PROBLEMS, "".join(f"{line}\n" for line in lines))


def _replace(path: Path, text: str) -> None:
    """Write a file so that a kill leaves either the old one or the new one."""
    draft = path.with_name(path.name + ".new")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StoreError(f"Cannot write {path}: {error.strerror}.") from None
