"""Ctrl-C: what is known is shown, the engine stops, files are whole; a second one ends at once."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from stratagem.testing.server import SimSettings, SimulatedServer

Start = Callable[..., subprocess.Popen[str]]
QUESTION = "What is 2 + 3?"


async def within(condition: Awaitable[None]) -> None:
    """Fail rather than hang when the command has died before."""
    async with asyncio.timeout(300):
        await condition


async def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = await asyncio.to_thread(process.communicate, None, 300)
    return process.returncode, out, err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_solve_prints_the_best_so_far_and_stops_the_engine(
    start: Start, tmp_path: Path, how: signal.Signals
) -> None:
    trace = tmp_path / "trace.jsonl"

    async def main() -> None:
        async with SimulatedServer(SimSettings(per_token=0.02)) as server:
            told = ("--base-url", server.url, "--set", "n=32", "--trace", str(trace), "--json")
            process = start("solve", QUESTION, *told)
            # Half of the answers are there, and the others are being written.
            await within(server.until(lambda t: t.peak_sequences == 32 and t.running_sequences <= 16))
            decoded = server.totals().decoded
            await within(server.until(lambda t: t.decoded >= decoded + 32))
            process.send_signal(how)
            code, out, err = await ended(process)
            await within(server.until(lambda t: t.in_flight == 0 and t.running_sequences == 0))

            assert (code, err) == (130, "")
            answer = json.loads(out)
            assert answer["stopped"] == "cancelled"
            assert 0 < len(answer["candidates"]) < 32
            assert answer["answer"] in [candidate["answer"] for candidate in answer["candidates"]]
            books = server.totals()
            assert books.aborted == 1
            usage = answer["usage"]
            assert usage["tokens"] <= books.prompt_tokens + books.decoded
            assert usage["tokens"] + usage["uncertain_tokens"] >= books.prompt_tokens + books.decoded

            lines = trace.read_text()
            assert lines.endswith("\n")
            events = [json.loads(line) for line in lines.splitlines()]
            assert (events[-1]["type"], events[-1]["stopped"]) == ("run_finished", "cancelled")
            assert (events[-2]["type"], events[-2]["error"]) == ("call_finished", "CancelledError")

    asyncio.run(main())


@pytest.mark.parametrize("kept", [False, True])
def test_the_best_so_far_is_the_strategys_own(start: Start, tmp_path: Path, kept: bool) -> None:
    store = ("--store", str(tmp_path / "runs.sqlite")) if kept else ()

    async def main() -> None:
        async with SimulatedServer(SimSettings(per_token=0.05)) as server:
            told = ("--strategy", "best_of_n", "--set", "n=32", "--base-url", server.url, "--json")
            process = start("solve", QUESTION, *told, *store)
            await within(server.until(lambda t: t.finished >= 2))
            # Judges asked after that have been answered: the client has read the first answers.
            finished = server.totals().finished
            await within(server.until(lambda t: t.finished >= finished + 8))
            process.send_signal(signal.SIGINT)
            code, out, _ = await ended(process)
            await within(server.until(lambda t: t.in_flight == 0))
            assert code == 130
            answer = json.loads(out)
            assert answer["stopped"] == "cancelled"
            judged = [c for c in answer["candidates"] if c["scores"]]
            assert judged
            best = max(judged, key=lambda candidate: candidate["scores"]["step_judge"])
            assert (answer["answer"], answer["text"]) == (best["answer"], best["text"])
            assert answer["usage"]["tokens"] > 0

    asyncio.run(main())


def test_solve_says_when_there_is_no_answer_yet(start: Start) -> None:
    async def main() -> None:
        async with SimulatedServer(SimSettings(first_token=600)) as server:
            process = start("solve", QUESTION, "--base-url", server.url)
            await within(server.until(lambda t: t.running_sequences > 0))
            process.send_signal(signal.SIGINT)
            code, out, err = await ended(process)
            await within(server.until(lambda t: t.in_flight == 0))
            assert (code, out) == (130, "")
            assert err.startswith("stopped: no answer yet")
            assert len(err.splitlines()) == 1

    asyncio.run(main())


def test_bench_keeps_what_is_finished_and_goes_on(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "out"

    async def main() -> None:
        async with SimulatedServer(SimSettings(per_token=0.003)) as server:
            told = (
                "bench",
                "gym:words",
                "--strategies",
                "chain_of_thought,best_of_n",
                "--set",
                "best_of_n.n=4",
            )
            told += (
                "--limit",
                "12",
                "--out",
                str(out),
                "--concurrency",
                "2",
                "--base-url",
                server.url,
                "--json",
            )
            process = start(*told)
            await within(server.until(lambda t: t.finished >= 30))
            process.send_signal(signal.SIGINT)
            code, printed, err = await ended(process)
            await within(server.until(lambda t: t.in_flight == 0 and t.running_sequences == 0))
            assert code == 130
            found = json.loads(printed)
            kept = (out / "results.jsonl").read_text().splitlines()
            assert 0 < len(kept) < 24
            assert found["missing"] == 24 - len(kept)
            assert f"{found['missing']} of 24 runs are left; the same command goes on" in err
            assert (out / "report.html").is_file()

            code, printed, err = await ended(start(*told))
            assert (code, err) == (0, "")
            assert json.loads(printed)["missing"] == 0
            after = (out / "results.jsonl").read_text().splitlines()
            assert after[: len(kept)] == kept
            assert len(after) == 24

    asyncio.run(main())


def test_the_second_ends_at_once(start: Start) -> None:
    """A strategy that does not let go (a plug-in's fault) cannot hold the user."""
    code = (
        "import asyncio, sys\n"
        "from stratagem._cli.interrupt import run\n"
        "async def stubborn():\n"
        "    print('ready', flush=True)\n"
        "    while True:\n"
        "        try:\n"
        "            await asyncio.Event().wait()\n"
        "        except asyncio.CancelledError:\n"
        "            print('no', flush=True)\n"
        "sys.exit(run(stubborn()))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "no\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
