"""What a proposer would have saved: outputs that are known are decoded once more, with its drafts, by no engine.

With greedy decoding, and when sampling too (a certain draft token x is accepted with its probability p(x), by which
it is drawn without speculation too), a draft is accepted as far as it agrees with the output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from stratagem.backends.vllm.speculative.proposer import Context, Proposer


@dataclass(frozen=True, slots=True)
class Spoken:
    """A prompt and what was decoded after it; ``tops``: where known, the likeliest tokens at each place of it."""

    prompt: Sequence[int]
    output: Sequence[int]
    tops: Sequence[Sequence[int]] = ()


@dataclass(frozen=True, slots=True)
class Simulated:
    """Counts over all decoding steps; the step of the prompt, which gives the first token, is none."""

    steps: int = 0
    tokens: int = 0  # decoded in these steps
    drafted: int = 0
    accepted: int = 0

    @property
    def per_step(self) -> float:
        """Accepted draft tokens per step."""
        return self.accepted / self.steps if self.steps else 0.0


@dataclass(slots=True, eq=False)
class _Running:
    spoken: Spoken
    context: Context
    at: int = 0  # output tokens decoded
    draft: list[int] = field(default_factory=list[int])


def simulate(
    proposer: Proposer,
    sequences: Iterable[Spoken],
    *,
    limit: int = 4,
    concurrency: int = 1,
    floor: float = 0.0,
) -> Simulated:
    """Decode all sequences, in order, ``concurrency`` at a time, with drafts of at most ``limit`` tokens.

    ``floor``: see :meth:`~stratagem.backends.vllm.speculative.tree.Tree.best`.
    """
    waiting = iter([each for each in sequences if each.output])
    running: list[_Running] = []
    steps = tokens = drafted = accepted = 0
    while True:
        while len(running) < concurrency and (spoken := next(waiting, None)) is not None:
            running.append(_Running(spoken, Context(spoken.prompt)))
            proposer.start(running[-1].context)
        if not running:
            return Simulated(steps, tokens, drafted, accepted)
        for each in running:
            held = 0
            if each.at:
                rest = each.spoken.output[each.at :]
                while held < min(len(each.draft), len(rest)) and each.draft[held] == rest[held]:
                    held += 1
                steps += 1
                drafted += len(each.draft)
                accepted += held
                tokens += min(held + 1, len(rest))
            _advance(proposer, each, held + 1)
        for each in running:
            if each.at >= len(each.spoken.output):
                proposer.stop(each.context)
        running = [each for each in running if each.at < len(each.spoken.output)]
        for each in running:
            each.draft = proposer.propose(each.context, limit).best(limit, floor)


def _advance(proposer: Proposer, each: _Running, count: int) -> None:
    end = min(each.at + count, len(each.spoken.output))
    before = each.context.last(1)
    decoded = list(each.spoken.output[each.at : end])
    inputs = [*before, *decoded[:-1]] if before else decoded[:0]
    tops = list(zip(inputs, each.spoken.tops[each.at : end], strict=bool(each.spoken.tops and before)))
    each.context.extend(decoded)
    each.at = end
    proposer.learn(each.context, decoded, tops)
