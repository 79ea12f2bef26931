"""``solve`` with a store: checkpoints and journal in one database."""

from __future__ import annotations

import asyncio
import os
import uuid
from pathlib import Path

import pytest

import stratagem as sg
from stratagem.core.trace import CallFinished
from stratagem.testing.faults import Failing
from stratagem.testing.toy import ToyModel

POSTGRES = os.environ.get("STRATAGEM_TEST_POSTGRES", "")
STRATEGY = sg.BestOfN(n=4)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "runs.sqlite")
    if not POSTGRES:
        pytest.skip("STRATAGEM_TEST_POSTGRES names no server")
    return POSTGRES


def test_a_run_that_failed_goes_on_and_pays_for_no_finished_call_again(store: str) -> None:
    run_id = uuid.uuid4().hex

    async def main() -> None:
        whole = ToyModel()
        uninterrupted = await sg.solve("Which?", STRATEGY, llm=whole, seed=3)
        calls = whole.books.usage.calls

        model, first, second = ToyModel(), sg.Trace(), sg.Trace()
        llm = Failing(model, at={calls})  # the last call fails, which cancels those beside it
        with pytest.raises(sg.BackendError):
            await sg.solve("Which?", STRATEGY, llm=llm, store=store, run_id=run_id, seed=3, trace=first)
        finished = sum(not event.error for event in first.of(CallFinished))
        assert finished > 0
        before = model.books.usage.calls
        resumed = await sg.solve(
            "Which?", STRATEGY, llm=model, store=store, run_id=run_id, seed=3, trace=second
        )
        replayed = sum(event.replayed for event in second.of(CallFinished))
        assert replayed >= finished
        assert model.books.usage.calls - before == calls - replayed
        assert (resumed.value, resumed.text) == (uninterrupted.value, uninterrupted.text)
        assert [c.text for c in resumed.candidates] == [c.text for c in uninterrupted.candidates]

        paid = model.books.usage
        again = await sg.solve("Which?", STRATEGY, llm=model, store=store, run_id=run_id, seed=3)
        assert again == resumed
        assert model.books.usage == paid

    asyncio.run(main())


def test_a_run_id_is_run_once_at_a_time(store: str) -> None:
    run_id = uuid.uuid4().hex

    async def main() -> None:
        model = ToyModel()
        runs = [sg.solve("Which?", STRATEGY, llm=model, store=store, run_id=run_id) for _ in range(2)]
        outcomes = await asyncio.gather(*runs, return_exceptions=True)
        refused = [o for o in outcomes if isinstance(o, sg.ConfigurationError)]
        assert len(refused) + sum(isinstance(o, sg.Answer) for o in outcomes) == 2
        alone = ToyModel()
        await sg.solve("Which?", STRATEGY, llm=alone)
        assert model.books.usage == alone.books.usage  # paid once, whether refused or read

    asyncio.run(main())
