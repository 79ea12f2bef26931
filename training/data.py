"""From training documents to batches of tensors.

A document and its probes become one row: the chat, then a branch for each probe. A branch sees the chat up to
the probe's place and itself, with positions that go on from there, which equals one document per probe at a
fraction of the cost.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from stratagem.bench.gym import Document
from stratagem.core.prompts import RESTART_QUESTION

PAD, END, ASSISTANT, USER = 0, 4, 3, 2
ROLES = {"system": 1, "user": USER, "assistant": ASSISTANT}
PROBE_WEIGHT = 6.0
"""Weight of a judge's answer against a token of a solution."""


@dataclass(slots=True)
class Row:
    """One document as numbers: for each token its position, branch (0: the chat) and how far it sees the chat.

    `learn`: (index, target, other, share): the state at `index` should give `target` with probability `share`
    and `other` with the rest. `marks`: (index, 1 or 0): whether the line is still right at that token.
    `said`: the tokens of solutions, right and wrong. `verdicts`: (index, 1 or 0): whether all lines that a question
    about a restart sees are right. `known`: of a kind that the model has learned before (`--anchor`).
    """

    ids: list[int]
    positions: list[int]
    branches: list[int]
    limits: list[int]
    learn: list[tuple[int, int, int, float, float]]
    marks: list[tuple[int, float]]
    said: list[int]
    verdicts: list[tuple[int, float]]
    known: bool = False


@dataclass(slots=True)
class Batch:
    """Tensors of one step. ids, positions, branches, limits: (rows, length)."""

    ids: Tensor
    positions: Tensor
    branches: Tensor
    limits: Tensor
    where: Tensor
    target: Tensor
    other: Tensor
    share: Tensor
    weight: Tensor
    marked: Tensor
    right: Tensor
    said: Tensor
    judged: Tensor
    verdict: Tensor
    known: Tensor

    @property
    def mask(self) -> Tensor:
        """Which tokens each may look at: (rows, 1, length, length). Far larger than what it follows from, so
        that it is made where it is needed."""
        index = torch.arange(self.ids.shape[1], device=self.ids.device)
        causal = index[None, :, None] >= index[None, None, :]
        same = self.branches[:, :, None] == self.branches[:, None, :]
        chat = (self.branches[:, None, :] == 0) & (index[None, None, :] < self.limits[:, :, None])
        return (causal & (same | chat))[:, None]

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


class Encoder:
    """Turns documents into rows with a tokenizer of the chat format."""

    def __init__(self, tokenizer: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        self._cache: dict[str, list[int]] = {}
        self.yes, self.no = (self.tokenizer.token_to_id(word) for word in ("yes", "no"))

    def _fixed(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return self._cache[text]

    def row(self, document: Document, known: bool = False) -> Row:
        """Encode a document. A probe within a token is put before that token."""
        ids: list[int] = []
        learn: list[tuple[int, int, int, float, float]] = []
        marks: list[tuple[int, float]] = []
        ends: list[int] = []
        start, content = 0, ""
        for message in document.messages:
            ids.append(ROLES[message.role])
            content = message.content
            encoding = self.tokenizer.encode(content, add_special_tokens=False)
            start, ends = len(ids), [end for _, end in encoding.offsets]
            for token in [*encoding.ids, END]:
                if message.loss:
                    learn.append((len(ids) - 1, token, token, 1.0, 1.0))
                ids.append(token)
        trunk = len(ids)
        said = list(range(start, trunk)) if document.messages[-1].role == "assistant" else []
        for mark in document.marks:
            marks += [
                (start + i, float(mark.right)) for i, end in enumerate(ends) if mark.start < end <= mark.stop
            ]
        positions, branches, limits = list(range(trunk)), [0] * trunk, [trunk] * trunk
        verdicts: list[tuple[int, float]] = []
        wrong_at = [mark.stop for mark in document.marks if not mark.right]
        for number, probe in enumerate(document.probes, 1):
            seen = start + sum(end <= probe.at for end in ends)
            instead: list[int] = []
            if probe.instead:
                wrong = self.tokenizer.encode(probe.instead, add_special_tokens=False)
                instead = wrong.ids
                right = content[probe.at :].split("\n")
                # Where the wrong line leaves every line that may still come.
                same = max(shared(line, probe.instead) for line in right)
                marks += [(len(ids) + i, 0.0) for i, (_, end) in enumerate(wrong.offsets) if end > same]
                same = shared(right[0], probe.instead)
                stop = probe.at + len(right[0])
                marks += [(start + i, 1.0) for i, end in enumerate(ends) if probe.at + same < end <= stop]
            said += range(len(ids) + 1, len(ids) + len(instead))  # the first one's past is not beside it
            branch = [*instead, END, USER, *self._fixed(probe.question), END, ASSISTANT]
            learn.append((len(ids) + len(branch) - 1, self.yes, self.no, probe.yes, PROBE_WEIGHT))
            if document.marks and probe.question == RESTART_QUESTION:
                verdicts.append((len(ids) + len(branch) - 1, float(all(probe.at < end for end in wrong_at))))
            ids += branch
            positions += range(seen, seen + len(branch))
            branches += [number] * len(branch)
            limits += [seen] * len(branch)
        return Row(ids, positions, branches, limits, learn, marks, said, verdicts, known)


def shared(a: str, b: str) -> int:
    """Characters that both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def collate(rows: list[Row]) -> Batch:
    """Pad rows to one length, a multiple of 8."""
    length = -(-max(len(row.ids) for row in rows) // 8) * 8
    ids, positions, branches, limits = (
        torch.tensor([getattr(row, name) + [fill] * (length - len(row.ids)) for row in rows])
        for name, fill in (("ids", PAD), ("positions", 0), ("branches", 0), ("limits", length))
    )
    learn = [(r * length + i, *rest) for r, row in enumerate(rows) for i, *rest in row.learn]
    where, target, other, share, weight = (torch.tensor(column) for column in zip(*learn, strict=True))
    marks = [(r * length + i, right) for r, row in enumerate(rows) for i, right in row.marks]
    marked, right = torch.tensor([i for i, _ in marks], dtype=torch.long), torch.tensor([y for _, y in marks])
    said = torch.tensor([r * length + i for r, row in enumerate(rows) for i in row.said], dtype=torch.long)
    verdicts = [(r * length + i, right) for r, row in enumerate(rows) for i, right in row.verdicts]
    judged = torch.tensor([i for i, _ in verdicts], dtype=torch.long)
    verdict = torch.tensor([y for _, y in verdicts])
    known = torch.tensor([row.known for row in rows])
    return Batch(
        ids,
        positions,
        branches,
        limits,
        where,
        target,
        other,
        share,
        weight,
        marked,
        right,
        said,
        judged,
        verdict,
        known,
    )


@dataclass(frozen=True)
class Source:
    """Which batches there are: pool k of documents follows from the seed and k alone.

    Batches have about `tokens` tokens, of rows of like length. `together` batches in turn are of like length:
    processes that take one each then wait little for each other.
    """

    stream: Callable[[random.Random], Iterator[tuple[Document, bool]]]
    """Documents without end, each with whether its kind is known."""
    encoder: Encoder
    seed: int
    tokens: int
    documents: int = 1024
    together: int = 1

    def pool(self, number: int) -> list[Batch]:
        """The batches of pool `number`."""
        rng = random.Random(f"{self.seed}/{number}")
        documents = itertools.islice(self.stream(rng), self.documents)
        rows = sorted((self.encoder.row(*each) for each in documents), key=lambda row: len(row.ids))
        groups: list[list[Row]] = [[]]
        for row in rows:
            if groups[-1] and len(row.ids) * (len(groups[-1]) + 1) > self.tokens:
                groups.append([])
            groups[-1].append(row)
        turns = [
            groups[i : i + self.together] for i in range(0, len(groups) - self.together + 1, self.together)
        ]
        rng.shuffle(turns)
        return [collate(group) for turn in turns for group in turn]


def batches(pool: Callable[[int], list[Batch]], skip: int = 0) -> Iterator[Batch]:
    """Those of pools 0, 1, ... without end; `skip` go unused (for a resume)."""
    every = (batch for number in itertools.count() for batch in pool(number))
    return itertools.islice(every, skip, None)
