"""Several endpoints behind one backend: where calls go, and what happens when one fails."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, cast

import pytest

import stratagem as sg
from stratagem.backends.openai import OpenAIBackend
from stratagem.backends.pooled import Pooled
from stratagem.core.asking import Sampling
from stratagem.core.backend import Backend, Message, Request
from stratagem.core.budget import Budget, Ledger
from stratagem.core.errors import BudgetExhausted, ConfigurationError, UnavailableError
from stratagem.core.run import Run
from stratagem.core.trace import Retried
from stratagem.core.usage import Meter, Usage
from stratagem.testing import laws
from stratagem.testing.server import Fault, SimRequest, SimSettings, SimulatedProcess, SimulatedServer
from stratagem.testing.toy import ToyModel


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(120):
            await main()

    asyncio.run(limited())


def asking(text: str, **options: Any) -> Request:
    return Request((Message("user", text),), **{"max_tokens": 24, "seed": 5, **options})


def pool(*servers: SimulatedServer | SimulatedProcess, rest: float = 60.0) -> Pooled:
    return Pooled([OpenAIBackend(s.url, "sim", retries=0) for s in servers], name="pool#sim", rest=rest)


def broken(fault: Fault) -> Callable[[SimRequest], Fault | None]:
    return lambda request: fault


def test_the_laws_of_backends() -> None:
    toys: list[ToyModel] = []

    def make() -> Backend:
        toys[:] = [ToyModel(), ToyModel()]
        return Pooled(toys, name="toys")

    laws.backend(
        make,
        idle=lambda _: all(toy.books.in_flight == toy.books.permits == 0 for toy in toys),
        usage=lambda _: sum((toy.books.usage for toy in toys), Usage()),
    )


def test_a_task_stays_at_one_endpoint_and_tasks_are_spread() -> None:
    async def main() -> None:
        async with (
            SimulatedServer(SimSettings(per_token=0.001)) as a,
            SimulatedServer(SimSettings(per_token=0.001)) as b,
        ):
            backend = pool(a, b)

            async def task(number: int) -> None:
                question = Message("user", f"Question {number}?")
                first = await backend.generate(Request((question,), n=4, max_tokens=24, seed=1))
                texts = [Message("assistant", c.text) for c in first.completions]
                judge = Message("user", "Right?")
                async with asyncio.TaskGroup() as group:
                    for text in texts:
                        group.create_task(
                            backend.generate(Request((question, text, judge), max_tokens=1, seed=1))
                        )

            async with asyncio.TaskGroup() as group:
                for number in range(16):
                    group.create_task(task(number))
            await backend.aclose()
            # A task is one request for four siblings and four judgements, and none is divided.
            sequences = [sum(r.n for r in server.records) for server in (a, b)]
            assert sum(sequences) == 16 * 8
            assert all(count % 8 == 0 for count in sequences)
            assert min(sequences) >= 4 * 8

    run(main)


def test_a_killed_server_costs_no_answer() -> None:
    async def main() -> None:
        settings = SimSettings(per_token=0.004, mean_tokens=80)
        async with SimulatedProcess(settings) as a, SimulatedProcess(settings) as b:
            alone = OpenAIBackend(b.url, "sim")
            expected = [
                (await alone.generate(asking(f"q{i}", n=4, max_tokens=400))).completions for i in range(3)
            ]
            await alone.aclose()
            backend = pool(a, b)
            ledger = Ledger()
            whole = Run({"policy": backend}, ledger=ledger, seed=3)
            answered = 0
            killed = asyncio.Event()

            async def watch(candidate: sg.Candidate) -> sg.Candidate:
                nonlocal answered
                answered += 1
                if answered == 6:
                    killed.set()
                return candidate

            async def draw(number: int) -> list[str]:
                sampling = Sampling(max_tokens=400)
                return [c.text for c in await whole.sample(f"q{number}", 4, sampling=sampling, then=watch)]

            async def kill() -> None:
                await killed.wait()
                await a.kill()

            async with asyncio.TaskGroup() as group:
                group.create_task(kill())
                tasks = [group.create_task(draw(i)) for i in range(12)]
            assert all(len(task.result()) == 4 for task in tasks)
            moved = whole.trace.of(Retried)
            assert moved
            # Nothing that had ended is drawn again: what was paid twice is at most what was under way at the kill.
            assert ledger.spent.calls <= 12 + len(moved) + sum(e.maybe_billed for e in moved) * 4
            direct = [
                (await backend.generate(asking(f"q{i}", n=4, max_tokens=400))).completions for i in range(3)
            ]
            assert [[c.text for c in d] for d in direct] == [[c.text for c in e] for e in expected]
            await backend.aclose()

    run(main)


def test_a_stream_keeps_what_has_ended() -> None:
    """Of four siblings those that ended before the failure are kept; the others come from the other endpoint."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            settings = SimSettings(per_token=0.001, spread=1.0)
            bad = await stack.enter_async_context(
                SimulatedServer(settings, faults=broken(Fault("drop", after=12)))
            )
            good = await stack.enter_async_context(SimulatedServer(settings))
            request = asking("q", n=8, max_tokens=64)
            backend = pool(bad, good)
            meter = Meter()
            async with backend.stream(request, meter, deltas=False) as stream:
                done = [chunk.completion async for chunk in stream]
            expected = await OpenAIBackend(good.url, "sim").generate(request)
            assert sorted(c.index for c in done if c) == list(range(8))
            assert {c.index: c.text for c in done if c} == {c.index: c.text for c in expected.completions}
            again = sum(r.n for r in good.records) - 8
            assert 0 < again < 8, "short siblings had ended before the connection dropped"
            assert stream.usage == meter.usage
            assert meter.usage.uncertain_tokens
            await backend.aclose()

    run(main)


def test_pieces_that_were_given_out_are_not_begun_anew() -> None:
    async def main() -> None:
        settings = SimSettings(per_token=0.001, spread=0.0)
        async with (
            SimulatedServer(settings, faults=broken(Fault("drop", after=5))) as bad,
            SimulatedServer(settings) as good,
        ):
            backend = pool(bad, good)
            async with backend.stream(asking("q")) as stream:
                with pytest.raises(sg.BackendError):
                    [chunk async for chunk in stream]
            assert not good.records
            await backend.aclose()

    run(main)


def test_what_may_be_billed_is_not_sent_twice_beyond_the_budget() -> None:
    async def main() -> None:
        async with SimulatedServer(faults=broken(Fault("drop", after=3))) as bad, SimulatedServer() as good:
            backend = pool(bad, good)
            tokens = await backend.count_tokens(asking("q").messages) + 24
            inside = Run({"policy": backend}, ledger=Ledger(Budget(tokens=tokens)))
            with pytest.raises(BudgetExhausted):
                await inside.sample("q", sampling=Sampling(max_tokens=24))
            assert not good.records
            assert inside.ledger.spent.tokens + inside.ledger.spent.uncertain_tokens <= tokens
            await backend.aclose()

    run(main)


def test_a_failed_endpoint_rests_and_comes_back() -> None:
    async def main() -> None:
        failing = True
        counted = 0

        def faults(request: SimRequest) -> Fault | None:
            nonlocal counted
            counted += 1
            return Fault("status", status=503) if failing else None

        async with SimulatedServer(faults=faults) as bad, SimulatedServer() as good:
            resting = pool(bad, good)
            for number in range(8):
                await resting.generate(asking(f"q{number}"))
            assert counted == 1, "it is left alone while it rests"
            eager = pool(bad, good, rest=0.0)
            await eager.generate(asking("q"))
            failing, before = False, counted
            for number in range(8):
                await eager.generate(asking(f"q{number}"))
            assert counted > before, "it is tried again after its rest"
            await resting.aclose()
            await eager.aclose()

    run(main)


class Falling(ToyModel):
    """Is gone for as long as it is told, found out by all calls under way at the same time."""

    gone = True

    async def generate(self, request: Request, meter: Meter | None = None) -> Any:
        await asyncio.sleep(0.05)
        if self.gone:
            raise UnavailableError("gone")
        return await super().generate(request, meter)


def test_calls_that_fail_together_are_one_failure() -> None:
    """An endpoint that has lost 32 of them rests as long as after one, and is there again when it is back."""

    async def main() -> None:
        falling, other = Falling(), ToyModel()
        backend = Pooled([falling, other], name="pool#toy", rest=0.2)
        async with asyncio.TaskGroup() as group:
            for number in range(32):
                group.create_task(backend.generate(asking(f"{number}?")))
        falling.gone = False
        await asyncio.sleep(0.5)
        before = falling.books.usage.calls
        async with asyncio.TaskGroup() as group:
            for number in range(32):
                group.create_task(backend.generate(asking(f"And {number}?")))
        assert falling.books.usage.calls > before

    run(main)


def test_all_endpoints_gone_is_one_error() -> None:
    async def main() -> None:
        backend = cast(Pooled, sg.connect(["http://127.0.0.1:9/v1", "http://127.0.0.1:10/v1"], model="sim"))
        with pytest.raises(UnavailableError):
            await backend.generate(asking("q"))
        with pytest.raises(UnavailableError):
            await backend.capabilities()

    run(main)


def test_endpoints_of_different_models_are_refused() -> None:
    async def main() -> None:
        async with SimulatedServer() as a, SimulatedServer(SimSettings(model="other")) as b:
            backend = Pooled([OpenAIBackend(a.url), OpenAIBackend(b.url)], name="pool")
            with pytest.raises(ConfigurationError, match="different models: other, sim"):
                await backend.capabilities()
            await backend.aclose()

    run(main)


def test_bad_pools_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        Pooled([], name="none")
    with pytest.raises(ConfigurationError, match="model="):
        sg.connect(["http://127.0.0.1:9/v1"])


def test_an_endpoint_that_stays_dead_goes_on_resting() -> None:
    """However often it is asked: a rest doubles, up to a longest one."""

    async def main() -> None:
        dead = OpenAIBackend("http://127.0.0.1:9/v1", "sim", retries=0)
        backend = Pooled([dead], name="pool#sim", rest=1e-300)
        for _ in range(1100):
            with pytest.raises(UnavailableError):
                await backend.generate(asking("Anybody?"))

    run(main)


def test_a_server_that_comes_back_as_another_is_asked_what_it_is() -> None:
    async def main() -> None:
        async with SimulatedServer(SimSettings(model="sim")) as first:
            backend = OpenAIBackend(first.url, retries=0)
            whole = Pooled([backend], name="pool#sim", rest=0.0)
            assert (await whole.capabilities()).model == "sim"
            port = int(first.url.split(":")[2].split("/")[0])
        with pytest.raises(UnavailableError):
            await whole.generate(asking("Gone?"))
        async with SimulatedServer(SimSettings(model="other", port=port)):
            assert (await whole.capabilities()).model == "other"
            await backend.aclose()

    run(main)
