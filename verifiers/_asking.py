"""Yes/no questions to a model about a response, read off the first token of its answer.

The question is a user turn after the (partial) response, so that everything before it is shared with the
generation in the server's prefix cache, and one token answers it.
"""

from __future__ import annotations

from stratagem.core.asking import JUDGE
from stratagem.core.backend import Message
from stratagem.core.errors import UnsupportedError
from stratagem.core.run import Run
from stratagem.core.task import Candidate, Task


async def checked(run: Run) -> None:
    """Raises UnsupportedError where the judge gives no log-probabilities, which its verdicts are read off."""
    caps = await run.model(JUDGE).capabilities()
    if caps.logprobs < 1 and not caps.prompt_logprobs and not caps.reward:  # that one says itself what it is
        raise UnsupportedError(
            f"{caps.model} gives no log-probabilities.", remedy="Use a backend that does, as the judge."
        )


async def probability(
    run: Run, task: Task, candidate: Candidate, response: str, question: str, answer: str, other: str
) -> float:
    """P(answer) / (P(answer) + P(other)) as the next word after ``question`` about ``response``."""
    prompt = candidate.prompt or task.messages
    messages = (*prompt, Message("assistant", response), Message("user", question))
    return (await run.choose(messages, (answer, other), role=JUDGE))[answer]
