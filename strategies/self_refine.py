"""Self-refine: y_{t+1} ~ p(y | x, y_0, f_0, ..., y_t, f_t) with feedback f_t ~ p(f | x, y_0, f_0, ..., y_t).

Source: Madaan et al. 2023 (arXiv 2303.17651). One model answers, criticises and refines in one conversation that
only grows, so that the server's prefix cache holds all but the newest turn. It stops at feedback that says "No
error", as in Bag of Tricks (2502.07191), at feedback that says nothing, and after ``rounds``. The prompts are ours:
the paper's are few-shot and made for its tasks. The answer is the last version that states one.
"""

from __future__ import annotations

from typing import ClassVar

from stratagem.core.backend import Message
from stratagem.core.component import parameter
from stratagem.core.errors import ContextLengthError
from stratagem.core.run import Run
from stratagem.core.task import Answer, Task
from stratagem.strategies._refining import latest, objects
from stratagem.strategies._sampler import Sampler


class SelfRefine(Sampler):
    """One answer, criticised and rewritten by its own author. Cost: at most 1 + 2 rounds completions."""

    kind: ClassVar[str] = "self_refine"

    rounds: int = parameter(3, "Most rounds of feedback.", ge=1, search=(1, 5))
    feedback: str = parameter(
        "What is wrong with this answer? Name the first error, or reply: No error.",
        "Asks for feedback after an answer.",
        min_length=1,
    )
    refine: str = parameter(
        "Give the whole answer again without that error.", "Asks for a better answer.", min_length=1
    )
    no_error: str = parameter("No error", "Feedback with these words ends it.", min_length=1)

    async def __call__(self, task: Task, run: Run) -> Answer:
        sampling = self.sampling()
        talk = tuple(self.prompt(task))
        versions = await run.sample(talk, sampling=sampling, task=task)
        for _ in range(self.rounds):
            run.propose(latest(versions))
            talk += (Message("assistant", versions[-1].text), Message("user", self.feedback))
            try:
                [words] = await run.sample(talk, sampling=sampling)
                if not objects(words.text, self.no_error):
                    break
                talk += (Message("assistant", words.text), Message("user", self.refine))
                versions += await run.sample(talk, sampling=sampling, task=task)
            except ContextLengthError:  # there is no room for another round
                break
        return run.propose(latest(versions))
