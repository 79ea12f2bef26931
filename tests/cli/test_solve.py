"""``stratagem solve``: the answer, its cost and its trace, against a server that keeps its own books."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from stratagem.testing.server import SimSettings, SimulatedServer

Cli = Callable[..., CompletedProcess[str]]
QUESTION = "What is 2 + 3?"


def test_json_is_the_whole_answer_and_nothing_else(cli: Cli, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"

    async def main() -> None:
        async with SimulatedServer(SimSettings()) as server:
            told = ("--base-url", server.url, "--json", "--trace", str(trace), "--set", "n=5", "--seed", "7")
            done = await asyncio.to_thread(cli, "solve", QUESTION, *told)
            assert (done.returncode, done.stderr) == (0, "")
            [line] = done.stdout.splitlines()
            answer = json.loads(line)
            books = server.totals()

            assert answer["question"] == QUESTION
            assert answer["strategy"]["kind"] == "self_consistency"
            assert answer["strategy"]["n"] == 5
            assert answer["model"] == server.settings.model
            assert answer["seed"] == 7
            assert answer["stopped"] == "complete"
            assert len(answer["candidates"]) == 5
            votes = [candidate["answer"] for candidate in answer["candidates"]]
            assert answer["confidence"] == votes.count(answer["answer"]) / 5
            assert answer["text"] in [candidate["text"] for candidate in answer["candidates"]]
            assert answer["usage"]["prompt_tokens"] == books.prompt_tokens
            assert answer["usage"]["completion_tokens"] == books.decoded
            assert answer["usage"]["calls"] == books.billed
            assert answer["seconds"] > 0

            events = [json.loads(line) for line in trace.read_text().splitlines()]
            assert [event["number"] for event in events] == list(range(len(events)))
            assert events[0]["type"] == "run_started"
            assert events[-1]["type"] == "run_finished"
            assert {event["run_id"] for event in events} == {answer["run_id"]}
            assert sum(event["type"] == "completion" for event in events) == 5

            again = await asyncio.to_thread(
                cli, "solve", "-", *told[:3], "--set", "n=5", "--seed=7", stdin=b" What is 2 + 3?\n"
            )
            same = json.loads(again.stdout)
            assert (same["text"], same["candidates"]) == (answer["text"], answer["candidates"])

    asyncio.run(main())


def test_settings_are_typed_by_their_fields(cli: Cli, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("kind: weighted-vote\nn: 3\nmax_tokens: 40\n")

    async def main() -> None:
        async with SimulatedServer(SimSettings()) as server:

            async def strategy(*arguments: str) -> dict[str, Any]:
                done = await asyncio.to_thread(
                    cli, "solve", QUESTION, "--json", "--base-url", server.url, *arguments
                )
                assert done.returncode == 0, done.stderr
                found: dict[str, Any] = json.loads(done.stdout)["strategy"]
                return found

            voted = await strategy(
                *("-c", str(config), "--set", "n=2", "--set", "temperature=0.5", "--set", "equality=math"),
                *("--set", "instruction=Answer: a=b?"),
            )
            assert voted["kind"] == "weighted_vote"
            assert (voted["n"], voted["max_tokens"], voted["temperature"]) == (2, 40, 0.5)
            assert voted["equality"]["kind"] == "math"
            assert voted["instruction"] == "Answer: a=b?"

            judged = await strategy(
                *("-s", "best-of-n", "--set", "n=2", "--set", "verifier={kind: judge, scale: 5}"),
                *("--set", "temperature=none", "--set", "verifier.mode=grade"),
            )
            assert (judged["n"], judged["temperature"]) == (2, None)
            assert judged["verifier"]["kind"] == "judge"
            assert (judged["verifier"]["scale"], judged["verifier"]["mode"]) == (5, "grade")

    asyncio.run(main())


def test_a_budget_ends_it_with_the_best_so_far(cli: Cli) -> None:
    async def main() -> None:
        async with SimulatedServer(SimSettings()) as server:
            done = await asyncio.to_thread(
                *(cli, "solve", QUESTION, "-s", "best_of_n", "--set", "n=32", "--base-url", server.url),
                *("--budget", "tokens=1200", "--json"),
            )
            answer = json.loads(done.stdout)
            assert done.returncode == 0
            assert answer["stopped"] == "budget"
            assert 0 < len(answer["candidates"]) < 32
            books = server.totals()
            assert answer["usage"]["tokens"] == books.prompt_tokens + books.decoded <= 1200

    asyncio.run(main())


def test_for_people_it_shows_answer_votes_and_cost(cli: Cli) -> None:
    async def main() -> None:
        async with SimulatedServer(SimSettings()) as server:
            told = ("--base-url", server.url, "-s", "best_of_n", "--set", "n=6")
            done = await asyncio.to_thread(cli, "solve", QUESTION, *told)
            data = json.loads((await asyncio.to_thread(cli, "solve", QUESTION, *told, "--json")).stdout)
            assert (done.returncode, done.stderr) == (0, "")  # no live display: nobody watches
            first, *lines = done.stdout.splitlines()
            assert first == f"{data['answer']}   confidence {100 * data['confidence']:.0f} %"
            assert data["text"] in lines  # as it is: not wrapped
            assert any("answer" in line and "votes" in line and "best step_judge" in line for line in lines)
            assert f"{data['usage']['tokens']:,} tokens" in lines[-2]
            assert lines[-2].endswith("complete")
            narrow = await asyncio.to_thread(cli, "solve", QUESTION, *told, env={"COLUMNS": "60"})
            assert max(map(len, narrow.stdout.splitlines())) <= 60

    asyncio.run(main())


def test_a_killed_or_finished_run_is_taken_up_from_its_store(cli: Cli, tmp_path: Path) -> None:
    async def main() -> None:
        async with SimulatedServer(SimSettings()) as server:
            told = (
                "--base-url",
                server.url,
                "--json",
                "--store",
                str(tmp_path / "runs.sqlite"),
                "--run-id",
                "r1",
            )
            first = await asyncio.to_thread(cli, "solve", QUESTION, *told)
            assert first.returncode == 0, first.stderr
            paid = server.totals().requests
            again = await asyncio.to_thread(cli, "solve", QUESTION, *told)
            assert json.loads(again.stdout)["answer"] == json.loads(first.stdout)["answer"]
            assert server.totals().requests == paid

            other = await asyncio.to_thread(cli, "solve", "Something else?", *told)
            assert other.returncode == 2
            assert "r1" in other.stderr

    asyncio.run(main())


SHOP = """
import stratagem as sg

@sg.tool(effect="read_only")
async def price(item: str) -> int:
    "Price of an item."
    return {"pens": 3}[item]

tools = [price]
box = sg.Toolbox(tools)
number = 3
"""


@pytest.mark.parametrize("name", ["tools", "box", "price"])
def test_tools_of_a_module(cli: Cli, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    done = cli("solve", "What do pens cost?", "-s", "dta", "--tools", f"shop:{name}", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert {call["tool"] for call in answer["calls"]} <= {"price", ""}
    shown = cli("solve", "What do pens cost?", "-s", "dta", "--tools", f"shop:{name}")
    assert shown.returncode == 0


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("shop", "not MODULE:NAME"), ("shop:nothing", "nothing"), ("no_such_shop:tools", "No module"),
        ("shop:number", "is int"),
    ],
)  # fmt: skip
def test_tools_that_are_not_there(
    inside: Cli, spec: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    done = inside("solve", "What?", "-s", "dta", "--tools", spec)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
