"""vLLM's engine in this process."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import stratagem as sg
from stratagem.bench.gym import skill
from stratagem.core.backend import Constraint, Message, Request, ScoreRequest
from stratagem.core.errors import ConfigurationError, ContextLengthError
from stratagem.core.usage import Meter

# vLLM is imported here, and warns of what its own libraries have deprecated.
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
MINI = Path(__file__).resolve().parents[2] / "backends/embedded/mini"
ARGUMENTS: dict[str, Any] = {
    "dtype": "float32",
    "block_size": 32,
    "max_model_len": 512,
    "enforce_eager": True,
    "disable_log_stats": True,
}
QUESTION = skill("words").problem("test", 0).question


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[[Callable[[Any], Coroutine[Any, Any, None]]], None]]:
    """One engine and its loop for all tests of this module."""
    patch = pytest.MonkeyPatch()
    patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
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
