"""``stratagem calibrate``: a strategy that ``solve`` takes, from runs that are made once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

import stratagem as sg
from stratagem._cli.calibrate import calibrate
from stratagem._cli.settings import build_strategy
from stratagem.bench.data import Dataset, Problem
from stratagem.core.backend import Message, Request
from stratagem.testing.language import Distribution, arithmetic, right_answer
from stratagem.testing.toy import ToyModel

Cli = Callable[..., CompletedProcess[str]]
QUESTIONS = [f"Question {i}?" for i in range(40)]
PROBLEMS = Dataset(
    "jsonl:questions", tuple(Problem(q, sg.Task.of(q, id=q), right_answer(q)) for q in QUESTIONS)
)


def tricky(messages: tuple[Message, ...], tokens: tuple[str, ...]) -> Distribution:
    """As the toy's own, but a wrong digit is the likeliest for the questions of three of five answers."""
    row = dict(arithmetic(messages, tokens))
    right = right_answer(messages[0].content)
    if "".join(tokens).endswith("is ") and right in "123":
        row[right], row["5"] = row["5"], row[right]
    return row


# Judged by a model that is right nine times in ten, so that drawing more pays.
STRATEGY = sg.AdaptiveBestOfN(n=6, verifier=sg.Judge())


def found(out: Path, capfd: pytest.CaptureFixture[str], model: ToyModel, **changes: Any) -> dict[str, Any]:
    told: dict[str, Any] = {
        "out": out,
        "target": 0.74,
        "seeds": 1,
        "concurrency": 4,
        "as_json": True,
        **changes,
    }
    code = asyncio.run(calibrate(PROBLEMS, STRATEGY, model, **told))
    assert code == 0
    data: dict[str, Any] = json.loads(capfd.readouterr().out) if told["as_json"] else {}
    return data


def test_the_threshold_keeps_its_share_when_it_is_used(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = found(tmp_path, capfd, ToyModel(tricky))
    chosen = data["chosen"]
    assert chosen["share"] >= 0.74
    assert 1 <= chosen["samples"] < 6
    assert data["gain"]["value"] > 0
    strategy = build_strategy(str(tmp_path / "strategy.yaml"))
    assert strategy == STRATEGY.model_copy(update={"tau": chosen["tau"]})
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_another_share_asks_the_model_nothing_and_the_table_shows_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, model = found(tmp_path, capfd, ToyModel(tricky)), ToyModel(tricky)
    second = found(tmp_path, capfd, model, target=1.0)
    assert model.books.usage.calls == 0
    assert second["points"] == first["points"]
    assert second["chosen"]["tau"] >= first["chosen"]["tau"]
    found(tmp_path, capfd, model, target=0.5, as_json=False)
    shown = capfd.readouterr().out
    assert "of the gain" in shown
    assert str(tmp_path / "strategy.yaml") in shown


def test_interrupted_it_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = ToyModel(tricky)
    expected = found(tmp_path / "whole", capfd, whole)
    calls = 0

    async def pace(request: object) -> None:
        nonlocal calls
        calls += isinstance(request, Request)
        if calls == 600:
            running.cancel()
        await asyncio.sleep(0)

    async def main() -> None:
        nonlocal running
        told: dict[str, Any] = {"target": 0.74, "seeds": 1, "concurrency": 4, "as_json": True}
        running = asyncio.ensure_future(
            calibrate(PROBLEMS, STRATEGY, ToyModel(tricky, pace=pace), out=tmp_path / "cut", **told)
        )
        assert await running == 130

    running: asyncio.Future[int]
    asyncio.run(main())
    assert not (tmp_path / "cut" / "strategy.yaml").exists()
    capfd.readouterr()
    rest = ToyModel(tricky)
    again = found(tmp_path / "cut", capfd, rest)
    assert 0 < rest.books.usage.calls < whole.books.usage.calls
    assert again | {"strategy": ""} == expected | {"strategy": ""}


def test_what_has_no_threshold_is_told(inside: Cli, tmp_path: Path) -> None:
    done = inside("calibrate", "gym:words/dev", "-s", "best_of_n", "--out", str(tmp_path / "x"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "best_of_n has no threshold tau" in done.stderr
    assert not (tmp_path / "x").exists()


def test_the_shipped_model_by_the_command(cli: Cli, tmp_path: Path) -> None:
    """It chooses a threshold, or says that these few problems show no gain; the same command goes on from there."""
    told = ("calibrate", "gym:words/dev", "--limit", "4", "--set", "n=3", "--set", "max_tokens=200")
    told += ("--out", str(tmp_path / "tau"), "--json")
    done = cli(*told)
    assert done.returncode in (0, 2), done.stderr
    if done.returncode:
        assert "no gain to keep a share of" in done.stderr
    else:
        assert json.loads(done.stdout)["chosen"]["share"] >= 0.74
    assert len((tmp_path / "tau" / "results.jsonl").read_text().splitlines()) == 4
    assert cli(*told).stdout == done.stdout
