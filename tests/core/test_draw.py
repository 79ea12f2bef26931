"""Samples of one request drawn one by one: the same texts, stopped one by one, watched while they grow."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from stratagem.core.asking import POLICY, Sampling
from stratagem.core.backend import Chunk
from stratagem.core.budget import Budget, Ledger
from stratagem.core.run import Run
from stratagem.core.task import Candidate, Task
from stratagem.core.trace import CallFinished, CompletionArrived
from stratagem.testing.loops import run
from stratagem.testing.toy import ToyModel

TASK = Task.of("How many apples are left?")
SHORT = Sampling(max_tokens=20)
LONG = {"": {"a": 0.5, "b": 0.5}} | {"a" + "." * k: {".": 1.0} for k in range(9)}


def of(toy: ToyModel, budget: Budget | None = None) -> Run:
    return Run({POLICY: toy}, ledger=Ledger(budget), seed=4)


def test_siblings_are_what_sample_draws_together() -> None:
    async def main() -> None:
        together = await of(ToyModel()).sample(TASK, 6, sampling=SHORT)
        apart = of(ToyModel())
        request = apart.request(TASK, 6, sampling=SHORT)
        pairs = [await apart.draw(replace(request.sibling(i), n=2), task=TASK) for i in (4, 0, 2)]
        drawn = [*pairs[1], *pairs[2], *pairs[0]]
        assert drawn == together
        assert len({c.text for c in drawn}) > 1
        assert (await apart.sample(TASK, 6, sampling=SHORT)) != together  # asked again, drawn again

    run(main())


def test_one_of_many_is_stopped_in_the_engine() -> None:
    async def main() -> None:
        async def pace(_: object) -> None:
            await asyncio.sleep(1)

        toy = ToyModel({"": {"w ": 1.0}, **{"w " * k: {"w ": 1.0} for k in range(1, 20)}}, pace=pace)
        outer = of(toy)
        request = outer.request(TASK, 3, sampling=SHORT)
        tasks = [asyncio.create_task(outer.draw(request.sibling(i))) for i in range(3)]
        await asyncio.sleep(5.5)
        tasks[1].cancel()
        await asyncio.wait(tasks)
        assert [t.cancelled() for t in tasks] == [False, True, False]
        assert (toy.books.aborted, toy.books.in_flight) == (1, 0)
        assert toy.books.usage.completion_tokens == 20 + 5 + 20
        assert outer.ledger.spent == toy.books.usage
        assert outer.ledger.idle

    run(main())


def test_pieces_join_to_the_text_and_the_trace_has_the_completions() -> None:
    async def main() -> None:
        outer = of(ToyModel())
        texts = ["", "", ""]
        ended: list[tuple[int, str]] = []

        def piece(index: int, chunk: Chunk) -> None:
            texts[index] += chunk.text

        async def then(index: int, candidate: Candidate) -> Candidate:
            ended.append((index, candidate.text))
            return candidate.scored(place=float(index))

        drawn = await outer.draw(outer.request(TASK, 3, sampling=SHORT), then=then, piece=piece)
        assert [c.text for c in drawn] == texts == [text for _, text in sorted(ended)]
        assert [c.scores for c in drawn] == [{"place": 0.0}, {"place": 1.0}, {"place": 2.0}]
        assert sorted(event.text for event in outer.trace.of(CompletionArrived)) == sorted(texts)
        assert len(outer.trace.of(CallFinished)) == 1

    run(main())


def test_what_a_piece_starts_waits_for_budget_without_holding_up_the_stream() -> None:
    """A judge that does not fit beside the stream is neither refused nor waited for: it follows the stream."""

    async def main() -> None:
        toy = ToyModel(LONG)
        prompt = toy.prompt_tokens(TASK)
        outer = of(toy, Budget(tokens=prompt + 20))
        judged: list[asyncio.Task[list[Candidate]]] = []

        def piece(_: int, chunk: Chunk) -> None:
            if not judged:
                short = Sampling(max_tokens=1)
                judged.append(asyncio.create_task(outer.sample("Right?", sampling=short)))

        [candidate] = await outer.draw(outer.request(TASK, sampling=SHORT), piece=piece)
        assert candidate.finish == "stop"
        [verdict] = await judged[0]
        assert verdict.text in ("a", "b")
        assert not outer.ledger.refused
        assert outer.ledger.spent == toy.books.usage

    run(main())
