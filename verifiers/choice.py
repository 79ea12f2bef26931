"""Multiple choice: the answer is one of the task's options, by letter or by text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from stratagem.core.component import parameter
from stratagem.core.protocols import Verdict, Verifier
from stratagem.core.run import Run
from stratagem.core.task import Candidate, Task
from stratagem.verifiers.exact import normal

_LETTER = re.compile(r"\(?([a-z])\)?[.:)]?")


def option(answer: str, choices: Sequence[str]) -> str:
    """The option that an answer names, by its text or its letter; the normalised answer if it names none."""
    text = normal(answer)
    for choice in choices:
        if normal(choice) == text:
            return normal(choice)
    letter = _LETTER.fullmatch(text)
    if letter is None:
        return text
    index = ord(letter[1]) - ord("a")
    return normal(choices[index]) if index < len(choices) else letter[1]


class Choice(Verifier):
    """1 if the answer names the reference option; without a reference, if it names any option at all."""

    kind: ClassVar[str] = "choice"

    reference: str | None = parameter(None, "The right option, by letter or by text.")

    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        allowed = {normal(choice) for choice in task.choices}
        if self.reference is not None:
            allowed = {option(self.reference, task.choices)}
        elif not allowed:
            return [Verdict(None, "the task has no choices")] * len(candidates)
        return [
            Verdict(float(c.answer is not None and option(c.answer, task.choices) in allowed))
            for c in candidates
        ]

    def equivalent(self, a: str, b: str) -> bool:
        return option(a, ()) == option(b, ())
