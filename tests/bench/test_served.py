"""What servers have counted around a bench, in its folder and its report."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from stratagem.bench.data import Problem
from stratagem.bench.report import render
from stratagem.bench.results import Results, Served
from stratagem.bench.runner import run_bench
from stratagem.bench.summary import summarise
from stratagem.core.errors import StoreError
from stratagem.core.task import Task
from stratagem.strategies.self_consistency import SelfConsistency
from stratagem.testing.toy import ToyModel
from stratagem.verifiers.exact import Exact


@dataclass(frozen=True)
class Tokens:
    """What `Telling` has counted."""

    decoded: int

    def since(self, earlier: Tokens) -> Tokens:
        return Tokens(self.decoded - earlier.decoded)

    def figures(self) -> dict[str, float]:
        return {"decoded tokens": self.decoded}


class Telling(ToyModel):
    """A model that tells what it has decoded."""

    async def counts(self) -> Mapping[str, Tokens]:
        return {"http://here/<v1>": Tokens(self.books.usage.completion_tokens)}


def bench(out: Path, model: ToyModel, problems: int) -> Results:
    asked = [Problem(f"q{i}", Task.of(f"Question {i}?", id=f"q{i}"), "1") for i in range(problems)]
    strategies = {"vote": SelfConsistency(n=3)}
    return asyncio.run(run_bench(asked, strategies, {"policy": model}, out=out, grader=Exact()))


def test_each_sitting_is_told_in_folder_and_report(tmp_path: Path) -> None:
    model = Telling()
    first = bench(tmp_path, model, 2)
    decoded = sum(cell.usage.completion_tokens for cell in first.cells.values())
    assert first.served == (
        Served("http://here/<v1>", *({"decoded tokens": n} for n in (0, decoded, decoded))),
    )
    second = bench(tmp_path, model, 4)
    more = sum(cell.usage.completion_tokens for cell in second.cells.values()) - decoded
    assert second.served[:1] == first.served
    assert second.served[1].between == {"decoded tokens": more}
    assert second.served[1].before == {"decoded tokens": decoded}
    assert bench(tmp_path, model, 4).served == second.served == Results.read(tmp_path).served
    page = render(second, summarise(second))
    assert "http://here/&lt;v1&gt;" in page
    assert f"<td>{more:.3g}</td>" in page


def test_a_model_that_tells_nothing_adds_nothing(tmp_path: Path) -> None:
    results = bench(tmp_path, ToyModel(), 1)
    assert results.served == ()
    assert "<h2>Servers</h2>" not in render(results, summarise(results))
    assert not (tmp_path / "served.jsonl").exists()


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    bench(tmp_path, Telling(), 1)
    (tmp_path / "served.jsonl").write_text("{}\n")
    with pytest.raises(StoreError, match=r"served.jsonl is damaged.*Delete it"):
        Results.read(tmp_path)
