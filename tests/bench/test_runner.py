"""Bench runs: what they measure, and that nothing finished is lost or run twice."""

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bench_kit import figures, keys
from stratagem.bench.data import Dataset, Problem
from stratagem.bench.results import Results
from stratagem.bench.runner import Progress, run_bench
from stratagem.bench.summary import summarise
from stratagem.core.backend import Backend, Request, ScoreRequest
from stratagem.core.budget import Amount, Budget
from stratagem.core.errors import (
    BudgetExhausted,
    ConfigurationError,
    DataError,
    StoreError,
    UnavailableError,
)
from stratagem.core.protocols import Strategy
from stratagem.core.run import Run
from stratagem.core.task import Answer, Task
from stratagem.strategies.best_of_n import BestOfN
from stratagem.strategies.chain_of_thought import ChainOfThought
from stratagem.strategies.self_consistency import SelfConsistency
from stratagem.testing.faults import Failing
from stratagem.testing.language import right_answer
from stratagem.testing.toy import ToyModel
from stratagem.verifiers.exact import Exact


def questions(count: int) -> list[Problem]:
    return [
        Problem(f"q{i}", Task.of(f"Question {i}?", id=f"q{i}"), right_answer(f"Question {i}?"))
        for i in range(count)
    ]


def bench(
    out: Path,
    *,
    count: int = 6,
    problems: list[Problem] | Dataset | None = None,
    strategies: Mapping[str, Strategy] | None = None,
    model: Backend | None = None,
    **options: Any,
) -> Results:
    return asyncio.run(
        run_bench(
            problems or questions(count),
            strategies or {"one": ChainOfThought()},
            {"policy": model or ToyModel()},
            out=out,
            grader=Exact(),
            **options,
        )
    )


def test_accuracy_and_cost_are_those_of_the_enumerated_model(tmp_path: Path) -> None:
    model = ToyModel()
    results = bench(
        tmp_path,
        count=300,
        strategies={"one": ChainOfThought(), "vote": SelfConsistency(n=5)},
        model=model,
        seeds=(0, 1, 2),
    )
    summary = summarise(results)
    one, vote = summary.row("one"), summary.row("vote")
    expected = sum(
        p
        for text, p in model.enumerate("Question 0?").items()
        if text.endswith(f"{right_answer('Question 0?')}.")
    )
    # 300 problems with three independent runs each.
    assert abs(one.accuracy.value - expected) < 4 * (expected * (1 - expected) / 900) ** 0.5
    assert one.accuracy.low < expected < one.accuracy.high
    assert summary.difference("vote", "one").low > 0
    assert one.runs == vote.runs == 900
    assert one.tokens.total + vote.tokens.total == model.books.usage.tokens
    assert one.calls.total == 900
    assert one.completion_tokens.mean.value == pytest.approx(one.completion_tokens.total / 900)
    # Of five samples, one is as good as one sample, and all five are what the vote had.
    [curve] = summary.curves
    assert curve.k == (1, 2, 4, 5)
    assert abs(curve.majority[0] - expected) < 4 * (expected * (1 - expected) / 4500) ** 0.5
    assert curve.majority[0] == pytest.approx(curve.any_right[0])
    assert curve.majority[-1] == pytest.approx(vote.accuracy.value, abs=0.03)  # ties go to the first there
    assert list(curve.any_right) == sorted(curve.any_right)


def test_judges_are_measured_on_the_samples_they_scored(tmp_path: Path) -> None:
    results = bench(tmp_path, count=20, strategies={"best": BestOfN(n=4)})
    found = {c.source: c for c in summarise(results).calibrations}
    assert found["step_judge"].size == 80
    assert found["step_judge"].auc == 1.0  # the toy judge gives every right answer more than any wrong one
    scores = [s.scores["step_judge"] for cell in results.cells.values() for s in cell.samples]
    assert len(scores) == 80


def test_strategies_meet_the_same_samples_and_problems_different_chances(tmp_path: Path) -> None:
    results = bench(
        tmp_path, strategies={"one": ChainOfThought(), "vote": SelfConsistency(n=4)}, seeds=(0, 1)
    )
    for problem in results.problems:
        for one, vote in zip(results.of("one", problem.id), results.of("vote", problem.id), strict=True):
            assert one.value == vote.samples[0].answer
            assert one.run_seed == vote.run_seed
    assert len({cell.run_seed for cell in results.cells.values()}) == 12


def test_finished_cells_are_not_run_again_and_more_may_be_added(tmp_path: Path) -> None:
    first = bench(tmp_path, count=4)
    model = ToyModel()
    assert bench(tmp_path, count=4, model=model).cells == first.cells
    assert model.books.usage.calls == 0
    seen: list[Progress] = []
    more = bench(
        tmp_path,
        count=6,
        strategies={"one": ChainOfThought(), "vote": SelfConsistency(n=2)},
        model=model,
        seeds=(0, 3),
        listener=seen.append,
    )
    assert (seen[0].done, seen[0].total) == (4, 24)
    assert seen[-1].done == 24
    assert model.books.usage.calls == 20
    assert set(keys(tmp_path).values()) == {1}
    assert {k: more.cells[k] for k in first.cells} == first.cells
    # What was not asked for this time is kept, and left out of the result.
    assert len(bench(tmp_path, count=2).cells) == 2
    assert len(Results.read(tmp_path).cells) == 24


def test_cancelled_it_stops_the_engine_and_keeps_what_is_finished(tmp_path: Path) -> None:
    model = ToyModel()
    finished: list[Progress] = []

    async def main() -> None:
        enough = asyncio.Event()

        def listen(progress: Progress) -> None:
            finished.append(progress)
            if progress.done >= 5:
                enough.set()

        running = asyncio.create_task(
            run_bench(
                questions(40),
                {"vote": SelfConsistency(n=4)},
                {"policy": model},
                out=tmp_path,
                concurrency=4,
                grader=Exact(),
                listener=listen,
                seeds=(0, 1),
            )
        )
        await enough.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert model.books.in_flight == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    told = {p.cell.key for p in finished if p.cell is not None}
    kept = Results.read(tmp_path)
    assert told <= set(kept.cells)
    assert 5 <= len(kept.cells) < 40
    assert kept.missing == 80 - len(kept.cells)  # also where a seed has no cell yet
    assert summarise(kept).row("vote").runs == len(kept.cells)
    bench(tmp_path, count=40, strategies={"vote": SelfConsistency(n=4)}, seeds=(0, 1))
    assert set(keys(tmp_path).values()) == {1}
    assert figures(Results.read(tmp_path)) == figures(
        bench(tmp_path / "whole", count=40, strategies={"vote": SelfConsistency(n=4)}, seeds=(0, 1))
    )


def test_a_failed_run_is_data_and_tried_again(tmp_path: Path) -> None:
    failing = Failing(ToyModel(), {2, 4})
    results = bench(tmp_path, model=failing, concurrency=1)
    assert len(results.failed) == 2
    assert all(cell.error.startswith("BackendError: The model broke down.") for cell in results.failed)
    row = summarise(results).row("one")
    assert (row.runs, row.failed) == (6, 2)
    assert not any(cell.correct for cell in results.failed)
    model = ToyModel()
    again = bench(tmp_path, model=model)
    assert not again.failed
    assert model.books.usage.calls == 2
    assert figures(again) == figures(bench(tmp_path / "whole"))


class Dead(ToyModel):
    """A server that went away after some calls."""

    def __init__(self, after: int) -> None:
        super().__init__(pace=self._die)
        self._left = after

    async def _die(self, _: Request | ScoreRequest) -> None:
        self._left -= 1
        if self._left < 0:
            raise UnavailableError("No server answers.", remedy="Start it.")


def test_a_server_that_is_gone_ends_the_bench(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="Start it"):
        bench(tmp_path, count=200, model=Dead(after=60), concurrency=2)
    kept = Results.read(tmp_path)
    assert 0 < len(kept.cells) - len(kept.failed) < 30
    assert len(kept.failed) < 30  # and not all that were left


def test_out_of_budget_is_an_outcome_and_not_tried_again(tmp_path: Path) -> None:
    short, long = (
        questions(3),
        [replace(p, task=Task.of(f"{p.task.question} {'so ' * 99}")) for p in questions(6)],
    )
    problems = [*short, *long[3:]]
    tight = Budget(tokens=60)  # more than a short prompt, less than a long one
    results = bench(tmp_path, problems=problems, budget=tight)
    stopped = [results.cells[p.id, "one", 0].stopped for p in problems]
    assert stopped[3:] == ["budget"] * 3
    assert not results.failed
    assert summarise(results).row("one").cut_short == stopped.count("budget")
    model = ToyModel()
    bench(tmp_path, problems=problems, budget=tight, model=model)
    assert model.books.usage.calls == 0
    assert set(keys(tmp_path).values()) == {1}


@pytest.mark.parametrize("tight", [Budget(tokens=3), Budget(calls=0), Budget(seconds=0)])
def test_a_budget_that_admits_no_call_is_an_error_and_no_accuracy(tmp_path: Path, tight: Budget) -> None:
    for _ in range(2):  # and no outcome that the folder would remember
        with pytest.raises(
            BudgetExhausted, match="No run of 'one' could pay for a call: The budget is exhausted"
        ):
            bench(tmp_path, budget=tight)
    assert not bench(
        tmp_path, budget=Budget(tokens=3000)
    ).failed  # a folder without results takes other settings
    with pytest.raises(ConfigurationError, match=r"budget\.tokens is 3000 there"):
        bench(tmp_path, budget=tight)


def test_a_strategy_that_the_budget_starves_leaves_the_others_results(tmp_path: Path) -> None:
    strategies = {"one": ChainOfThought(), "many": Dear()}
    with pytest.raises(BudgetExhausted, match="No run of 'many'"):
        bench(tmp_path, strategies=strategies, budget=Budget(calls=1))
    assert {key[1] for key in keys(tmp_path)} == {"one"}
    assert len(keys(tmp_path)) == 6


class Dear(Strategy):
    """Wants more at once than it may have."""

    kind: ClassVar[str] = "test_dear"

    async def __call__(self, task: Task, run: Run) -> Answer:
        await run.ledger.reserve(Amount(calls=2))
        raise AssertionError


def test_a_folder_does_not_mix_settings(tmp_path: Path) -> None:
    strategies = {"vote": SelfConsistency(n=2)}
    bench(tmp_path, strategies=strategies)
    before = (tmp_path / "results.jsonl").read_bytes()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"strategies": {"vote": SelfConsistency(n=3)}}, "strategies.vote.n is 2 there and 3 now"),
        ({"strategies": {"vote": ChainOfThought()}}, "strategies.vote.kind is "),
        ({"strategies": strategies, "budget": Budget(calls=9)}, "budget.calls is null there and 9 now"),
        ({"strategies": strategies, "model": Renamed()}, 'models.policy is "toy:toy" there and "other" now'),
        (
            {"strategies": strategies, "problems": Dataset("gym:words/test", tuple(questions(6)))},
            'data is null there and "gym:words/test" now',
        ),
    ]
    for options, message in cases:
        with pytest.raises(ConfigurationError) as caught:
            bench(tmp_path, **options)
        assert message in str(caught.value)
        assert "Use another folder" in str(caught.value)
    changed = [Problem(p.id, p.task, "0") for p in questions(6)]
    with pytest.raises(DataError, match="'q0' is not the one"):
        bench(tmp_path, strategies=strategies, problems=changed)
    assert (tmp_path / "results.jsonl").read_bytes() == before


class Renamed(ToyModel):
    @property
    def name(self) -> str:
        return "other"


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    async def main() -> None:
        async def one(out: Path) -> Results:
            return await run_bench(
                questions(3), {"one": ChainOfThought()}, {"policy": ToyModel()}, out=out, grader=Exact()
            )

        first = asyncio.create_task(one(tmp_path))
        second = asyncio.create_task(one(tmp_path))
        done = await asyncio.gather(first, second, return_exceptions=True)
        assert isinstance(done[0], Results)
        assert isinstance(done[1], StoreError)
        assert "Another bench is writing" in str(done[1])
        await one(tmp_path)  # given back

    asyncio.run(main())


def test_a_damaged_folder_is_named_with_the_line(tmp_path: Path) -> None:
    bench(tmp_path)
    path = tmp_path / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{}\n", *lines[1:]]))
    with pytest.raises(StoreError, match=r"results.jsonl:2 is damaged"):
        bench(tmp_path)
    path.write_text("".join(lines))
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match=r"Cannot read .*manifest.json"):
        bench(tmp_path)
    with pytest.raises(StoreError, match="holds no bench results"):
        Results.read(tmp_path / "elsewhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Cannot write to"):
        bench(tmp_path / "file")


def test_settings_that_make_no_sense_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigurationError, match="concurrency = 0"):
        bench(out, concurrency=0)
    with pytest.raises(ConfigurationError, match="The seed '1' is there twice"):
        bench(out, seeds=(1, 1))
    with pytest.raises(ConfigurationError, match="The problem 'q0' is there twice"):
        bench(out, problems=questions(1) * 2)
    with pytest.raises(ConfigurationError, match="no 'policy', only judge"):
        asyncio.run(run_bench(questions(1), {"one": ChainOfThought()}, {"judge": ToyModel()}, out=out))
    with pytest.raises(ConfigurationError, match="There is no strategy"):
        asyncio.run(run_bench(questions(1), {}, {"policy": ToyModel()}, out=out))
    assert not out.exists()


class Odd(Strategy):
    """Says what no encoding, page or table likes."""

    kind: ClassVar[str] = "odd"

    async def __call__(self, task: Task, run: Run) -> Answer:
        await run.sample(task)
        return Answer(text="\ud800 \x00 \u2028 </script>\r\nnew line", value="\ud800")


def test_whatever_a_model_writes_can_be_kept(tmp_path: Path) -> None:
    bench(tmp_path, strategies={"odd": Odd()})
    again = bench(tmp_path, strategies={"odd": Odd()})
    assert {cell.text for cell in again.cells.values()} == {"\ud800 \x00 \u2028 </script>\r\nnew line"}
    pytest.importorskip("pyarrow")
    again.to_parquet(tmp_path / "results.parquet")
    assert (tmp_path / "results.parquet").stat().st_size > 0


class Bug(Strategy):
    """Breaks."""

    kind: ClassVar[str] = "bug"

    async def __call__(self, task: Task, run: Run) -> Answer:
        raise ZeroDivisionError("no")


def test_a_strategy_that_breaks_is_a_failed_run(tmp_path: Path) -> None:
    results = bench(tmp_path, strategies={"bug": Bug()})
    assert {cell.error for cell in results.failed} == {
        "StrategyError: Strategy 'bug' failed: ZeroDivisionError: no"
    }


def test_each_run_gets_a_journal_by_its_id(tmp_path: Path) -> None:
    model = ToyModel()
    asked: list[str] = []

    def journal(run_id: str, models: Mapping[str, Backend]) -> Mapping[str, Backend]:
        asked.append(run_id)
        return {"policy": Failing(models["policy"], {1})} if run_id == "q1/one/0" else models

    results = bench(tmp_path, model=model, journal=journal)
    assert sorted(asked) == [f"q{i}/one/0" for i in range(6)]
    assert [cell.problem for cell in results.failed] == ["q1"]


def test_parquet_holds_a_row_for_each_cell(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    results = bench(tmp_path, strategies={"one": ChainOfThought(), "best": BestOfN(n=3)})
    results.to_parquet(tmp_path / "results.parquet")
    rows = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert len(rows) == 12
    for row in rows:
        cell = results.cells[row["problem"], row["strategy"], row["seed"]]
        assert (row["value"], row["correct"], row["text"]) == (cell.value, cell.correct, cell.text)
        assert row["prompt_tokens"] + row["completion_tokens"] == cell.usage.tokens
        assert [dict(s["scores"]) for s in row["samples"]] == [dict(s.scores) for s in cell.samples]
        assert row["question"].startswith("Question")


def test_without_pyarrow_the_install_line_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = bench(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationError, match=r"pyarrow is not installed.*stratagem\[bench\]"):
        results.to_parquet(tmp_path / "x.parquet")


def test_the_math_verifier_is_the_default_grader(tmp_path: Path) -> None:
    model = ToyModel({"": {"The answer is 0.5.": 1.0}})
    half = Problem("half", Task.of("Half of one?"), "1/2")
    results = asyncio.run(run_bench([half], {"one": ChainOfThought()}, {"policy": model}, out=tmp_path))
    [cell] = results.cells.values()
    assert cell.value == "0.5"
    assert cell.correct
    assert results.manifest["grader"]["kind"] == "math"
