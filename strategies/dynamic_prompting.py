"""Dynamic prompting: y ~ p(y | x, z_j) with prompt j = argmax_j mean_{t <= probe} log p(y_t | x, z_j, y_<t).

Source: choosing among prompts for each input, in the very pass that answers, is of Hoang et al. 2023 (arXiv
2310.00867). They choose among trained soft prompts by the attention that the input pays to each. A served model
gives neither, so these prompts are texts, and what is compared is how likely the model finds the beginning of its
own answer under each: the log-probability per token of the first ``probe`` tokens that it draws; a shorter answer
counts whole.

As in the source the choice costs no pass of its own: the answer is begun under all prompts at the same time, and
the chosen one goes on meanwhile. A prompt is out, and its answer stopped in the engine, the moment another has done
better. The mean per token keeps lengths comparable. The order of the prompts decides nothing: an answer's seed
follows from its prompt, and a tie goes to the prompt that is first in the alphabet.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from stratagem.core.backend import Chunk, TokenLogprob
from stratagem.core.component import parameter
from stratagem.core.concurrency import task_group
from stratagem.core.errors import BudgetExhausted
from stratagem.core.run import Run
from stratagem.core.task import Answer, Candidate, Task
from stratagem.strategies._confidence import logprobs_of, mean
from stratagem.strategies._sampler import Sampler


class DynamicPrompting(Sampler):
    """The prompt that the model is surest under. Cost: 1 completion, and the beginning of one per other prompt."""

    kind: ClassVar[str] = "dynamic_prompting"

    alternatives: tuple[Annotated[str, Field(min_length=1)], ...] = parameter(
        (
            "List what is given and what is asked, then solve it step by step.",
            "Work it out in short steps, check them, and end with the answer.",
        ),
        "Instructions to choose among, beside the first.",
    )
    probe: int = parameter(16, "Tokens by which prompts are compared.", ge=1, search=(4, 64))

    @model_validator(mode="after")
    def _prompts_differ(self) -> Self:
        if len(set(self._prompts)) < len(self._prompts):
            raise ValueError("the instruction and its alternatives are to differ")
        return self

    @property
    def _prompts(self) -> tuple[str, ...]:
        return (self.instruction, *self.alternatives)

    async def __call__(self, task: Task, run: Run) -> Answer:
        sampling = self.sampling(logprobs=await logprobs_of(run, self.kind, 0))
        begun: dict[str, list[TokenLogprob]] = {prompt: [] for prompt in self._prompts}
        scores: dict[str, float] = {}
        ended: dict[str, Candidate] = {}
        refused: list[BudgetExhausted] = []

        def leader() -> str:
            return min(scores, key=lambda prompt: (-scores[prompt], prompt))

        async def draw(prompt: str) -> None:
            def read(_: int, chunk: Chunk) -> None:
                begun[prompt].extend(chunk.tokens)
                if prompt in scores or (len(begun[prompt]) < self.probe and chunk.completion is None):
                    return
                logs = [token.logprob for token in begun[prompt][: self.probe]]
                scores[prompt] = mean(logs) if logs else -math.inf
                for beaten in scores.keys() - {leader()}:
                    if beaten != prompt or chunk.completion is None:  # one that has ended needs no stopping
                        drawing[beaten].cancel()

            request = run.request(task.ask(prompt), sampling=sampling)
            try:
                [candidate] = await run.draw(request, task=task, piece=read)
            except BudgetExhausted as error:
                refused.append(error)
                return
            ended[prompt] = candidate.scored(**{self.kind: scores[prompt]})
            if prompt == leader() or run.best is None:
                run.propose(Answer.of(ended[prompt]))

        async with task_group() as group:
            drawing = {prompt: group.create_task(draw(prompt)) for prompt in self._prompts}
        if not ended:
            raise refused[0]
        surest = min(
            ended, key=lambda prompt: (-scores[prompt], prompt)
        )  # the leader, unless the budget refused it
        return run.propose(Answer.of(ended[surest]))
