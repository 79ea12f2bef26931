"""Tools: schemas from signatures, and outcomes that are data whatever the function does."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import jsonschema
import pytest
from pydantic import Field

from stratagem.core.errors import ConfigurationError
from stratagem.testing.loops import run
from stratagem.tools._threads import MOST
from stratagem.tools.tool import Failed, Tool, Value, tool, toolbox


@dataclass
class Place:
    name: str
    stars: int


@tool
async def search(city: str, limit: Annotated[int, Field(ge=1, description="How many.")] = 3) -> list[Place]:
    """Restaurants of a city."""
    return [Place(f"{city} {i}", i) for i in range(limit)]


def failed(outcome: Value | Failed) -> Failed:
    assert isinstance(outcome, Failed)
    return outcome


def test_schema_and_description_come_from_the_function() -> None:
    told = search.schema["function"]
    assert (told["name"], told["description"]) == ("search", "Restaurants of a city.")
    jsonschema.Draft202012Validator.check_schema(told["parameters"])
    jsonschema.validate({"city": "Rome"}, told["parameters"])
    for bad in ({}, {"city": "Rome", "limit": 0}, {"city": "Rome", "town": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, told["parameters"])
    assert told["parameters"]["properties"]["limit"]["default"] == 3


def test_nested_types_share_their_definitions() -> None:
    @tool
    async def book(place: Place, others: list[Place]) -> None:
        """Book it."""

    jsonschema.validate({"place": {"name": "a", "stars": 1}, "others": []}, book.parameters)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"place": {"name": "a"}, "others": []}, book.parameters)
    place = {"name": "a", "stars": 2}
    assert run(book(place=place, others=[place])) == Value(None)


def test_a_result_is_plain_json() -> None:
    assert run(search(city="Rome", limit=1)) == Value([{"name": "Rome 0", "stars": 0}])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "needs 'city'"),
        ({"city": "Rome", "limit": 0}, "limit: Input should be greater than or equal to 1"),
        ({"city": ["Rome"]}, "city: Input should be a valid string"),
        ({"city": "Rome", "town": 1}, "no parameter 'town'; it has: city, limit"),
    ],
)
def test_arguments_that_do_not_fit_are_data(arguments: dict[str, Any], said: str) -> None:
    outcome = failed(run(search(**arguments)))
    assert outcome.why == "arguments"
    assert said in outcome.message
    assert outcome.attempts == 0


def test_a_plain_function_runs_in_a_thread() -> None:
    @tool
    def where() -> bool:
        """Whether this is the main thread."""
        return threading.current_thread() is threading.main_thread()

    assert asyncio.run(where()) == Value(False)


def test_an_error_is_kept_whole() -> None:
    @tool
    async def breaks() -> int:
        """Breaks in two ways."""
        raise ExceptionGroup("both", [ValueError("one"), KeyError("two")]) from OSError("before")

    outcome = failed(run(breaks()))
    assert outcome.why == "error"
    assert isinstance(outcome.error, ExceptionGroup)
    assert isinstance(outcome.error.__cause__, OSError)
    assert outcome.error.__traceback__ is not None


def test_a_hang_ends_with_the_timeout_and_is_cancelled() -> None:
    ended: list[str] = []

    @tool(timeout=2.0, retries=2, effect="idempotent")
    async def hangs() -> int:
        """Hangs."""
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("ended")
        return 0

    async def main() -> float:
        outcome = failed(await hangs())
        assert (outcome.why, outcome.attempts) == ("timeout", 3)
        assert len(asyncio.all_tasks()) == 1
        return asyncio.get_running_loop().time()

    assert run(main()) == pytest.approx(6.0)
    assert ended == ["ended"] * 3


def test_a_timeout_error_of_its_own_is_an_error() -> None:
    @tool
    async def late() -> int:
        """Some server was late."""
        raise TimeoutError

    assert failed(run(late())).why == "error"


def test_a_cancellation_of_its_own_is_an_error() -> None:
    @tool
    async def gives_up() -> int:
        """Cancels what it waits for."""
        raise asyncio.CancelledError

    assert failed(run(gives_up())).why == "error"


def test_it_is_tried_again_until_it_works() -> None:
    tries: list[int] = []

    @tool(retries=5, effect="read_only")
    async def flaky() -> int:
        """Works the third time."""
        tries.append(1)
        if len(tries) < 3:
            raise OSError("not yet")
        return len(tries)

    assert run(flaky()) == Value(3, attempts=3)


@pytest.mark.parametrize(
    ("result", "why"),
    [
        ("x" * 99, "too_large"),
        ("é" * 50, "too_large"),
        ("x" * 98, None),
        (threading.Lock(), "result"),
        ({1: {2, 3}}, None),
    ],
)
def test_results_are_bounded_json(result: Any, why: str | None) -> None:
    @tool(max_bytes=100)
    async def gives() -> Any:
        """Gives it."""
        return result

    outcome = run(gives())
    assert (outcome.why if isinstance(outcome, Failed) else None) == why


def test_a_result_is_what_the_signature_says() -> None:
    @tool
    async def count() -> int:
        """Counts."""
        return "many"  # type: ignore[return-value]  # pyright: ignore[reportReturnType]

    outcome = failed(run(count()))
    assert outcome.why == "result"
    assert "valid integer" in outcome.message


@pytest.mark.parametrize(("depth", "why"), [(100, None), (101, "result"), (252, "result"), (5000, "result")])
def test_a_result_is_not_nested_too_deeply(depth: int, why: str | None) -> None:
    """No deeper than journals and checkpoints can keep it."""
    nested: Any = 1
    for i in range(depth):
        nested = [nested] if i % 2 else {"a": nested}

    @tool
    async def gives() -> Any:
        """Gives it."""
        return nested

    outcome = run(gives())
    assert (outcome.why if isinstance(outcome, Failed) else None) == why
    if depth == 101:
        assert "nested more than 100 deep" in failed(outcome).message


def cyclic() -> Any:
    whole: list[Any] = []
    whole.append(whole)
    return whole


def test_a_cyclic_result_is_no_json() -> None:
    @tool
    async def gives() -> Any:
        """Gives a list that holds itself."""
        return cyclic()

    assert failed(run(gives())).why == "result"


def test_concurrency_and_rate_hold_in_each_event_loop() -> None:
    now = most = 0

    @tool(concurrency=2)
    async def works() -> None:
        """Works a second."""
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(1)
        now -= 1

    starts: list[float] = []

    @tool(rate=4.0)
    async def noted() -> None:
        """Notes when it began."""
        starts.append(asyncio.get_running_loop().time())

    async def main() -> float:
        await asyncio.gather(*(works() for _ in range(6)))
        return asyncio.get_running_loop().time()

    async def paced() -> None:
        await asyncio.gather(*(noted() for _ in range(5)))

    for _ in range(2):
        assert run(main()) == pytest.approx(3.0)
        assert most == 2
        run(paced())
        assert starts == pytest.approx([0, 0.25, 0.5, 0.75, 1])
        starts.clear()


def test_permits_come_back_from_cancelled_calls() -> None:
    @tool(concurrency=1, rate=1.0)
    async def waits(seconds: float) -> None:
        """Waits."""
        await asyncio.sleep(seconds)

    async def main() -> None:
        for delay in (0.0, 0.5, 1.5):  # running; waiting for its turn; waiting for the permit
            calls = [asyncio.create_task(waits(seconds=99)) for _ in range(3)]
            await asyncio.sleep(delay)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            assert await waits(seconds=0) == Value(None)

    run(main())


def test_a_thread_keeps_its_permit_until_it_ends() -> None:
    now = most = 0
    lock = threading.Lock()
    go_on = threading.Event()

    @tool(concurrency=1, timeout=1)
    def slow() -> None:
        """Takes until it is told."""
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        go_on.wait(10)
        with lock:
            now -= 1

    async def main() -> None:
        assert failed(await slow()).why == "timeout"
        second = asyncio.create_task(slow())
        await asyncio.sleep(0.05)
        assert not second.done()
        go_on.set()
        assert await second == Value(None)

    asyncio.run(main())
    assert most == 1


def no_type(x) -> int:  # type: ignore[no-untyped-def]
    """Has no type."""
    return 0


def no_result(x: int):  # type: ignore[no-untyped-def]
    """Has no type of its result."""


def no_text(x: int) -> int:
    return x


def many(*x: int) -> int:
    """Takes many."""
    return len(x)


def strange(x: threading.Lock) -> int:  # type: ignore[valid-type]
    """Takes what is no JSON."""
    return 0


def no_attribute(x: asyncio.Nope) -> int:  # type: ignore[name-defined]  # pyright: ignore
    """Has a type that is not there."""
    return 0


def no_syntax(x: int) -> int:
    """Has a type that is none."""
    return 0


no_syntax.__annotations__["x"] = "int[["


def fine(x: int) -> int:
    """Is fine."""
    return x


@pytest.mark.parametrize(
    ("define", "said"),
    [
        (lambda: tool(no_type), "'no_type' has no type for: x"),
        (lambda: tool(no_result), "'no_result' has no type for: return"),
        (lambda: tool(no_text), "'no_text' has no docstring"),
        (lambda: tool(many), "parameter *x"),
        (lambda: tool(strange), "'strange'"),
        (lambda: tool(retries=1)(fine), "destructive and would be retried"),
        (lambda: tool(timeout=0)(fine), "timeout=0"),
        (lambda: tool(max_bytes=0)(fine), "max_bytes=0"),
        (lambda: tool(retries=-1, effect="read_only")(fine), "retries=-1"),
        (lambda: tool(timeout="5")(fine), "timeout='5'"),  # type: ignore[call-overload]  # pyright: ignore
        (lambda: tool(timeout=float("nan"))(fine), "timeout=nan"),
        (lambda: tool(rate="1")(fine), "rate='1'"),  # type: ignore[call-overload]  # pyright: ignore
        (lambda: tool(cost=None)(fine), "cost=None"),  # type: ignore[call-overload]  # pyright: ignore
        (lambda: tool(concurrency=1.5)(fine), "concurrency=1.5"),  # type: ignore[call-overload]  # pyright: ignore
        (lambda: tool(retries=1.5, effect="idempotent")(fine), "retries=1.5"),  # type: ignore[call-overload]  # pyright: ignore
        (lambda: tool(max_bytes=True)(fine), "max_bytes=True"),
        (lambda: tool(on_failure="explode")(fine), "Known are: skip, ask"),  # type: ignore[call-overload]  # pyright: ignore
        (lambda: tool(name=3)(fine), "Tool 3: a model cannot write"),  # type: ignore[call-overload]  # pyright: ignore
        (lambda: tool(no_attribute), "'no_attribute': a type cannot be resolved: AttributeError"),
        (lambda: tool(no_syntax), "'no_syntax': a type cannot be resolved: SyntaxError"),
        (lambda: tool(min), "'min': its signature cannot be read"),
        (lambda: tool(dict), "'dict': its signature cannot be read"),
        (lambda: tool("search"), "'search' is no function"),  # type: ignore[call-overload]  # pyright: ignore
        (lambda: tool(effect="harmless")(fine), "'harmless'"),  # type: ignore[call-overload]  # pyright: ignore
        (lambda: toolbox(tool(fine), tool(name="fine")(no_op)), "Two tools are called 'fine'"),
    ],
)
def test_what_cannot_be_a_tool_is_one_error(define: Callable[[], Tool], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        define()
    assert said in str(caught.value)


def no_op() -> None:
    """Does nothing."""


def test_calls_that_hang_hold_up_neither_others_nor_the_end() -> None:
    """Of a tool for one call at a time that never returns: the next fails after its own time-out. Of another with
    room for all, sixteen at a time run at a time, and what is cancelled before it began never begins."""
    room = MOST - 1  # threads: one hangs
    go_on, full, began = threading.Event(), threading.Event(), list[int]()

    @tool(effect="read_only", timeout=0.2, concurrency=1)
    def hangs() -> None:
        """Never returns."""
        go_on.wait(60)

    @tool(effect="read_only", timeout=30)
    def sleeps(x: int) -> int:
        """Returns after a time."""
        began.append(x)
        if len(began) == room:
            full.set()
        go_on.wait(1)
        return x

    async def main() -> None:
        assert [failed(o).why for o in await asyncio.gather(hangs(), hangs())] == ["timeout"] * 2
        assert await asyncio.gather(*(sleeps(x=x) for x in range(16))) == [Value(x) for x in range(16)]
        began.clear()
        many = [asyncio.create_task(sleeps(x=x)) for x in range(100)]
        assert await asyncio.to_thread(full.wait, 60)
        for one in many:
            one.cancel()
        await asyncio.gather(*many, return_exceptions=True)
        await asyncio.sleep(1.2)
        assert len(began) == room

    started = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - started < 55  # it does not wait for the thread that hangs
    go_on.set()


@pytest.mark.parametrize("error", [SystemExit(3), StopIteration(), GeneratorExit(), KeyError("x")], ids=repr)
@pytest.mark.parametrize("threaded", [True, False])
def test_whatever_is_raised_is_a_failed_call(error: BaseException, threaded: bool) -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    raising = [error, Silent()]

    @tool(effect="read_only", concurrency=1, name="breaks")
    def in_a_thread(which: int) -> int:
        """Raises."""
        raise raising[which]

    @tool(effect="read_only", concurrency=1, name="breaks")
    async def in_the_loop(which: int) -> int:
        """Raises."""
        raise raising[which]

    async def main() -> None:
        chosen = in_a_thread if threaded else in_the_loop
        for which, words in ((0, type(error).__name__), (1, "cannot be read")):
            outcome = failed(await chosen(which=which))
            assert outcome.why == "error"
            assert (words in outcome.message) or (
                words == "StopIteration" and "StopIteration" in outcome.message
            )

    asyncio.run(main())


def test_messages_have_an_end_and_are_text() -> None:
    @tool(effect="read_only")
    async def talks() -> int:
        """Raises."""
        raise ValueError("\udcff" + "x" * 5_000_000)

    message = failed(asyncio.run(talks())).message
    assert len(message) < 5000
    assert message.encode()


def test_a_wrapper_around_an_async_function_is_awaited() -> None:
    async def inner(x: int) -> int:
        """One more."""
        await asyncio.sleep(0)
        return x + 1

    @functools.wraps(inner)
    def wrapper(x: int) -> Any:
        return inner(x)

    made = tool(effect="read_only")(wrapper)
    assert asyncio.run(made(x=1)) == Value(2)


@pytest.mark.parametrize("name", ["get-price", "a.b", "get price", "größe", "1st"])
def test_a_name_that_no_model_can_write_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot write such a name"):

        @tool(name=name)
        async def get() -> int:
            """Get."""
            return 1
