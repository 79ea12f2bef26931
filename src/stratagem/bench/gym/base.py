"""What a gym skill is: problems with known answers, a grader of worked steps, and training documents."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

Split = Literal["train", "dev", "test", "hard"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test", "hard")


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a worked solution. `needs` are indices, into `steps + extras`, of what it builds on."""

    text: str
    needs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """A question whose answer and worked steps are known.

    `steps` lead to the answer, in an order in which each stands after what it needs. `extras` are further
    true steps that the answer does not need. `needs` are the steps that the answer line builds on.
    """

    id: str
    question: str
    answer: str
    steps: tuple[Step, ...]
    split: Split
    needs: tuple[int, ...] = ()
    extras: tuple[Step, ...] = ()
    meta: Mapping[str, object] = field(default_factory=dict[str, object])

    @property
    def solution(self) -> str:
        """The worked solution: a step a line, then the answer line."""
        return "\n".join([*(step.text for step in self.steps), answer_line(self.answer)])


@dataclass(frozen=True, slots=True)
class Grade:
    """`correct`: the final answer is right. `lines` and `right`: the non-empty lines, and whether each holds."""

    correct: bool
    answer: str | None
    lines: tuple[str, ...]
    right: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Message:
    """A chat message of a training document; `loss` says whether its tokens are learned."""

    role: Literal["system", "user", "assistant"]
    content: str
    loss: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """A yes/no question put after the first `at` characters of the last message and `instead`, and its answer.

    It stands for the document `[*messages, the last one cut at `at` and continued by `instead`, user: question,
    assistant: yes | no]`: many probes of one solution share its tokens in training. `yes` is the probability
    of "yes" (1 or 0 for a hard label).
    """

    at: int
    question: str
    yes: float
    instead: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """Characters `start` to `stop` of the last message: `right` if a right line may still begin like this."""

    start: int
    stop: int
    right: bool


@dataclass(frozen=True, slots=True)
class Document:
    """A chat to train on, the probes that branch off its last message, and where that is right and wrong."""

    messages: tuple[Message, ...]
    probes: tuple[Probe, ...] = ()
    marks: tuple[Mark, ...] = ()


@runtime_checkable
class Skill(Protocol):
    """A generator of problems that can be checked without a model."""

    @property
    def name(self) -> str:
        """What it is registered and asked for by."""
        ...

    def problem(self, split: Split, index: int) -> Problem:
        """The `index`-th problem of a split: a function of (skill, split, index) alone."""
        ...

    def grade(self, problem: Problem, text: str) -> Grade:
        """Check a solution. A line is right if it follows from the problem and the right lines above it."""
        ...

    def documents(self, rng: random.Random) -> Iterator[Document]:
        """Training documents without end, from the train split only."""
        ...


def answer_line(answer: str) -> str:
    """The last line of every solution."""
    return f"The answer is {answer}."


def seeded(*key: object) -> random.Random:
    """A generator that depends on the key alone, on every platform and in every process."""
    text = "/".join(str(part) for part in key)
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


def partition(question: str) -> Split:
    """The split a question belongs to, by its hash: so that no question can be in two splits."""
    bucket = hashlib.sha256(question.encode()).digest()[0] % 16
    return ("test", "dev", "hard")[bucket] if bucket < 3 else "train"
