"""Searches over steps on the embedded engine, and over HTTP in virtual time."""

from __future__ import annotations

import asyncio
import math
import random
from contextlib import aclosing
from typing import ClassVar

import pytest

import stratagem as sg
from openai_kit import quick
from stratagem.backends import openai as module
from stratagem.backends.openai import OpenAIBackend
from stratagem.core.asking import POLICY
from stratagem.core.execute import execute
from stratagem.core.run import Run
from stratagem.core.task import Answer, Candidate, Task
from stratagem.core.usage import Usage
from stratagem.strategies._search.steps import Partial, Stepwise
from stratagem.testing.loops import run
from stratagem.testing.server import SimCompletion, SimRequest, SimSettings, SimulatedServer

LINES = 3
TICK = 0.01  # virtual seconds a token
SEARCHES: list[Stepwise] = [
    sg.StepBestOfN(n=6),
    sg.BeamSearch(beams=3, width=3),
    sg.DVTS(trees=4, width=3),
    sg.MCTS(simulations=6, width=3),
    sg.BestFirst(width=3, expansions=12),
    sg.ParticleFiltering(n=6),
    sg.ParticleFiltering(n=6, together=2, ess=0.8),
    sg.ParticleGibbs(n=4, iterations=2),
    sg.ParallelTempering(n=3, iterations=2, temperatures=(1.0, 2.0)),
]


class StepByStep(Stepwise):
    """Grows the likeliest answer, a step at a time."""

    kind: ClassVar[str] = "step_by_step"

    async def __call__(self, task: Task, run: Run) -> Answer:
        partial = Partial()
        while not partial.ended:
            [partial] = await self.extend(task, run, partial)
        return Answer.of(self.candidate(task, partial))


def test_on_the_embedded_engine_steps_join_to_the_answer_in_one_go() -> None:
    question = (
        "Tina has 35 beads. Tina loses 27 beads. Tina wins 45 more beads. How many beads does Tina have now?"
    )

    async def main() -> None:
        llm = sg.connect()
        whole = await sg.solve(question, sg.ChainOfThought(temperature=0.0), llm=llm)
        steps = await sg.solve(question, StepByStep(temperature=0.0), llm=llm)
        assert steps.text == whole.text.rstrip()
        assert len(steps.candidates[0].steps) > 1
        assert steps.usage.cached_tokens > 0.5 * steps.usage.prompt_tokens  # all but the newest step
        found = await sg.solve(question, sg.MCTS(simulations=2, width=2), llm=llm, seed=1)
        assert found.value is not None
        assert found.usage.cached_tokens > 0.5 * found.usage.prompt_tokens

    asyncio.run(main())


def lines(request: SimRequest) -> list[SimCompletion]:
    """The lines that are left of ``LINES``, of skewed lengths, numbered; and judgements of such."""
    *_, asked = request.prompt.split("<|user|>")
    if "yes or no" in asked:
        p = random.Random(request.prompt).uniform(0.1, 0.9)
        both = {"yes": math.log(p), " No": math.log(1 - p)}
        return [SimCompletion("yes", [both["yes"]], [both])] * request.n
    said = asked.partition("<|assistant|>")[2]
    made = []
    for index in range(request.n):
        rng = random.Random(f"{request.seed} {index} {said}")
        made.append(
            SimCompletion(
                "\n".join(
                    f"line {number}" + " word" * min(16, int(2 * rng.paretovariate(1.2)))
                    for number in range(said.count("\n"), LINES)
                )
            )
        )
    return made


@pytest.mark.parametrize("strategy", SEARCHES, ids=lambda s: s.kind)
def test_over_http_in_virtual_time(strategy: Stepwise, monkeypatch: pytest.MonkeyPatch) -> None:
    """No newline is lost or doubled, what is reported is what the server has counted, and no permit is idle while
    there is work."""
    module.forget()
    quick(monkeypatch)
    permits, batch = 2, 5

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with SimulatedServer(SimSettings(per_token=TICK), responder=lines) as server:
            async with aclosing(OpenAIBackend(server.url, model="sim", permits=permits)) as backend:
                await backend.capabilities()
                begun, before = loop.time(), server.totals()
                runs = [Run({POLICY: backend}, seed=number) for number in range(batch)]
                tasks = [Task.of(f"Question {number}?") for number in range(batch)]
                answers = await asyncio.gather(
                    *(execute(strategy, task, one) for task, one in zip(tasks, runs, strict=True))
                )
                wall, books = loop.time() - begun, server.totals()
            for answer in answers:
                heads = [line.split(" word")[0] for line in answer.text.split("\n")]
                assert heads == [f"line {number}" for number in range(LINES)]
            spent = sum((answer.usage for answer in answers), Usage())
            assert books.in_flight == 0
            assert spent.calls == books.billed - before.billed
            decoded = books.decoded - before.decoded
            assert spent.completion_tokens <= decoded <= spent.completion_tokens + spent.uncertain_tokens
            idle = 1 - decoded * TICK / (permits * wall)
            print(f"{strategy.kind}: {wall:.2f} s, {100 * idle:.1f} % idle, {books.cached_tokens} cached")
            assert idle < 0.05

    run(main())


def test_a_candidate_is_what_its_verifiers_and_readers_expect() -> None:
    partial = Partial("I add 2.\nThe answer is 3", "", 2, ended=True, finish="stop", token_count=9)
    made = sg.BeamSearch().candidate(Task.of("What is 1 + 2?"), partial)
    assert made == Candidate(
        partial.text,
        "3",
        "stop",
        9,
        0.0,
        prompt=sg.BeamSearch().prompt(Task.of("What is 1 + 2?")),  # type: ignore[arg-type]
    )
