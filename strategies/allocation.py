"""Allocation: of many tasks under one budget, the next sample goes to argmax_i g_i / c_i.

g_i is how much likelier one more sample makes a right answer to task i, c_i what a sample of it has cost on average
(tokens of prompts, samples and judgements). Every task gets one sample first. g_i follows from the verifier's
scores, or from the votes without one; with the verifier ``restart`` it is what the model itself says (see
``_spending`` for the three formulas). Sources: Damani et al. 2024 (arXiv 2410.04707) for the problem; Manvi et al.
2024 (2410.02725) for the self-evaluation.

No barrier: which task gets the next sample is decided whenever one arrives, with all permits at work. The k-th
sample of a task is that of best-of-n with the same seed; how many a task gets follows from the order of arrival,
which is fixed with ``parallel: 1`` alone. The budget is exact, being the ledger's; it stops earlier where no sample
is worth ``least``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar, Self

from pydantic import Field, model_validator

from stratagem.core.backend import Request
from stratagem.core.component import parameter
from stratagem.core.concurrency import task_group
from stratagem.core.errors import BudgetExhausted, StratagemError
from stratagem.core.protocols import Spreading, Verifier
from stratagem.core.run import Run
from stratagem.core.task import Answer, Candidate, Task
from stratagem.strategies._judging import best, judge
from stratagem.strategies._sampler import Sampler
from stratagem.strategies._spending import ByRestart, ByScore, ByVotes
from stratagem.strategies._voting import elect


class Allocation(Sampler, Spreading):
    """Samples where they pay, over all tasks of a batch. Cost: at most n completions of each, each judged."""

    kind: ClassVar[str] = "allocation"

    n: int = parameter(16, "Most samples of one task.", ge=1, search=(4, 64))
    least: float = parameter(
        0.02,
        "Gain in accuracy below which a sample is not worth its tokens.",
        ge=0.0,
        le=1.0,
        search=(0.0, 0.1),
    )
    parallel: int = parameter(16, "Most samples at a time, of all tasks.", ge=1)
    verifier: Verifier | None = Field(
        default_factory=lambda: Verifier.load("restart"),
        description="Scores the samples; none: the votes of a majority tell.",
    )

    @model_validator(mode="after")
    def _judges_one_by_one(self) -> Self:
        if self.verifier is not None and not self.verifier.pointwise:
            raise ValueError(
                f"{self.verifier.kind} compares candidates; this needs one that scores each alone"
            )
        return self

    async def __call__(self, task: Task, run: Run) -> Answer:
        errors = await self.spread([task], [run])
        if run.best is None or (errors and not isinstance(errors[0], BudgetExhausted)):
            raise errors[0]
        return run.best

    async def spread(self, tasks: Sequence[Task], runs: Sequence[Run]) -> dict[int, StratagemError]:
        kind = ByScore if self.verifier is None or self.verifier.kind != "restart" else ByRestart
        spending = (ByVotes if self.verifier is None else kind)(len(tasks), self.n, self.least)
        requests: list[Request] = [
            run.request(self.prompt(task), self.n, sampling=self.sampling())
            for task, run in zip(tasks, runs, strict=True)
        ]
        drawn: list[dict[int, Candidate]] = [{} for _ in tasks]
        begun = [0] * len(tasks)
        errors: dict[int, StratagemError] = {}

        async def settle(at: int) -> None:
            """Propose the best of what the task has."""
            seen = [drawn[at][k] for k in sorted(drawn[at])]
            if self.verifier is None:
                runs[at].propose(await elect(seen, [0.0] * len(seen), None))
            else:
                runs[at].propose(best(seen, self.verifier))

        async def draw(at: int, index: int) -> None:
            task, run = tasks[at], runs[at]

            async def rate(_: int, candidate: Candidate) -> Candidate:
                if run.best is None:
                    run.propose(Answer.of(candidate))  # unjudged is better than none, should the time run out
                if self.verifier is None:
                    return candidate
                return (await judge(run, self.verifier, task, [candidate]))[0]

            try:
                [candidate] = await run.draw(requests[at].sibling(index), task=task, then=rate)
            except StratagemError as error:
                errors.setdefault(at, error)
                spending.close(at)  # another's prompt may still fit
                return
            drawn[at][index] = candidate
            if isinstance(spending, ByVotes):
                spending.vote(at, None if candidate.answer is None else candidate.answer.strip())
            else:
                spending.score(at, candidate.scores.get(self.verifier.kind) if self.verifier else None)
            spending.came(at, run.ledger.spent.tokens)
            await settle(at)

        running: set[asyncio.Task[None]] = set()
        async with task_group() as group:
            while True:
                while len(running) < self.parallel and (at := spending.ask()) is not None:
                    running.add(group.create_task(draw(at, begun[at])))
                    begun[at] += 1
                if not running:
                    break
                _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        return errors
