import asyncio
import os
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import ormsgpack
import pytest
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import START, MessagesState, StateGraph

from stratagem.core.budget import Budget
from stratagem.core.errors import (
    BackendError,
    BudgetExhausted,
    ConfigurationError,
    MissingExtraError,
    StoreError,
    UnavailableError,
)
from stratagem.core.task import Answer, Task
from stratagem.core.trace import Record, RunFinished, Trace
from stratagem.graphs import Runner
from stratagem.strategies.direct import Direct
from stratagem.strategies.self_consistency import SelfConsistency
from stratagem.testing.loops import StepLoop, VirtualLoop
from stratagem.testing.toy import ToyModel

TASK = Task.of("How many?", choices=("4", "5"), id="t1")
VOTE = SelfConsistency(n=5)
VOTES = {"": {"The answer is 4.": 0.6, "The answer is 5.": 0.4}}
DSN = os.environ.get("STRATAGEM_TEST_POSTGRES")
needs_postgres = pytest.mark.skipif(DSN is None, reason="STRATAGEM_TEST_POSTGRES names no server")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=[pytest.mark.postgres, needs_postgres])])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str | Path]:
    """An empty store that outlives its runners."""
    if request.param == "sqlite":
        yield tmp_path / "runs.sqlite"
        return
    import psycopg
    from psycopg import sql

    assert DSN is not None
    name = "t" + os.urandom(6).hex()
    with psycopg.connect(DSN, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield DSN.rpartition("/")[0] + "/" + name
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def within(store: str | Path | None, body: Callable[[Runner], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with Runner(store, patience=0.2) as runner:
            return await body(runner)

    return asyncio.run(main())


def toy() -> dict[str, ToyModel]:
    return {"policy": ToyModel(VOTES)}


def untimed(answer: Answer) -> Answer:
    return answer.model_copy(update={"seconds": 0.0})


async def interrupt(runner: Runner, run_id: str, **options: Any) -> None:
    """Begin a run and cancel it in the middle of its call."""
    decoding = asyncio.Event()

    async def pace(_: object) -> None:
        decoding.set()
        await asyncio.Event().wait()

    llm = ToyModel(VOTES, pace=pace)
    task = asyncio.create_task(runner.run(VOTE, TASK, {"policy": llm}, run_id=run_id, **options))
    await decoding.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert llm.books.in_flight == 0


# -- running and resuming ------------------------------------------------------------------------------


def test_in_memory_a_run_gives_the_answer_and_its_events() -> None:
    trace, heard = Trace(), list[Record]()
    trace.listeners.append(heard.append)

    async def body(runner: Runner) -> Answer:
        return await runner.run(VOTE, TASK, toy(), run_id="a", seed=2, trace=trace)

    answer = within(None, body)
    assert answer.run_id == "a"
    assert answer.value in ("4", "5")
    assert trace.of(RunFinished)[0].usage == answer.usage
    assert heard == trace.records
    assert {record.run_id for record in heard} == {"a"}


def test_a_finished_run_is_read_without_a_model_call(store: str | Path) -> None:
    first = within(store, lambda runner: runner.run(VOTE, TASK, toy(), run_id="a", budget=Budget(calls=9)))
    again, resumed = toy(), toy()
    second = within(store, lambda runner: runner.run(VOTE, TASK, again, run_id="a", budget=Budget(calls=9)))
    third = within(store, lambda runner: runner.resume("a", resumed))
    assert first == second == third
    assert again["policy"].books.usage.calls == resumed["policy"].books.usage.calls == 0


def test_an_interrupted_run_is_resumed_by_its_id_alone(store: str | Path) -> None:
    whole = within(None, lambda runner: runner.run(VOTE, TASK, toy(), run_id="a", seed=7))
    within(store, lambda runner: interrupt(runner, "a", seed=7))
    assert untimed(within(store, lambda runner: runner.resume("a", toy()))) == untimed(whole)


def test_an_interrupted_run_is_resumed_by_the_same_call(store: str | Path) -> None:
    whole = within(None, lambda runner: runner.run(VOTE, TASK, toy(), run_id="a"))
    within(store, lambda runner: interrupt(runner, "a"))
    assert untimed(within(store, lambda runner: runner.run(VOTE, TASK, toy(), run_id="a"))) == untimed(whole)


def test_a_run_whose_model_failed_can_be_resumed(store: str | Path) -> None:
    class Gone(ToyModel):
        async def capabilities(self) -> Any:
            raise UnavailableError("No server answers.")

    async def body(runner: Runner) -> Answer:
        with pytest.raises(BackendError, match="No server answers"):
            await runner.run(VOTE, TASK, {"policy": Gone(VOTES)}, run_id="a")
        assert [(r.run_id, r.state) for r in await runner.runs()] == [("a", "unfinished")]
        return await runner.resume("a", toy())

    assert within(store, body).value in ("4", "5")


def test_runs_are_listed_with_their_state(store: str | Path) -> None:
    async def body(runner: Runner) -> None:
        assert await runner.runs() == []
        await runner.run(VOTE, TASK, toy(), run_id="done")
        await interrupt(runner, "begun")
        made = (await runner.run(Direct(), TASK, toy())).run_id
        listed = await runner.runs()
        assert [(r.run_id, r.state, r.strategy) for r in listed] == [
            (made, "finished", "direct"),
            ("begun", "unfinished", "self_consistency"),
            ("done", "finished", "self_consistency"),
        ]
        assert {r.question for r in listed} == {"How many?"}
        assert [r.updated for r in listed] == sorted((r.updated for r in listed), reverse=True)

    within(store, body)


def test_a_hundred_runs_at_the_same_time_share_a_store(store: str | Path) -> None:
    def name(seed: int) -> str:
        return f"run {seed}"

    async def main() -> list[Answer]:
        async with Runner(store) as runner, Runner(store) as other, asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    (runner if seed % 2 else other).run(VOTE, TASK, toy(), run_id=name(seed), seed=seed)
                )
                for seed in range(100)
            ]
        return [task.result() for task in tasks]

    answers = asyncio.run(main())
    for seed in (0, 41, 99):
        alone = within(None, lambda runner: runner.run(VOTE, TASK, toy(), run_id=name(seed), seed=seed))  # noqa: B023
        assert untimed(answers[seed]) == untimed(alone)
    listed = within(store, lambda runner: runner.runs())
    assert {(r.run_id, r.state) for r in listed} == {(name(seed), "finished") for seed in range(100)}


def test_the_seconds_of_an_interrupted_sitting_count() -> None:
    async def main() -> list[float]:
        now = asyncio.get_running_loop().time
        models = {"policy": ToyModel(VOTES, pace=lambda _: asyncio.Event().wait())}
        times = [now()]
        async with Runner() as runner:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(40):
                    await runner.run(VOTE, TASK, models, run_id="a", budget=Budget(seconds=100))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(10):
                    await runner.resume("a", models)
            for _ in range(2):
                times.append(now())
                with pytest.raises(BudgetExhausted):
                    await runner.resume("a", models)
        return [*times, now()]

    with asyncio.Runner(loop_factory=VirtualLoop) as loop:
        begun, interrupted, out, end = loop.run(main())
    # The ledger's own clock is real, so what the test itself takes goes off the virtual seconds.
    assert interrupted - begun == pytest.approx(50, abs=1)
    assert out - interrupted == pytest.approx(50, abs=5)
    assert end - out == pytest.approx(0, abs=5)


def test_a_run_cancelled_at_any_point_can_be_run_again() -> None:
    budget = Budget(seconds=1000)

    async def main(step: int) -> tuple[bool, Answer]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, StepLoop)
        async with Runner() as runner:
            task = asyncio.create_task(runner.run(VOTE, TASK, toy(), run_id="a", budget=budget))
            loop.plan(step, task.cancel)
            interrupted = False
            try:
                await task
            except asyncio.CancelledError:
                interrupted = True
            loop.cancel_plan()
            assert len(await runner.runs()) <= 1
            return interrupted, await runner.run(VOTE, TASK, toy(), run_id="a", budget=budget)

    def at(step: int) -> tuple[bool, Answer]:
        with asyncio.Runner(loop_factory=StepLoop) as loop:
            return loop.run(main(step))

    whole = within(None, lambda runner: runner.run(VOTE, TASK, toy(), run_id="a", budget=budget))
    step, interrupted = 1, True
    while interrupted:
        interrupted, answer = at(step)
        assert untimed(answer) == untimed(whole), step
        step += 3
    assert step > 30


# -- wrong use -----------------------------------------------------------------------------------------


def test_an_unknown_run_is_an_error_that_names_known_ones(store: str | Path) -> None:
    async def body(runner: Runner) -> None:
        with pytest.raises(ConfigurationError, match=r"no run 'zz'.*It has no runs"):
            await runner.resume("zz", toy())
        for i in range(7):
            await runner.run(Direct(), TASK, toy(), run_id=f"r{i}")
        with pytest.raises(ConfigurationError, match=r"no run 'zz'.*It has r6, r5, r4, r3, r2 and 2 more"):
            await runner.resume("zz", toy())

    within(store, body)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strategy": SelfConsistency(n=6)}, r'strategy.*"n": 5.*"n": 6'),
        ({"strategy": Direct()}, r"strategy.*self_consistency.*direct"),
        ({"task": Task.of("How few?")}, r"task.*How many\?.*How few\?"),
        ({"seed": 1}, "seed: 0, not 1"),
    ],
)
def test_another_run_under_an_existing_id_is_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    async def body(runner: Runner) -> None:
        given: dict[str, Any] = {"strategy": VOTE, "task": TASK, "models": toy(), "run_id": "a"}
        await runner.run(**given)
        with pytest.raises(ConfigurationError, match=f"Run 'a' exists with another {words}"):
            await runner.run(**{**given, **change})

    within(tmp_path / "runs.sqlite", body)


def test_a_run_cannot_run_twice_at_the_same_time() -> None:
    async def body(runner: Runner) -> None:
        decoding, go = asyncio.Event(), asyncio.Event()

        async def pace(_: object) -> None:
            decoding.set()
            await go.wait()

        first = asyncio.create_task(
            runner.run(VOTE, TASK, {"policy": ToyModel(VOTES, pace=pace)}, run_id="a")
        )
        await decoding.wait()
        with pytest.raises(ConfigurationError, match="running now"):
            await runner.run(VOTE, TASK, toy(), run_id="a")
        go.set()
        await first

    within(None, body)


@pytest.mark.parametrize("run_id", ["", "a\nb", "a\0b", "x" * 201])
def test_a_bad_run_id_is_refused(run_id: str) -> None:
    with pytest.raises(ConfigurationError, match="is no run id"):
        within(None, lambda runner: runner.run(VOTE, TASK, toy(), run_id=run_id))


def test_a_seed_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="too large"):
        within(None, lambda runner: runner.run(VOTE, TASK, toy(), seed=2**64))


def test_a_thread_of_another_graph_is_not_taken_for_a_run(tmp_path: Path) -> None:
    path = tmp_path / "mine.sqlite"

    async def main() -> None:
        async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
            graph = (
                StateGraph(MessagesState)
                .add_node("say", lambda state: {"messages": ["hi"]})
                .add_edge(START, "say")
                .compile(checkpointer=saver)
            )
            await graph.ainvoke({"messages": []}, {"configurable": {"thread_id": "mine"}})
        async with Runner(path) as runner:
            assert await runner.runs() == []
            with pytest.raises(StoreError, match=r"'mine'.*another graph"):
                await runner.resume("mine", toy())
            assert (await runner.run(VOTE, TASK, toy(), run_id="a")).value

    asyncio.run(main())


# -- stores that cannot be used ------------------------------------------------------------------------


def opening(store: str | Path) -> str:
    with pytest.raises(StoreError) as caught:
        within(store, lambda runner: runner.runs())
    assert caught.value.remedy
    return str(caught.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"not a database " * 500)
    assert "not a database" in opening(path)
    assert path.read_bytes() == b"not a database " * 500


def test_a_store_with_a_broken_page(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    within(path, lambda runner: runner.run(VOTE, TASK, toy(), run_id="a"))
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)
    assert "runs.sqlite" in opening(path)


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    assert "folder" in opening(tmp_path / "none" / "runs.sqlite")


def test_a_file_that_another_process_has_locked(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    within(path, lambda runner: runner.run(VOTE, TASK, toy(), run_id="a"))
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="Another process"):
        within(path, lambda runner: runner.run(VOTE, TASK, toy(), run_id="b"))
    connection.execute("ROLLBACK")
    connection.close()
    assert within(path, lambda runner: runner.resume("a", toy())).value


def test_a_new_file_that_many_open_at_once(tmp_path: Path) -> None:
    async def open_it(path: Path) -> None:
        async with Runner(path) as runner:
            await runner.runs()

    async def main() -> None:
        for name in range(40):
            await asyncio.gather(*[open_it(tmp_path / f"{name}.sqlite") for _ in range(8)])

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["pickle", "json"])
def test_a_store_never_runs_what_it_holds(tmp_path: Path, kind: str) -> None:
    path, trap = tmp_path / "runs.sqlite", tmp_path / "sprung"
    within(path, lambda runner: runner.run(VOTE, TASK, toy(), run_id="a"))
    payload = {
        "pickle": b"cposix\nsystem\n(S'touch %b'\ntR." % str(trap).encode(),
        "json": b'{"lc": 2, "type": "constructor", "id": ["os", "system"], "args": ["touch %b"]}'
        % str(trap).encode(),
    }[kind]
    connection = sqlite3.connect(path)
    connection.execute("UPDATE checkpoints SET type = ?, checkpoint = ?", (kind, payload))
    connection.commit()
    connection.close()
    assert kind in opening(path)
    assert not trap.exists()


def test_a_class_that_a_checkpoint_names_is_not_called(tmp_path: Path) -> None:
    path, trap = tmp_path / "runs.sqlite", tmp_path / "sprung"
    within(path, lambda runner: runner.run(VOTE, TASK, toy(), run_id="a"))
    call = ormsgpack.packb(("os", "system", f"touch {trap}"))
    connection = sqlite3.connect(path)
    connection.execute("UPDATE checkpoints SET checkpoint = ?", (ormsgpack.packb(ormsgpack.Ext(0, call)),))
    connection.commit()
    connection.close()
    assert "damaged" in opening(path)
    assert not trap.exists()


@pytest.mark.parametrize(
    "garbage", [b"\xc1\xc1", b"\x80", ormsgpack.packb({"channel_values": {"spec": 1}}), b"\x01"]
)
def test_a_damaged_checkpoint(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "runs.sqlite"
    within(path, lambda runner: runner.run(VOTE, TASK, toy(), run_id="a"))
    connection = sqlite3.connect(path)
    connection.execute("UPDATE checkpoints SET checkpoint = ?", (garbage,))
    connection.commit()
    connection.close()
    assert "runs.sqlite" in opening(path)
    with pytest.raises(StoreError):
        within(path, lambda runner: runner.resume("a", toy()))


def test_an_address_of_another_sort() -> None:
    with pytest.raises(ConfigurationError, match="mysql") as caught:
        within("mysql://me:secret@host/db", lambda runner: runner.runs())
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://me:secret@127.0.0.1:1/db",
        "postgresql://me:secret@127.0.0.1:notaport/db",
        "postgresql://me:secret@127.0.0.1:1/db?color=red",
        "postgresql://127.0.0.1:1/db?user=me&password=secret",
    ],
)
def test_a_postgres_that_is_not_there(dsn: str) -> None:
    pytest.importorskip("psycopg")
    assert "secret" not in opening(dsn)


@pytest.mark.postgres
@needs_postgres
def test_a_postgres_that_refuses_us() -> None:
    assert DSN is not None
    start, _, rest = DSN.partition("@")
    message = opening(f"{start}wrong@{rest}")
    assert "password authentication failed" in message
    assert start.rpartition(":")[2] not in message
    assert "does not exist" in opening(DSN + "_nowhere")


def test_without_the_extra_postgres_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"stratagem\[postgres\]"):
        within("postgresql://me:secret@host/db", lambda runner: runner.runs())
