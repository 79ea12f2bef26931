"""Direct: y ~ p(y | x), the answer without worked steps. The baseline."""

from __future__ import annotations

from typing import ClassVar

from stratagem.core.component import parameter
from stratagem.core.prompts import ANSWER_ONLY
from stratagem.core.run import Run
from stratagem.core.task import Answer, Task
from stratagem.strategies._sampler import Sampler


class Direct(Sampler):
    """One completion, asked for the answer alone. Cost: 1 call."""

    kind: ClassVar[str] = "direct"

    instruction: str = parameter(ANSWER_ONLY, "Stands after the question.")

    async def __call__(self, task: Task, run: Run) -> Answer:
        [candidate] = await run.sample(self.prompt(task), sampling=self.sampling(), task=task)
        return run.propose(Answer.of(candidate))
