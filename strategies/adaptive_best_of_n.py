"""Adaptive best-of-N: y_k ~ p(y | x) at temperature T (1 - 2^-(k-1)) until s(x, y_k) >= tau; argmax_k s(x, y_k).

Source: Manvi, Singh, Ermon 2024 (arXiv 2410.02725). s is a verifier in [0, 1], by default their self-evaluation by
one token (``restart``). The paper does not print its schedule; this one is greedy first, then ever nearer to T.

Latency is bounded by drawing ahead: no more samples run at a time than have been rejected, so that samples of equal
length come as 1, 1, 2, 4, 8. What counts is the first sample, in the order of k, that reaches tau: later ones are
stopped in the engine at once, earlier ones are waited for. So the answer depends on no order of arrival.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from stratagem.core.asking import Sampling
from stratagem.core.component import parameter
from stratagem.core.concurrency import task_group
from stratagem.core.errors import BudgetExhausted
from stratagem.core.protocols import Verifier
from stratagem.core.run import Run
from stratagem.core.task import Answer, Candidate, Task
from stratagem.strategies._judging import best, judge
from stratagem.strategies._sampler import Sampler


class AdaptiveBestOfN(Sampler):
    """Samples until one is good enough by a verifier. Cost: 1 to n completions, each judged."""

    kind: ClassVar[str] = "adaptive_best_of_n"

    n: int = parameter(16, "Most samples.", ge=1, search=(1, 64))
    tau: float = parameter(
        0.95,
        "Score that is good enough; above 1: always n samples. See: stratagem calibrate.",
        ge=0.0,
        search=(0.5, 1.0),
    )
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = parameter(
        1.0, "What the temperature rises to; none: the model's own default.", search=(0.4, 1.2)
    )
    parallel: int = parameter(8, "Most samples at a time; 1: one after the other.", ge=1)
    verifier: Verifier = Field(
        default_factory=lambda: Verifier.load("restart"), description="Scores the samples."
    )

    @model_validator(mode="after")
    def _judges_one_by_one(self) -> Self:
        if not self.verifier.pointwise:
            raise ValueError(
                f"{self.verifier.kind} compares candidates; this needs one that scores each alone"
            )
        return self

    async def __call__(self, task: Task, run: Run) -> Answer:
        prompt = self.prompt(task)
        most = self.temperature
        if most is None:
            most = (await run.model().capabilities()).temperature or 1.0
        seen: list[Candidate] = []
        drawn: dict[int, Candidate] = {}
        drawing: list[asyncio.Task[None]] = []
        refused: list[BudgetExhausted] = []

        async def rate(candidate: Candidate) -> Candidate:
            if run.best is None:
                run.propose(Answer.of(candidate))  # unjudged is better than none, should the time run out
            try:
                [candidate] = await judge(run, self.verifier, task, [candidate])
            except BudgetExhausted as error:  # what cannot be judged cannot win: no more is drawn
                refused.append(error)
            seen.append(candidate)
            run.propose(best(seen, self.verifier))
            return candidate

        async def draw(index: int) -> None:
            sampling = Sampling(most * (1 - 2.0**-index), self.top_p, self.max_tokens)
            try:
                [drawn[index]] = await run.sample(prompt, sampling=sampling, task=task, then=rate)
            except BudgetExhausted as error:
                refused.append(error)

        async with task_group() as group:
            while True:
                good = [i for i, c in drawn.items() if c.scores.get(self.verifier.kind, -1.0) >= self.tau]
                wanted = min(good) + 1 if good else self.n
                for late in drawing[wanted:]:
                    late.cancel()
                running = [one for one in drawing[:wanted] if not one.done()]
                width = min(self.parallel, max(1, len(drawn)))
                while len(running) < width and len(drawing) < wanted and not refused:
                    running.append(group.create_task(draw(len(drawing))))
                    drawing.append(running[-1])
                if not running:
                    break
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        counted = [drawn[i] for i in sorted(drawn) if i < wanted]
        if not counted:
            raise refused[0]
        return run.propose(best(counted, self.verifier))
