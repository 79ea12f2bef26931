"""vLLM's engine in this process."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import stratagem as sg
from stratagem.bench.gym import skill
from stratagem.core.backend import Constraint, Message, Request, ScoreRequest, Scoring
from stratagem.core.errors import ConfigurationError, ContextLengthError, UnavailableError
from stratagem.core.usage import Meter
from vllm_kit import descendants, gone_afterwards

# vLLM is imported here, warns of what its own libraries have deprecated, and leaves a context of ZeroMQ unclosed.
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]
MINI = Path(__file__).resolve().parents[2] / "backends/embedded/mini"
ARGUMENTS: dict[str, Any] = {
    "dtype": "float32",
    "block_size": 32,
    "max_model_len": 512,
    "enforce_eager": True,
    "kv_cache_memory_bytes": 2**29,
}
DRAFT = {"method": "draft_model", "num_speculative_tokens": 2}
QUESTION = skill("words").problem("test", 0).question


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[[Callable[[Any], Coroutine[Any, Any, None]]], None]]:
    """One engine and its loop for all tests of this module."""
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    from stratagem.backends.vllm.engine import VLLMEngine

    with asyncio.Runner() as runner:
        engine = VLLMEngine(MINI, **ARGUMENTS)

        def in_time(main: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
            async def limited() -> None:
                async with asyncio.timeout(300):
                    await main(engine)

            runner.run(limited())

        yield in_time
        runner.run(engine.aclose())
    patch.undo()
    gc.collect()  # while the warning is ignored


def asked(text: str = QUESTION, **options: Any) -> Request:
    return Request((Message("user", text),), **{"max_tokens": 100, "seed": 1, "temperature": 0.0, **options})


def test_it_answers_as_the_embedded_engine(run: Any) -> None:
    async def main(engine: Any) -> None:
        embedded = sg.connect()
        request = asked(logprobs=3)
        [theirs] = (await engine.generate(request)).completions
        [ours] = (await embedded.generate(request)).completions
        await embedded.aclose()
        assert theirs.text == ours.text
        assert theirs.token_count == ours.token_count
        for a, b in zip(theirs.tokens, ours.tokens, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-3)
            if b.token:  # vLLM names the end of a text, the embedded engine has no text for it
                assert [token for token, _ in a.top][:1] == [token for token, _ in b.top][:1]
            assert len(a.top) == 3

    run(main)


def test_siblings_are_drawn_with_seeds_of_their_own_and_metered(run: Any) -> None:
    async def main(engine: Any) -> None:
        meter = Meter()
        together = asked(n=3, temperature=1.0)
        found = await engine.generate(together, meter)
        alone = [(await engine.generate(together.sibling(i))).completions[0].text for i in range(3)]
        assert [c.text for c in found.completions] == alone
        assert meter.usage == found.usage
        assert found.usage.completion_tokens == sum(c.token_count for c in found.completions)
        assert found.usage.prompt_tokens == await engine.count_tokens(together.messages)
        assert found.usage.uncertain_tokens == 0

    run(main)


def test_leaving_a_stream_stops_the_engine(run: Any) -> None:
    async def main(engine: Any) -> None:
        meter = Meter()
        request = asked(n=4, temperature=1.0, constraint=Constraint("regex", "[a-z ]{400}"), max_tokens=400)
        async with engine.stream(request, meter) as stream:
            async for _ in stream:
                break
        assert meter.usage.completion_tokens < 400
        assert meter.usage.uncertain_tokens
        assert engine._engine.get_num_unfinished_requests() == 0
        again = await engine.generate(asked())  # and works on
        assert again.completions

    run(main)


def test_scores_and_constraints(run: Any) -> None:
    async def main(engine: Any) -> None:
        request = asked(logprobs=0)
        [decoded] = (await engine.generate(request)).completions
        scoring = await engine.score(ScoreRequest(request.messages, (decoded.text, "Nonsense.", "")))
        for scored, token in zip(scoring.scores[0], decoded.tokens, strict=False):
            assert scored.logprob == pytest.approx(token.logprob, abs=1e-3)
        assert math.fsum(t.logprob for t in scoring.scores[1]) < math.fsum(
            t.logprob for t in scoring.scores[0]
        )
        assert scoring.scores[2] == ()
        choice = asked(constraint=Constraint.choice(["left", "right"]), temperature=1.0)
        assert (await engine.generate(choice)).completions[0].text in {"left", "right"}

    run(main)


def test_a_strategy_runs_on_it(run: Any) -> None:
    async def main(engine: Any) -> None:
        answer = await sg.solve(QUESTION, strategy=sg.SelfConsistency(n=4), llm=engine)
        assert len(answer.candidates) == 4
        judged = await sg.solve(QUESTION, strategy=sg.BestOfN(n=2), llm=engine)
        assert all("step_judge" in c.scores for c in judged.candidates)

    run(main)


def test_bad_requests_are_one_error_each(run: Any) -> None:
    async def main(engine: Any) -> None:
        with pytest.raises(ContextLengthError, match="takes 512"):
            await engine.generate(asked("many words " * 1000))
        with pytest.raises(sg.BackendError):
            await engine.generate(asked(constraint=Constraint("regex", "([a")))
        assert (await engine.generate(asked())).completions

    run(main)


def test_another_loop_is_refused(run: Any) -> None:
    async def main(engine: Any) -> None:
        await engine.capabilities()

        def elsewhere() -> None:
            asyncio.run(engine.capabilities())

        with pytest.raises(ConfigurationError, match="another event loop"):
            await asyncio.to_thread(elsewhere)

    run(main)


def engines() -> set[int]:
    """The processes of vLLM's engines below this one."""
    found = set()
    for pid in descendants(os.getpid()):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
            if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


def nothing_left(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs it, and looks for engines that it has left."""

    async def limited() -> None:
        async with asyncio.timeout(300):
            await work()

    others = engines()
    asyncio.run(limited())
    assert not engines() - others


def test_counts(run: Any) -> None:
    async def main(engine: Any) -> None:
        request = asked("A long question. " * 20, max_tokens=8, seed=5)
        await engine.generate(request)
        [before] = (await engine.counts()).values()
        spent = (await engine.generate(request)).usage
        [(name, after)] = (await engine.counts()).items()
        between = after.since(before)
        assert name == engine.name
        assert between.prefix_hits == spent.cached_tokens > 0
        assert between.generation_tokens == spent.completion_tokens
        assert (after.running, after.waiting, after.speculation) == (0, 0, None)

    run(main)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield
    gc.collect()


def test_priorities_and_guesses(offline: None) -> None:
    """One sequence at a time: of those that wait, the urgent one comes first."""
    from stratagem.backends.vllm.engine import VLLMEngine

    how = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1}

    async def main() -> None:
        engine = VLLMEngine(MINI, **ARGUMENTS, max_num_seqs=1, speculative_config=how)
        ended: list[int] = []

        async def one(priority: int) -> None:
            await engine.generate(asked(max_tokens=60, priority=priority))
            ended.append(priority)

        long = asked(max_tokens=400, constraint=Constraint("regex", "[a-z ]{400}"))
        async with asyncio.timeout(300), asyncio.TaskGroup() as group, engine.stream(long) as stream:
            chunks = aiter(stream)
            await anext(chunks)
            for priority in (5, 1, -1):
                group.create_task(one(priority))
            while (await waiting(engine)) < 3:
                await anext(chunks)
        assert ended == [-1, 1, 5]
        [counted] = (await engine.counts()).values()
        assert counted.speculation is not None
        assert counted.speculation.drafts > 0
        assert not (await engine.capabilities()).seed
        await engine.aclose()

    asyncio.run(main())


async def waiting(engine: Any) -> float:
    [now] = (await engine.counts()).values()
    return float(now.waiting)


def test_a_cancelled_start_is_neither_lost_nor_doubled(offline: None) -> None:
    from stratagem.backends.vllm.engine import VLLMEngine

    async def hasty(engine: Any) -> None:
        begun = asyncio.ensure_future(engine.capabilities())
        await asyncio.sleep(0)
        begun.cancel()
        with pytest.raises(asyncio.CancelledError):
            await begun

    async def main() -> None:
        others = engines()
        engine = VLLMEngine(MINI, **ARGUMENTS)
        await hasty(engine)
        await asyncio.gather(engine.capabilities(), engine.generate(asked()))
        assert len(engines() - others) == 1
        await engine.aclose()
        await hasty(engine)
        await engine.aclose()
        assert not engines() - others, "neither the first nor the one that was starting"

    asyncio.run(main())


def test_a_cancelled_end_is_an_end(offline: None) -> None:
    """Whoever closes it, and whoever comes while it closes, finds no process of it left."""
    from stratagem.backends.vllm.engine import VLLMEngine

    async def main() -> None:
        others = engines()
        engine = VLLMEngine(MINI, **ARGUMENTS)
        await engine.generate(asked())
        ending = asyncio.ensure_future(engine.aclose())
        await asyncio.sleep(0)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        assert not engines() - others
        await engine.aclose()
        await engine.generate(asked())  # started anew
        ending = asyncio.ensure_future(engine.aclose())
        await asyncio.sleep(0)
        assert (await engine.generate(asked())).completions, "waits for the end, and starts anew"
        await ending
        for pid in engines() - others:
            os.kill(pid, signal.SIGSTOP)  # as if it were too slow to end when it is asked to: vLLM kills it
        await asyncio.gather(engine.aclose(), engine.aclose())
        assert not engines() - others

    asyncio.run(main())


def test_what_is_in_flight_ends_with_the_engine(offline: None) -> None:
    """Also what waits for its start; whatever a request has come to, and whoever closes it."""
    from stratagem.backends.vllm.engine import VLLMEngine

    endless = asked(n=2, temperature=1.0, constraint=Constraint("regex", "[a-z ]{400}"), max_tokens=400)
    label = ScoreRequest(endless.messages, ("left", "right"))

    async def all_end() -> None:
        engine = VLLMEngine(MINI, **ARGUMENTS)
        early = [asyncio.ensure_future(each) for each in (engine.generate(endless), engine.score(label))]
        await asyncio.sleep(0)
        await engine.aclose()
        for each in early:
            with pytest.raises(UnavailableError, match="was closed"):
                await each
        meter = Meter()
        async with engine.stream(endless, meter) as stream:
            await anext(aiter(stream))
            asking: list[asyncio.Future[Any]] = []
            for _ in range(12):  # each a turn of the loop further than the next
                asking += [asyncio.ensure_future(engine.generate(endless))]
                asking += [asyncio.ensure_future(engine.score(label))]
                await asyncio.sleep(0)
            await engine.aclose()
            with pytest.raises(UnavailableError, match="was closed"):
                async for _ in stream:
                    pass
        assert meter.usage.completion_tokens
        assert meter.usage.uncertain_tokens
        results = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(each, Scoring | UnavailableError) for each in results), results
        assert sum(isinstance(each, Scoring) for each in results) < 12

    nothing_left(all_end)


def test_an_end_that_fails_leaves_none_in_flight(offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who closes it is told; who asks after that starts it anew."""
    from stratagem.backends.vllm.engine import VLLMEngine

    vllm = import_module("vllm.v1.engine.async_llm").AsyncLLM
    shutdown = vllm.shutdown

    def fails(self: Any, *arguments: Any) -> None:
        shutdown(self, *arguments)
        raise OSError("no more")

    async def all_end() -> None:
        engine = VLLMEngine(MINI, **ARGUMENTS)
        await engine.capabilities()
        with monkeypatch.context() as patch:
            patch.setattr(vllm, "shutdown", fails)
            with pytest.raises(OSError, match="no more"):
                await engine.aclose()
        assert (await engine.generate(asked())).completions
        await engine.aclose()

    nothing_left(all_end)


# Says so when it decodes, and goes on for ever.
PARENT = f"""
import asyncio
from stratagem.backends.vllm.engine import VLLMEngine
from stratagem.core.backend import Constraint, Message, Request

async def main():
    engine = VLLMEngine({str(MINI)!r}, **{ARGUMENTS!r})
    endless = Constraint("regex", "[a-c]{{900}}")
    while True:
        async with engine.stream(Request((Message("user", "a"),), max_tokens=400, constraint=endless)) as stream:
            async for _ in stream:
                print("it decodes", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("how", "when"),
    [(signal.SIGKILL, "it decodes"), (signal.SIGTERM, "it decodes"), (signal.SIGKILL, "EngineCore")],
    ids=["killed", "terminated", "killed as it starts"],
)
def test_nothing_is_left_when_its_process_goes(offline: None, how: signal.Signals, when: str) -> None:
    """The engine's first line of log is written long before it has loaded its model."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as parent:
        assert parent.stdout is not None
        log = []
        for line in parent.stdout:
            log.append(line)
            if when in line:
                break
        else:
            pytest.fail("".join(log))
        with gone_afterwards(parent.pid, 1):
            parent.send_signal(how)
            parent.wait()


def test_all_log_probabilities(offline: None) -> None:
    """By the value that vLLM has for it; a request may ask for as many as there are tokens."""
    from stratagem.backends.vllm.engine import VLLMEngine

    async def main() -> None:
        engine = VLLMEngine(MINI, **ARGUMENTS, max_logprobs=-1)
        most = (await engine.capabilities()).logprobs
        assert most == json.loads((MINI / "config.json").read_text())["vocab_size"]
        [completion] = (await engine.generate(asked(logprobs=most, max_tokens=1))).completions
        assert len(completion.tokens[0].top) == most
        await engine.aclose()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "finds no model '/no/such/folder'"),
        ({"model": "nobody/no-such-model"}, "finds no model 'nobody/no-such-model'"),
        ({"model": MINI, "tokenizer": "/no/tokens"}, "finds no model '/no/tokens'"),
        ({"model": MINI, "tokenizer": "nobody/no-tokens"}, "finds no tokenizer or further model.*mini'"),
        ({"model": MINI, "speculative_config": {**DRAFT, "model": "nobody/none"}}, "model 'nobody/none'"),
    ],
)
def test_what_is_missing_is_named(offline: None, arguments: dict[str, Any], words: str) -> None:
    """Where vLLM says what it is: offline it does not for a name on the hub."""
    from stratagem.backends.vllm.engine import VLLMEngine

    with pytest.raises(ConfigurationError, match=rf"{words}.*Hugging Face"):
        asyncio.run(VLLMEngine(**{"model": "/no/such/folder", **ARGUMENTS, **arguments}).capabilities())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"block_size": 0}, "block_size = 0"),
        ({"kv_cache_memory_bytes": "2G"}, "kv_cache_memory_bytes = '2G'.*number of bytes"),
        ({"speculative_config": 5}, "speculative_config = 5.*method"),
        ({"max_num_batched_tokens": 8}, "no room for 64 sequences"),
        ({"no_such_argument": 1}, "no_such_argument"),
    ],
)
def test_what_cannot_be_is_refused_before_it_starts(arguments: dict[str, Any], words: str) -> None:
    from stratagem.backends.vllm.engine import VLLMEngine

    with pytest.raises(ConfigurationError, match="Unknown profile 'fast'"):
        VLLMEngine(MINI, "fast")
    with pytest.raises(ConfigurationError, match=words):
        asyncio.run(VLLMEngine(MINI, **arguments).capabilities())
