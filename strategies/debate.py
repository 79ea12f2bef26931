"""Debate: y_i^r ~ p(y | x, y_i^0, Y_i^0, ..., y_i^(r-1), Y_i^(r-1)), Y_i the others' answers; a vote in the end.

Source: Du et al. 2023 (arXiv 2305.14325). n agents answer alone; then each reads the others' latest answers and
answers again, in its own conversation; the last round votes. Three agents and two rounds are the paper's.

Chosen here: it ends when all agree, since then nobody reads a reason to change; and in the last round an agent is
not needed once those before it are a majority of all: it is stopped in the engine. Agents count in their own order,
so that the answer depends on no order of arrival. Confidence is the winner's share of all n agents.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from stratagem.core.agreement import classes
from stratagem.core.backend import Message
from stratagem.core.component import parameter
from stratagem.core.concurrency import task_group
from stratagem.core.errors import ContextLengthError
from stratagem.core.protocols import Verifier
from stratagem.core.run import Run
from stratagem.core.task import Answer, Candidate, Task
from stratagem.strategies._sampler import Sampler
from stratagem.strategies._voting import elect

Talk = tuple[Message, ...]


class Debate(Sampler):
    """Agents that read each other's answers, and vote. Cost: at most n (1 + rounds) completions."""

    kind: ClassVar[str] = "debate"

    n: int = parameter(3, "Agents.", ge=2, search=(2, 6))
    rounds: int = parameter(2, "Most rounds after the first answers.", ge=1, search=(1, 4))
    others: str = parameter(
        "These are the answers of others to the same question:", "Stands before them.", min_length=1
    )
    again: str = parameter(
        "Check them and your own answer against each other, then give your answer again with its reasoning.",
        "Stands after them.",
        min_length=1,
    )
    equality: Verifier | None = parameter(
        None, "Verifier whose equality groups answers; none: equal text (math: 1/2 = 0.5)."
    )

    async def __call__(self, task: Task, run: Run) -> Answer:
        seen: list[Candidate] = []

        async def count(candidate: Candidate) -> Candidate:
            seen.append(candidate)
            run.propose(await elect(seen, [0.0] * len(seen), None))
            return candidate

        prompt = tuple(self.prompt(task))
        said = await run.sample(prompt, self.n, sampling=self.sampling(), task=task, then=count)
        talks = [prompt] * len(said)
        for left in reversed(range(self.rounds)):
            run.propose(await elect(said, [0.0] * len(said), self.equality))
            if await self._most(said) == len(talks):
                break
            talks = [self._read(talk, said, i) for i, talk in enumerate(talks)]
            try:
                said = await self._round(task, run, talks, last=left == 0)
            except ContextLengthError:  # there is no room for what the others said
                break
        answer = await elect(said, [0.0] * len(said), self.equality)
        share = (answer.confidence or 0.0) * len(said) / len(talks)
        return run.propose(answer.model_copy(update={"confidence": share}))

    def _read(self, talk: Talk, said: Sequence[Candidate], agent: int) -> Talk:
        others = [f"Answer {i}:\n{c.text}" for i, c in enumerate(said, 1) if i != agent + 1]
        news = "\n\n".join((self.others, *others, self.again))
        return (*talk, Message("assistant", said[agent].text), Message("user", news))

    async def _round(self, task: Task, run: Run, talks: Sequence[Talk], *, last: bool) -> list[Candidate]:
        """The agents' next answers, in order; of the last round those that decide the vote."""

        async def answer(talk: Talk) -> Candidate:
            [candidate] = await run.sample(talk, sampling=self.sampling(), task=task)
            return candidate

        said: list[Candidate] = []
        async with task_group() as group:
            answering = [group.create_task(answer(talk)) for talk in talks]
            for one in answering:
                said.append(await one)
                if last and 2 * await self._most(said) > len(talks):
                    break
            for one in answering[len(said) :]:
                one.cancel()
        return said

    async def _most(self, said: Sequence[Candidate]) -> int:
        """Votes for the answer that has the most."""
        answers = [candidate.answer for candidate in said]
        if self.equality is None:
            groups = classes(answers, None)
        else:
            groups = await asyncio.to_thread(classes, answers, self.equality)
        return max(map(len, groups), default=0)
