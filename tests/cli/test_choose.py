"""``stratagem choose``: from the results of a bench to a strategy that ``solve`` takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import stratagem as sg
from stratagem._cli.choose import choose
from stratagem.bench.choosing import choose_from
from stratagem.bench.data import Dataset, Problem
from stratagem.bench.results import Results
from stratagem.bench.runner import run_bench
from stratagem.testing.language import right_answer
from stratagem.testing.toy import ToyModel

Cli = Callable[..., CompletedProcess[str]]
QUESTIONS = [f"Question {i}?" for i in range(60)]
PROBLEMS = Dataset(
    "jsonl:questions", tuple(Problem(q, sg.Task.of(q, id=q), right_answer(q)) for q in QUESTIONS)
)
STRATEGIES: dict[str, sg.Strategy] = {
    "one": sg.ChainOfThought(),
    "vote 9": sg.SelfConsistency(n=9),
    "judged 9": sg.BestOfN(n=9, verifier=sg.Judge()),
    "judged 3": sg.BestOfN(n=3, verifier=sg.Judge()),
    "the same, dearer": sg.WeightedVote(n=9, by="verifier", verifier=sg.Judge()),
}


def test_it_keeps_what_pays(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    results = asyncio.run(run_bench(PROBLEMS, STRATEGIES, {"policy": ToyModel()}, out=out))
    assert asyncio.run(choose(out, out / "auto.yaml")) == 0
    shown = capfd.readouterr().out
    auto = sg.Strategy.load(out / "auto.yaml")
    assert isinstance(auto, sg.Auto)
    assert auto == choose_from(Results.read(out))
    names = [next(n for n, s in STRATEGIES.items() if s == each.strategy) for each in auto.measured]
    assert names[0] == "one"
    assert [m.tokens for m in auto.measured] == sorted(m.tokens for m in auto.measured)
    lows = [m.low for m in auto.measured]
    assert len(names) < len(STRATEGIES), "what costs more and reaches no more is left out"
    assert lows == sorted(lows)
    for name, each in zip(names, auto.measured, strict=True):
        assert name in shown
        runs = [results.of(name, q)[0].usage.tokens for q in QUESTIONS]
        assert sum(tokens <= each.tokens for tokens in runs) == pytest.approx(0.9 * len(runs), abs=12)
    answer = asyncio.run(
        sg.solve(QUESTIONS[0], auto, llm=ToyModel(), budget=f"tokens={auto.measured[0].tokens:.0f}")
    )
    assert len(answer.candidates) == 1


def test_an_unfinished_bench_is_refused(tmp_path: Path, inside: Cli) -> None:
    results = asyncio.run(run_bench(PROBLEMS, STRATEGIES, {"policy": ToyModel()}, out=tmp_path / "runs"))
    cut = dict(list(results.cells.items())[5:])
    part = Results(results.manifest, results.problems, results.strategies, results.seeds, cut)
    with pytest.raises(sg.ConfigurationError, match="5 runs are missing"):
        choose_from(part)
    done = inside("choose", str(tmp_path / "nowhere"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "nowhere" in done.stderr
