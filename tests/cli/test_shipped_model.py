"""What works with nothing but the package: the shipped model in this process."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

import stratagem as sg
from stratagem._cli.demo import GREEDY, JUDGED, ONE, VOTE, demo

Cli = Callable[..., CompletedProcess[str]]
QUESTION = "Ana has 3 apples. Ben has 4 more apples than Ana. How many apples has Ben?"


def test_solve(inside: Cli) -> None:
    told = ("solve", QUESTION, "--set", "n=4", "--set", "max_tokens=48", "--json")
    done = inside(*told)
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert answer["model"] == "stratagem-mini"
    assert len(answer["candidates"]) == 4
    again = json.loads(inside(*told).stdout)
    assert [c["text"] for c in again["candidates"]] == [c["text"] for c in answer["candidates"]]


def test_what_does_not_fit_is_told(inside: Cli) -> None:
    long = inside("solve", "why? " * 2000)
    assert long.returncode == 2
    assert "1,024" in long.stderr or "1024" in long.stderr
    assert len(long.stderr.splitlines()) == 1
    poor = inside("solve", QUESTION, "--budget", "tokens=3")
    assert poor.returncode == 2
    assert "tokens=3" in poor.stderr
    assert "Raise --budget" in poor.stderr
    missing = inside("solve", QUESTION, "--model", "no/such/folder")
    assert missing.returncode == 2
    assert "no/such/folder" in missing.stderr


def test_doctor(inside: Cli) -> None:
    done = inside("doctor", "--json")
    checks = {(check["section"], check["name"]): check for check in json.loads(done.stdout)}
    assert done.returncode == 0
    assert {check["status"] for check in checks.values()} <= {"ok", "missing"}
    assert checks["Embedded engine", "scores equal decoding"]["status"] == "ok"
    assert checks["Embedded engine", "batch equals single"]["status"] == "ok"
    assert "stratagem-mini" in checks["Model", "name"]["detail"]
    assert ("Optional", "postgres") in checks
    for check in checks.values():
        assert (check["status"] == "missing" and check["section"] == "Optional") == check[
            "remedy"
        ].startswith("pip install 'stratagem[")


def test_doctor_on_a_server_that_is_not_there(inside: Cli) -> None:
    done = inside("doctor", "--base-url", "http://127.0.0.1:9/v1")
    assert done.returncode == 1
    assert "✗" in done.stdout
    assert "127.0.0.1:9" in done.stdout


def test_demo_shows_every_strategy_and_what_it_cost(capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> int:
        llm = sg.connect()
        try:
            return await demo(llm, problems=2, limit=1800)
        finally:
            await llm.aclose()

    assert asyncio.run(main()) == 0
    shown = capfd.readouterr()
    assert "2 word problems" in shown.err
    for name in (ONE, GREEDY, VOTE, JUDGED):
        [row] = [line for line in shown.out.splitlines() if line.startswith(name) and "%" in line]
        assert row.split()[-1].replace(".", "").isdigit()  # its seconds
    assert "All of it cost" in shown.out
    assert "stratagem solve" in shown.out


def test_demo_can_be_left(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start("demo")
    assert process.stderr is not None
    while "Model: stratagem-mini" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 130
    assert not out or "stopped: cancelled" in out  # what was finished by then
