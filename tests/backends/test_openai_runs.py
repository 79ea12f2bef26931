"""Runs over HTTP: what they report is what the server has counted; cancelled anywhere they leave nothing open."""

import asyncio
import math
import random
import re
from collections import defaultdict
from typing import Literal

import pytest

from openai_kit import ASKED, connected, quick, settled
from runs_kit import cancel_at_random_points, random_runs, strategies
from stratagem.backends import openai as module
from stratagem.backends.openai import OpenAIBackend
from stratagem.core.backend import Request
from stratagem.core.budget import Ledger
from stratagem.core.usage import Usage
from stratagem.testing.loops import StepLoop
from stratagem.testing.loops import run as run_in
from stratagem.testing.server import (
    NAMED_FAULTS,
    Fault,
    FaultSchedule,
    Record,
    SimCompletion,
    SimRequest,
    SimSettings,
    SimulatedServer,
    ToyResponder,
)

_TOY = ToyResponder(mean_tokens=14)
_BREAKING = [name for name in NAMED_FAULTS if name != "slow" and not name.startswith("hang")]


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later server may get the port of an earlier one."""
    module.forget()
    quick(monkeypatch)


def judging(request: SimRequest) -> list[SimCompletion]:
    """Most judgements are one token; for the others the judge must have the choices scored."""
    asked = request.prompt.rpartition("<|user|>")[2]
    if "yes or no" not in asked or request.seed is None or request.seed % 4 == 0:
        return _TOY(request)
    both = {"yes": math.log(0.6), " No": math.log(0.4)}
    return [SimCompletion("yes", [both["yes"]], [both])] * request.n


def billed(records: list[Record]) -> Usage:
    """What these requests have cost by the server's own count."""
    return Usage(
        sum(record.prompt_tokens for record in records),
        sum(record.decoded for record in records),
        sum(record.cached_tokens for record in records),
        calls=sum(record.billed for record in records),
    )


def covers(spent: Usage, true: Usage) -> bool:
    return spent.tokens <= true.tokens <= spent.tokens + spent.uncertain_tokens and spent.calls >= true.calls


@pytest.mark.slow
@pytest.mark.parametrize(("flavour", "number"), [("vllm", 700), ("openai", 300)])
def test_1000_random_runs_report_what_the_server_counted(
    flavour: Literal["vllm", "openai"], number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run by run, judges and what was cancelled included, with every fault that there is."""
    schedule = FaultSchedule(3, {**dict.fromkeys(_BREAKING, 0.02), "hang": 0.002, "hang-mid": 0.002})
    asked: defaultdict[int, list[int]] = defaultdict(list)  # requests by run

    def faults(request: SimRequest) -> Fault | None:
        [run] = re.findall(r"Run (\d+):", request.prompt)
        asked[int(run)].append(request.number)
        return schedule(request)

    async def main() -> str:
        settings = SimSettings(flavour=flavour, per_token=0.006, first_token=0.001, max_sequences=28)
        async with connected(settings, faults=faults, responder=judging, timeout=2.0) as (server, backend):
            runs = await random_runs(backend, strategies(4), range(number), random.Random(number), 50)
            await settled(server)
            records = server.records
            exact = 0
            for i, run in runs.items():
                own = [records[request] for request in asked[i]]
                true = billed(own)
                assert covers(run.spent, true), (i, run.strategy, run.spent, true)
                if run.undisturbed and all(r.outcome == "finished" or r.status in (429, 503) for r in own):
                    assert run.spent == true, (i, run.strategy, own)
                    exact += true.calls > 0
            total = sum((run.spent for run in runs.values()), Usage())
            assert sum(map(len, asked.values())) == len(records)
            assert covers(total, billed(records))
            totals = server.totals()
            assert exact > number // 8
            assert totals.failed > number // 10
            assert totals.aborted > 0
            return (
                f"{flavour}: {number:,} runs, {totals.requests:,} requests, {totals.failed} failed,"
                f" {totals.aborted} aborted: {exact} undisturbed runs exact; in all {billed(records).tokens:,}"
                f" tokens by the server, {total.tokens:,} to {total.tokens + total.uncertain_tokens:,} by the runs"
            )

    said = asyncio.run(main())
    with capsys.disabled():
        print(f"\n{said}")


@pytest.mark.slow
def test_500_runs_cancelled_at_random_points_leave_nothing_open(capsys: pytest.CaptureFixture[str]) -> None:
    permits, part = 3, 100  # fewer than the samples of a run: calls wait for permits

    async def some(first: int) -> tuple[int, int]:
        """On a server of their own: how many runs it took, and how many requests were aborted."""
        schedule = FaultSchedule(first, dict.fromkeys(("429", "drop-mid", "500", "malformed"), 0.05))
        quiet = False

        def faults(request: SimRequest) -> Fault | None:
            return None if quiet else schedule(request)

        settings = SimSettings(per_token=0.002, first_token=0.001, max_sequences=2)
        async with connected(settings, faults=faults, responder=judging, permits=permits) as (
            server,
            backend,
        ):

            async def check(ledger: Ledger) -> None:
                nonlocal seen
                await settled(server)
                totals = server.totals()
                assert (totals.running_sequences, totals.waiting_sequences) == (0, 0)
                assert covers(ledger.spent, billed(server.records[seen:]))
                seen = len(server.records)

            def model(number: int) -> OpenAIBackend:
                if number % 7 == 0:
                    module.forget()  # negotiates again, and may be cancelled there
                return backend

            seen = 0
            taken = await cancel_at_random_points(
                part, strategies(4), model, check, tokens=[None, 60, 300], first=first
            )
            aborted = server.totals().aborted
            quiet = True
            await all_permits_are_back(server, backend, permits)
            return taken, aborted

    async def main() -> tuple[int, int]:
        taken = aborted = 0
        for _ in range(500 // part):
            more = await some(taken)
            taken, aborted = taken + more[0], aborted + more[1]
        return taken, aborted

    taken, aborted = run_in(main(), StepLoop)
    with capsys.disabled():
        print(f"\ncancelled at 500 random points over HTTP in {taken} runs; {aborted} requests aborted")
    assert aborted > 50


async def all_permits_are_back(server: SimulatedServer, backend: OpenAIBackend, permits: int) -> None:
    """And all connections: so many requests are under way at the same time."""
    async with asyncio.TaskGroup() as group:
        for seed in range(permits):
            group.create_task(backend.generate(Request(ASKED, seed=seed)))
        async with asyncio.timeout(60):
            await server.until(lambda totals: totals.in_flight == permits)
