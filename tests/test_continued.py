"""A run in a store goes on under another budget, which is for all its sittings together."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import uuid
from pathlib import Path

import pytest

import stratagem as sg
from stratagem.core.trace import CallFinished, Record, RunStarted
from stratagem.graphs import Runner
from stratagem.testing.loops import StepLoop, VirtualLoop
from stratagem.testing.toy import ToyModel

POSTGRES = os.environ.get("STRATAGEM_TEST_POSTGRES", "")
STRATEGY = sg.BestOfN(n=12)
TASK = sg.Task.of("What is 2 + 3?")
QUESTION = TASK.question


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "runs.sqlite")
    if not POSTGRES:
        pytest.skip("STRATAGEM_TEST_POSTGRES names no server")
    return POSTGRES


def essence(answer: sg.Answer) -> tuple[object, ...]:
    return answer.value, answer.text, answer.candidates, answer.stopped


def needed() -> tuple[sg.Answer, int]:
    """The answer without a budget, and the tokens that it takes."""
    answer = asyncio.run(sg.solve(QUESTION, STRATEGY, llm=ToyModel(), seed=3))
    assert answer.stopped == "complete"
    return answer, answer.usage.tokens


def test_a_run_that_its_budget_stopped_goes_on_under_larger_ones_and_pays_for_nothing_twice(
    store: str,
) -> None:
    whole, tokens = needed()
    model, run_id = ToyModel(), uuid.uuid4().hex

    async def under(budget: str | None) -> tuple[sg.Answer, int, int]:
        before, trace = model.books.usage, sg.Trace()
        answer = await sg.solve(
            QUESTION, STRATEGY, llm=model, budget=budget, seed=3, store=store, run_id=run_id, trace=trace
        )
        # All sittings together have paid what the answer says, and what is replayed counts as before.
        assert answer.usage == model.books.usage
        replayed = sum(event.usage.tokens for event in trace.of(CallFinished) if event.replayed)
        return answer, replayed, model.books.usage.tokens - before.tokens

    async def main() -> None:
        first, replayed, paid = await under(f"tokens={tokens // 3}")
        assert (first.stopped, replayed) == ("budget", 0)
        assert 0 < len(first.candidates) < 12
        second, replayed, more = await under(f"tokens={2 * tokens // 3}")
        assert second.stopped == "budget"
        assert len(first.candidates) < len(second.candidates) < 12
        assert replayed > 0
        assert paid < paid + more == second.usage.tokens <= 2 * tokens // 3
        for same in (None, f"tokens={2 * tokens // 3}"):  # no budget given: the one that it has
            assert await under(same) == (second, 0, 0)
        last, _, more = await under(f"tokens={9 * tokens}")
        assert more > 0
        assert essence(last) == essence(whole)
        for other in (None, f"tokens={9 * tokens}", f"tokens={99 * tokens}", "calls=1000"):
            assert await under(other) == (last, 0, 0)  # a complete answer is only read

    asyncio.run(main())


def test_a_budget_that_held_no_answer_can_be_raised(store: str) -> None:
    whole, tokens = needed()
    model, run_id = ToyModel(), uuid.uuid4().hex

    async def under(budget: str | None) -> sg.Answer:
        return await sg.solve(
            QUESTION, STRATEGY, llm=model, budget=budget, seed=3, store=store, run_id=run_id
        )

    async def main() -> None:
        for budget in ("tokens=1", None):
            with pytest.raises(sg.BudgetExhausted, match="tokens=1"):
                await under(budget)
        assert model.books.usage.tokens == 0
        answer = await under(f"tokens={9 * tokens}")
        assert essence(answer) == essence(whole)
        assert answer.usage == model.books.usage

    asyncio.run(main())


def test_a_budget_below_what_was_spent_is_one_clear_error_and_changes_nothing(store: str) -> None:
    _, tokens = needed()
    model, run_id = ToyModel(), uuid.uuid4().hex

    async def under(budget: str | None) -> sg.Answer:
        return await sg.solve(
            QUESTION, STRATEGY, llm=model, budget=budget, seed=3, store=store, run_id=run_id
        )

    async def main() -> None:
        first = await under(f"tokens={tokens // 2}")
        spent = first.usage
        for budget, says in (
            (f"tokens={spent.tokens - 1}", f"tokens={spent.tokens}"),
            (f"tokens={9 * tokens},calls={spent.calls - 1}", f"calls={spent.calls}"),
            ("seconds=0", "seconds="),
        ):
            with pytest.raises(sg.ConfigurationError) as caught:
                await under(budget)
            assert f"Run {run_id!r} has spent {says}" in caught.value.message
            assert budget.rpartition(",")[2] in caught.value.message
            assert "larger" in caught.value.remedy
        # Enough for what was spent, and no more than it had: there is nothing to go on with.
        assert await under(f"tokens={spent.tokens}") == first
        assert await under(None) == first
        assert model.books.usage == spent

    asyncio.run(main())


def test_the_id_alone_is_enough_and_the_new_budget_is_kept(tmp_path: Path) -> None:
    whole, tokens = needed()

    async def main() -> None:
        models = {"policy": ToyModel()}
        async with Runner(tmp_path / "runs.sqlite") as runner:
            small, large = sg.Budget(tokens=tokens // 2), sg.Budget(tokens=9 * tokens)
            first = await runner.run(STRATEGY, TASK, models, budget=small, seed=3, run_id="a")
            assert first.stopped == "budget"

            async def silent(_: object) -> None:
                decoding.set()
                await asyncio.Event().wait()

            decoding = asyncio.Event()
            stuck = {"policy": ToyModel(pace=silent)}
            sitting = asyncio.create_task(runner.resume("a", stuck, budget=large))
            await decoding.wait()
            sitting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sitting
            assert [(state.run_id, state.state) for state in await runner.runs()] == [("a", "unfinished")]
            assert essence(await runner.resume("a", models)) == essence(whole)
            assert [(state.run_id, state.state) for state in await runner.runs()] == [("a", "finished")]

    asyncio.run(main())


def test_a_sitting_under_a_larger_budget_can_be_cancelled_at_any_point() -> None:
    whole, tokens = needed()
    small, large = sg.Budget(tokens=tokens // 2), sg.Budget(tokens=9 * tokens)

    async def main(step: int) -> tuple[bool, sg.Answer]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, StepLoop)
        async with Runner() as runner:

            async def under(budget: sg.Budget | None) -> sg.Answer:
                models = {"policy": ToyModel()}
                return await runner.run(STRATEGY, TASK, models, budget=budget, seed=3, run_id="a")

            first = await under(small)
            assert first.stopped == "budget"
            task = asyncio.create_task(under(large))
            loop.plan(step, task.cancel)
            interrupted = False
            try:
                await task
            except asyncio.CancelledError:
                interrupted = True
            loop.cancel_plan()
            return interrupted, await under(large)

    step, interrupted = 1, True
    while interrupted:
        with asyncio.Runner(loop_factory=StepLoop) as loop:
            interrupted, answer = loop.run(main(step))
        assert essence(answer) == essence(whole), step
        step += 7
    assert step > 100


def test_seconds_are_for_all_sittings_too() -> None:
    async def main() -> list[float]:
        now = asyncio.get_running_loop().time
        models = {"policy": ToyModel(pace=lambda _: asyncio.Event().wait())}
        times = [now()]
        async with Runner() as runner:
            for seconds in (20, 50):
                with pytest.raises(sg.BudgetExhausted, match="time is up"):
                    await runner.run(STRATEGY, TASK, models, budget=sg.Budget(seconds=seconds), run_id="a")
                times.append(now())
            with pytest.raises(sg.ConfigurationError, match=r"has spent seconds=\d+.*budget seconds=30"):
                await runner.resume("a", models, budget=sg.Budget(seconds=30))
        return times

    with asyncio.Runner(loop_factory=VirtualLoop) as loop:
        begun, first, second = loop.run(main())
    # The ledger's own clock is real, so what the test itself takes goes off the virtual seconds.
    assert first - begun == pytest.approx(20, abs=5)
    assert second - first == pytest.approx(30, abs=5)


# -- killed --------------------------------------------------------------------------------------------


async def _killed(store: str) -> None:
    """The process that is killed: two calls end, the third never does. Tells the seconds from the run's start to
    the second call's end, as measured from within and from without."""
    began = time.monotonic()
    times: dict[str, float] = {}
    ended = 0

    def hear(record: Record) -> None:
        nonlocal ended
        if isinstance(record.event, RunStarted):
            times["least"] = -time.monotonic()
        if isinstance(record.event, CallFinished):
            ended += 1
            if ended == 2:
                times["least"] += time.monotonic()
                times["most"] = time.monotonic() - began

    async def pace(_: object) -> None:
        if ended < 2:
            await asyncio.sleep(0.01)
            return
        for _turn in range(10):  # for the runner's own writing to begin
            await asyncio.sleep(0)
        await runner.runs()  # comes after it
        print(json.dumps(times), flush=True)
        await asyncio.Event().wait()

    async with Runner(store) as runner:
        trace = sg.Trace(listeners=[hear])
        models = {"policy": ToyModel(permits=1, pace=pace)}
        budget = sg.Budget(seconds=1e6, calls=1000)
        await runner.run(sg.BestOfN(n=2), TASK, models, budget=budget, run_id="a", trace=trace)


def test_the_seconds_of_a_killed_sitting_count_up_to_its_last_finished_call(tmp_path: Path) -> None:
    store = str(tmp_path / "runs.sqlite")

    async def main() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, store, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        times = json.loads(await process.stdout.readline())
        process.kill()
        assert await process.wait() == -signal.SIGKILL

        async with Runner(store) as runner:
            models = {"policy": ToyModel(pace=lambda _: asyncio.Event().wait())}
            with pytest.raises(sg.ConfigurationError, match=r"has spent seconds="):
                await runner.resume("a", models, budget=sg.Budget(seconds=times["least"]))
            with pytest.raises(sg.ConfigurationError, match=r"has spent calls=2 already.*budget calls=1"):
                await runner.resume("a", models, budget=sg.Budget(calls=1))
            # There are but the seconds left that the kill took.
            with pytest.raises(sg.BudgetExhausted, match="time is up"):
                await runner.resume("a", models, budget=sg.Budget(seconds=times["most"]))

    asyncio.run(main())


if __name__ == "__main__":
    asyncio.run(_killed(sys.argv[1]))
