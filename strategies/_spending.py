"""Which of many tasks gets the next sample: the one with the greatest predicted gain per token. Nothing in here
waits.

Source of the problem: Damani et al. 2024 (arXiv 2410.04707), who learn the gain and divide all samples beforehand.
Here it is predicted from what has come back so far, and the next sample is decided when one arrives. In each rule m
samples of the task are under way, and are taken to turn out so that the next is worth least.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

from stratagem.strategies._stopping import beta


@dataclass(slots=True)
class _Share:
    """What one task has got."""

    begun: int = 0
    back: int = 0
    tokens: float = 0.0  # of all that is back
    worth: float = 0.0  # gain per token of one sample more
    open: bool = True


class Spending(ABC):
    """Ask for the task that gets the next sample; tell what each has given.

    Args:
        tasks: how many there are.
        most: samples of one task.
        least: gain, a probability, below which a sample is not worth its tokens.
    """

    def __init__(self, tasks: int, most: int, least: float) -> None:
        self._shares = [_Share() for _ in range(tasks)]
        self._most, self._least = most, least
        self._first = 0  # all tasks before this one have had a sample begun

    def ask(self) -> int | None:
        """The task that gets a sample, which counts as under way from now on; ``None``: none, as things stand."""
        while self._first < len(self._shares):
            self._first += 1
            if self._shares[self._first - 1].open:
                return self._begin(self._first - 1)
        best = max(range(len(self._shares)), key=lambda i: (self._shares[i].worth, -i), default=None)
        return None if best is None or self._shares[best].worth <= 0 else self._begin(best)

    def _begin(self, task: int) -> int:
        self._shares[task].begun += 1
        self._weigh(task)
        return task

    def came(self, task: int, tokens: float) -> None:
        """A sample is back and known to the rule; ``tokens`` is all that the task has spent."""
        share = self._shares[task]
        share.back, share.tokens = share.back + 1, tokens
        self._weigh(task)

    def close(self, task: int) -> None:
        """The task gets no more."""
        share = self._shares[task]
        share.open, share.worth = False, 0.0

    def _weigh(self, task: int) -> None:
        share = self._shares[task]
        share.worth = 0.0
        if share.open and share.back and share.begun < self._most:
            gain = self.gain(task, share.begun - share.back)
            if gain >= self._least:
                share.worth = gain / max(1.0, share.tokens / share.back)

    @abstractmethod
    def gain(self, task: int, under_way: int) -> float:
        """How much likelier one more sample makes it that the task's answer is right."""


class ByScore(Spending):
    """By a verifier that says how likely a sample is right: (1 - max s) l (1 - l)^m.

    That the best so far is wrong, those under way too, and one more right. l, the task's rate of right samples, is
    the mean of its scores and of ``PRIOR`` more that have the mean score of all tasks.
    """

    PRIOR: ClassVar[float] = 2.0

    def __init__(self, tasks: int, most: int, least: float) -> None:
        super().__init__(tasks, most, least)
        self._scores: list[list[float]] = [[] for _ in range(tasks)]
        self._sum, self._count = 0.0, 0

    def score(self, task: int, score: float | None) -> None:
        """What the verifier says of a sample; ``None``: nothing: no hope for this task, no word on the others."""
        self._scores[task].append(score or 0.0)
        if score is not None:
            self._sum, self._count = self._sum + score, self._count + 1

    def gain(self, task: int, under_way: int) -> float:
        scores = self._scores[task]
        mean = self._sum / max(1, self._count)
        rate = (self.PRIOR * mean + sum(scores)) / (self.PRIOR + len(scores))
        return (1 - max(scores, default=0.0)) * rate * (1 - rate) ** under_way


class ByRestart(ByScore):
    """By the self-evaluation s = P(a fresh sample would not do better), which says the gain itself:
    (1 - max s) max s^m. Where all samples fail it is as small as where all succeed."""

    def gain(self, task: int, under_way: int) -> float:
        best = max(self._scores[task], default=0.0)
        return (1 - best) * best**under_way


@dataclass(slots=True)
class _Poll:
    votes: Counter[str] = field(default_factory=Counter)
    silent: int = 0


class ByVotes(Spending):
    """By votes: P(the leader is not the likeliest answer) q^2, q = (v_2 + 1) / (k + 2).

    The first factor is P(Beta(v_1 + m + 1, v_2 + 1) < 1/2). v_1, v_2 are the votes of the first and of its nearest
    rival, k + 2 all votes, those under way, and one each for the two before the first sample. q is the chance that
    the sample votes for the rival and, if an answer is as likely right as it is often given, that the rival is
    right. Where every sample says something else, it soon is nothing.
    """

    def __init__(self, tasks: int, most: int, least: float) -> None:
        super().__init__(tasks, most, least)
        self._polls = [_Poll() for _ in range(tasks)]

    def vote(self, task: int, answer: str | None) -> None:
        """The answer of a sample, in the wording that equal ones share; ``None``: it has none."""
        if answer is None:
            self._polls[task].silent += 1
        else:
            self._polls[task].votes[answer] += 1

    def gain(self, task: int, under_way: int) -> float:
        poll = self._polls[task]
        ranked = [*sorted(poll.votes.values(), reverse=True)[:2], 0, 0]
        first, second = ranked[0] + under_way, ranked[1]
        every = poll.votes.total() + poll.silent + under_way
        return (1 - beta((first, second))) * ((second + 1) / (every + 2)) ** 2
