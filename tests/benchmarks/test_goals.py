"""A benchmark that misses a goal fails."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from goals import Goals, parser

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_no_goal_missed_is_success() -> None:
    goals = Goals()
    assert goals.code == 0
    assert goals.at_most(1.05, 1.05) == "reached: at most 1.05"
    assert goals.at_least(0.1, 0.1) == "reached: at least 0.1"
    assert goals.check(True, "none") == "reached: none"
    assert goals.code == 0


@pytest.mark.parametrize(
    "miss",
    [
        lambda goals: goals.at_most(1.0501, 1.05),
        lambda goals: goals.at_least(0.0999, 0.1),
        lambda goals: goals.check(False, "none"),
        lambda goals: goals.at_most(math.nan, 1.0),
        lambda goals: goals.at_least(math.nan, 1.0),
    ],
)
def test_one_missed_goal_is_failure_whatever_else_is_reached(miss: Callable[[Goals], str]) -> None:
    goals = Goals()
    goals.check(True, "before")
    assert miss(goals).startswith("NOT reached: ")
    goals.check(True, "after")
    assert goals.code == 1
    miss(goals)
    assert goals.code == 1  # a code, not a count

    told = Goals(informative=True)
    verdict = miss(told)
    assert verdict.startswith("NOT reached: ")
    assert verdict.endswith(" (informative)")
    assert told.code == 0


def test_every_benchmark_takes_the_flag() -> None:
    assert parser("").parse_args([]).informative is False
    assert parser("").parse_args(["--informative"]).informative is True
    scripts = sorted(path for path in BENCHMARKS.glob("*.py") if path.stem != "goals")
    assert scripts
    for script in scripts:
        assert "--informative" in ran(script, "--help").stdout


def test_a_missed_goal_is_the_exit_code_of_the_script() -> None:
    """A real run, the smallest there is; the goal is moved so that its outcome is certain."""
    small = ["--problems=1", "--n=2", "--permits=2", "--rounds=1", "--per-token=0"]
    script = BENCHMARKS / "scheduling.py"
    assert "NOT reached" not in ran(script, *small, "--goal=1e9").stdout
    assert "NOT reached: at most 0" in ran(script, *small, "--goal=0", code=1).stdout
    assert "NOT reached: at most 0 (informative)" in ran(script, *small, "--goal=0", "--informative").stdout


def ran(script: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS)},  # as `make bench` does: it has PYTHONSAFEPATH
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done
