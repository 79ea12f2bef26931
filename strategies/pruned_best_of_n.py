"""Pruned best-of-N: argmax_i s(x, y_i) over the samples that are left of n after pruning by s(x, y_i[:c]).

At checkpoint j, c_j lines or tokens into the answers, the best max(least, ceil(keep * m)) of the m samples that are
left stay; with ``every``, at each so many, those that are at most ``margin`` below the best. The others are stopped
in the engine. With ``explore`` T a sample stays with probability proportional to exp(s / (T 2^-j)).
Source: Manvi, Singh, Ermon 2024 (arXiv 2410.02725); it prints neither checkpoints nor shares. Chosen here: lines,
at whose ends the shipped judges were trained; a quarter after the first, and of those after the second, but two:
with one the verdict on whole answers, which knows more, would decide nothing.

Each sample is a stream of its own, which goes on while it is judged: its text is the one that best-of-n draws
with the same seed, no prefix is sent again, no sample waits for a judge or for another sample. The price is what a
sample decodes until its verdict has come. Who stays depends on the scores alone and on no order of arrival (see
``_race``); a sample that has ended stays in the race with its final score.
"""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import pairwise
from typing import ClassVar, Self

from pydantic import Field, model_validator

from stratagem.core.backend import Chunk
from stratagem.core.component import parameter
from stratagem.core.concurrency import task_group
from stratagem.core.errors import BudgetExhausted, UnsupportedError
from stratagem.core.protocols import Verifier
from stratagem.core.run import Run
from stratagem.core.seeds import derive
from stratagem.core.task import Answer, Candidate, Task
from stratagem.strategies._judging import best, judge
from stratagem.strategies._prefixes import Prefixes, Unit
from stratagem.strategies._race import Race, Rule, gumbel
from stratagem.strategies._sampler import Sampler


class PrunedBestOfN(Sampler):
    """Best of n that stops weak samples on the way. Cost: part of n completions, and a judgement per checkpoint."""

    kind: ClassVar[str] = "pruned_best_of_n"

    n: int = parameter(16, "Samples that are begun.", ge=1, search=(2, 64))
    verifier: Verifier = Field(
        default_factory=lambda: Verifier.load("restart"), description="Scores answers, also partial ones."
    )
    unit: Unit = parameter("line", "What checkpoints count; token needs log-probabilities.")
    checkpoints: tuple[int, ...] = parameter((1, 2), "Where the best stay, counted from the start.")
    keep: float = parameter(0.25, "Share that stays at a checkpoint.", gt=0.0, le=1.0, search=(0.2, 0.8))
    least: int = parameter(2, "And how many stay at least.", ge=1)
    every: int | None = parameter(
        None, "Instead of checkpoints: compare with the best at each so many.", ge=1
    )
    margin: float = parameter(
        0.3, "With every: how far below the best a sample stays.", ge=0.0, search=(0.05, 0.6)
    )
    explore: float = parameter(0.0, "Temperature of staying by chance, halved at each checkpoint.", ge=0.0)

    @model_validator(mode="after")
    def _can_prune(self) -> Self:
        if not self.verifier.pointwise:
            raise ValueError(
                f"{self.verifier.kind} compares candidates; this needs one that scores each alone"
            )
        if self.every is None and not self.checkpoints:
            raise ValueError("give at least one of checkpoints, or every")
        if any(b <= a for a, b in pairwise((0, *self.checkpoints))):
            raise ValueError("checkpoints are at least 1 and ascend")
        return self

    async def __call__(self, task: Task, run: Run) -> Answer:
        logprobs = None
        if self.unit == "token":
            logprobs = 0
            if (able := await run.model().capabilities()).logprobs < 0:
                raise UnsupportedError(
                    f"{able.model} gives no log-probabilities, by which tokens are counted.",
                    remedy="Use unit: line.",
                )
        request = run.request(self.prompt(task), self.n, sampling=self.sampling(logprobs=logprobs))
        race = Race(self.n, lambda _: Rule(1, self.margin))
        if self.every is None:
            race = Race.of_shares(self.n, self.keep, len(self.checkpoints), self.least)
        ended: dict[int, Candidate] = {}
        refused: list[BudgetExhausted] = []
        drawing: list[asyncio.Task[None]] = []

        def score(candidate: Candidate, index: int, checkpoint: int) -> float:
            noise = gumbel(derive(request.seed, index, checkpoint)) if self.explore else 0.0
            return candidate.scores.get(self.verifier.kind, -1.0) + self.explore * 2.0**-checkpoint * noise

        def prune() -> None:
            for index in race.out:
                drawing[index].cancel()  # not its judgements at earlier checkpoints: they place the others

        def left() -> list[Candidate]:
            return [ended[i] for i in sorted(ended.keys() - race.out)]

        async def look(index: int, checkpoint: int, text: str) -> None:
            begun = Candidate(text, finish="length", prompt=request.messages)
            try:
                [begun] = await judge(run, self.verifier, task, [begun])
            except BudgetExhausted:  # nobody is out for want of a judgement
                return
            if run.best is None:
                run.propose(Answer.of(begun))  # half an answer is better than none, should the time run out
            race.reached(index, checkpoint, score(begun, index, checkpoint))
            prune()

        async def draw(index: int) -> None:
            prefixes = Prefixes(self.unit, self._place)

            def read(_: int, chunk: Chunk) -> None:
                for checkpoint, text in prefixes.add(chunk):
                    group.create_task(look(index, checkpoint, text))

            async def end(_: int, candidate: Candidate) -> Candidate:
                if not ended:
                    run.propose(Answer.of(candidate))  # unjudged, but whole
                ended[index] = candidate
                [ended[index]] = await judge(run, self.verifier, task, [candidate])
                race.ended(index, prefixes.reached, partial(score, ended[index], index))
                prune()
                if there := left():
                    run.propose(best(there, self.verifier))
                return ended[index]

            try:
                await run.draw(request.sibling(index), task=task, then=end, piece=read)
            except BudgetExhausted as error:
                refused.append(error)
                race.absent(index)
                prune()

        async with task_group() as group:
            drawing += [group.create_task(draw(index)) for index in range(self.n)]
        if not ended:
            raise refused[0]
        return run.propose(best(left() or list(ended.values()), self.verifier))

    def _place(self, checkpoint: int) -> int | None:
        if self.every is not None:
            return self.every * (checkpoint + 1)
        return self.checkpoints[checkpoint] if checkpoint < len(self.checkpoints) else None
