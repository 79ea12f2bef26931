"""What a bench run found: one cell per problem, strategy and seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from stratagem.bench.data import Problem
from stratagem.core.errors import MissingExtraError
from stratagem.core.usage import Usage

Key = tuple[str, str, int]  # problem id, strategy name, seed


@dataclass(frozen=True, slots=True)
class Sample:
    """One candidate of an answer: what it answers, whether that is right, and its scores by verifier."""

    answer: str | None
    correct: bool
    tokens: int = 0
    scores: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of one strategy on one problem. With an ``error`` it has no answer and is tried again later."""

    problem: str
    strategy: str
    seed: int
    run_seed: int  # what the run was seeded with: repeats the cell alone
    value: str | None = None
    correct: bool = False
    text: str = ""
    confidence: float | None = None
    stopped: str = "complete"
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    samples: tuple[Sample, ...] = ()
    error: str = ""

    @property
    def key(self) -> Key:
        """What it is the result of."""
        return self.problem, self.strategy, self.seed

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """From the plain data that ``asdict`` gives."""
        nested = {"usage": Usage(**data["usage"]), "samples": tuple(Sample(**s) for s in data["samples"])}
        return cls(**{**data, **nested})


@dataclass(frozen=True, slots=True)
class Served:
    """A server's own figures, by name, around a sitting of a bench: of all its clients, others too."""

    server: str
    before: Mapping[str, float]  # since the server's start
    after: Mapping[str, float]
    between: Mapping[str, float]  # what came in the sitting


@dataclass(frozen=True, slots=True)
class Results:
    """Cells of a folder, restricted to what was asked for. Cells may be missing after an interruption."""

    manifest: Mapping[str, Any]
    problems: tuple[Problem, ...]
    strategies: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: Mapping[Key, Cell]
    skipped: tuple[str, ...] = ()  # broken lines of the data file that were left out
    served: tuple[Served, ...] = ()  # of sittings that came to their end, where servers tell

    @classmethod
    def read(cls, folder: Path | str) -> Self:
        """All that a folder holds, of finished, interrupted or running benches.

        Raises:
            StoreError: it is no folder of a bench, or a file in it is damaged.
        """
        from stratagem.bench.store import read_cells, read_manifest, read_problems, read_served

        folder = Path(folder)
        manifest = read_manifest(folder)
        problems = tuple(read_problems(folder).values())
        cells, _ = read_cells(folder)
        seeds = tuple(dict.fromkeys((*manifest.get("seeds", ()), *sorted({seed for _, _, seed in cells}))))
        served = read_served(folder)
        return cls(manifest, problems, tuple(manifest["strategies"]), seeds, cells, served=served)

    @property
    def failed(self) -> tuple[Cell, ...]:
        """Cells that ended with an error."""
        return tuple(cell for cell in self.cells.values() if cell.error)

    @property
    def missing(self) -> int:
        """Cells that have not been run yet."""
        return len(self.problems) * len(self.strategies) * len(self.seeds) - len(self.cells)

    def of(self, strategy: str, problem: str) -> tuple[Cell, ...]:
        """The cells of a strategy on a problem, in order of seed."""
        keys = ((problem, strategy, seed) for seed in self.seeds)
        return tuple(self.cells[key] for key in keys if key in self.cells)

    def to_parquet(self, path: Path | str) -> None:
        """Write one row per cell, with question and gold answer (needs the extra ``bench``)."""
        try:
            import pyarrow as pa  # type: ignore[import-untyped]
            import pyarrow.parquet as pq  # type: ignore[import-untyped]
        except ImportError:
            raise MissingExtraError("pyarrow", "bench") from None
        by_id = {problem.id: problem for problem in self.problems}
        rows: list[dict[str, Any]] = []
        for cell in self.cells.values():
            row = asdict(cell)
            usage = row.pop("usage")
            problem = by_id[cell.problem]
            # The scores are a map: a struct would need the same ones everywhere.
            row["samples"] = [
                {**asdict(s), "answer": _encodable(s.answer), "scores": list(s.scores.items())}
                for s in cell.samples
            ]
            row |= {"question": problem.task.question, "gold": problem.gold, **usage}
            rows.append({key: _encodable(value) for key, value in row.items()})
        sample = pa.struct(
            [
                ("answer", pa.string()),
                ("correct", pa.bool_()),
                ("tokens", pa.int64()),
                ("scores", pa.map_(pa.string(), pa.float64())),
            ]
        )
        text, integer, real = pa.string(), pa.int64(), pa.float64()
        schema = pa.schema(
            [
                *((name, text) for name in ("problem", "question", "gold", "strategy")),
                *((name, integer) for name in ("seed", "run_seed")),
                ("value", text),
                ("correct", pa.bool_()),
                ("text", text),
                ("confidence", real),
                ("stopped", text),
                *((name, integer) for name in ("prompt_tokens", "completion_tokens", "cached_tokens")),
                *((name, integer) for name in ("uncertain_tokens", "calls")),
                *((name, real) for name in ("money", "seconds")),
                ("samples", pa.list_(sample)),
                ("error", text),
            ]
        )
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def _encodable(value: Any) -> Any:
    """Text without the lone surrogates that a server's JSON may hold and UTF-8 has no bytes for."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
