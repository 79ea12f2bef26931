"""A model as judge: P(yes) of one token, or a grade that it writes.

Source: Zheng et al. 2023 (arXiv 2306.05685), single-answer grading; the probability of the verdict token as score
is G-Eval's (Liu et al. 2023, 2303.16634).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, Literal

from stratagem.core.asking import JUDGE, Sampling
from stratagem.core.backend import Message
from stratagem.core.component import parameter
from stratagem.core.protocols import Verdict, Verifier
from stratagem.core.run import Run
from stratagem.core.task import Candidate, Task
from stratagem.verifiers._asking import checked, probability

_NUMBER = re.compile(r"(?<![\w.,])-?\d{1,6}(?:\.\d{1,6})?(?![\w,]|\.\d)")
_REMARK = re.compile(r"\([^()]*\)")


class Judge(Verifier):
    """A model judges the whole answer: by one token's probability, or by a grade out of ``scale``."""

    kind: ClassVar[str] = "judge"

    mode: Literal["probability", "grade"] = parameter("probability", "Read a token, or let it write a grade.")
    question: str = parameter("", "Asked after the answer; empty: the standard question of the mode.")
    scale: int = parameter(10, "The best grade.", ge=1, le=1000)
    max_tokens: int = parameter(256, "Longest text around a grade, in tokens.", ge=1)

    async def check(self, run: Run) -> None:
        """Raises UnsupportedError where a probability is asked of a judge that gives no log-probabilities."""
        if self.mode == "probability":
            await checked(run)

    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        async def judged(candidate: Candidate) -> Verdict:
            if self.mode == "grade":
                return await self._grade(task, candidate, run)
            question = self.question or "Is this answer right? Answer yes or no."
            return Verdict(await probability(run, task, candidate, candidate.text, question, "yes", "no"))

        return await run.map(judged, candidates)

    async def _grade(self, task: Task, candidate: Candidate, run: Run) -> Verdict:
        question = self.question or (
            f"How good is this answer, from 0 (wrong) to {self.scale} (right)? End with the grade alone."
        )
        prompt = candidate.prompt or task.messages
        messages = (*prompt, Message("assistant", candidate.text), Message("user", question))
        sampling = Sampling(temperature=0.0, max_tokens=self.max_tokens)
        [reply] = await run.sample(messages, sampling=sampling, role=JUDGE)
        grade = self._read(reply.text)
        if grade is None:
            return Verdict(None, f"no grade from 0 to {self.scale} in {reply.text[:80]!r}")
        return Verdict(grade / self.scale, reply.text)

    def _read(self, reply: str) -> float | None:
        """The last number that is not said to be the scale: a remark in brackets counts where there is no other."""
        scale = rf"(?:/|\b(?:out )?of(?: 0 to)?|\b0 ?(?:-|–|to))\s*{self.scale}(?:\.0+)?(?![\w.]\w)"  # noqa: RUF001
        without = re.sub(scale, " ", reply)
        numbers = _NUMBER.findall(_REMARK.sub(" ", without)) or _NUMBER.findall(without)
        grade = float(numbers[-1]) if numbers else -1.0
        return grade if 0 <= grade <= self.scale else None
