"""The decoder on the shipped, trained weights and real problems: near to the exact logits, as transformers is,
and to itself in every batch.

Trained logits are far larger than those of the random model of the other tests, and rounding in float32 grows with
them. So the yardstick is measured here: how far transformers' own float32 is from its float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stratagem.backends.embedded.backend import MINI
from stratagem.backends.embedded.forward import Chunk, Model
from stratagem.backends.embedded.sampling import log_softmax
from stratagem.backends.embedded.tokenizer import Tokenizer
from stratagem.bench.gym import skill
from stratagem.core.prompts import STEP_QUESTION

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@dataclass
class Known:
    """Conversations, with the logits of every position."""

    tokens: list[list[int]]
    exact: list[NDArray[np.float64]]
    engine: list[NDArray[np.float32]]  # each conversation alone, in one piece
    rounding: float  # the most that transformers' float32 is off the exact logits

    @property
    def greatest(self) -> float:
        """Of the logits, by size."""
        return max(float(np.abs(logits).max()) for logits in self.exact)


def apart(some: list[Any], others: list[Any]) -> float:
    return max(float(np.abs(a - b).max(initial=0.0)) for a, b in zip(some, others, strict=True))


@pytest.fixture(scope="module")
def known() -> Known:
    tokenizer, words = Tokenizer(MINI), skill("words")
    tokens = []
    for i in range(12):
        problem = words.problem("hard" if i % 3 == 2 else "test", i)
        turns = [("user", problem.question), ("assistant", problem.solution)]
        if i % 3 == 1:
            turns += [("user", STEP_QUESTION)]
        tokens.append(tokenizer.render(turns))

    def reference(kind: Any) -> list[Any]:
        model = transformers.LlamaForCausalLM.from_pretrained(MINI, dtype=kind).eval()
        with torch.inference_mode():
            return [model(torch.tensor([t])).logits[0].numpy() for t in tokens]

    exact = reference(torch.float64)
    model = Model.load(MINI)
    engine = []
    for t in tokens:
        cache = model.new_cache(64)
        engine.append(model.forward([Chunk(t, 0, list(range(64)), len(t))], cache))
    return Known(tokens, exact, engine, apart(reference(torch.float32), exact))


def test_its_logits_are_exact_but_for_rounding(known: Known) -> None:
    off = apart(known.engine, known.exact)
    print(
        f"\n{sum(map(len, known.tokens))} positions, logits up to {known.greatest:.1f}: "
        f"off the float64 of transformers by at most {off:.1e}; its own float32 is by {known.rounding:.1e}"
    )
    assert off < 4 * known.rounding
    assert off < 2e-5 * known.greatest


def test_its_likeliest_token_is_that_of_transformers(known: Known) -> None:
    for mine, exact in zip(known.engine, known.exact, strict=True):
        best = np.sort(exact, axis=-1)
        clear = best[:, -1] - best[:, -2] > 4 * known.rounding
        assert clear.mean() > 0.99
        assert (mine.argmax(-1) == exact.argmax(-1))[clear].all()


def test_every_batch_gives_the_same_but_for_rounding(known: Known) -> None:
    model, rng = Model.load(MINI), np.random.default_rng(2)
    count, blocks = len(known.tokens), -(-max(map(len, known.tokens)) // 16)
    cache = model.new_cache(count * blocks)
    tables = [list(range(i * blocks, (i + 1) * blocks)) for i in range(count)]
    done = [0] * count
    some: list[Any] = []
    others: list[Any] = []
    while unfinished := [i for i in range(count) if done[i] < len(known.tokens[i])]:
        batch = []
        for i in rng.permutation(unfinished)[: rng.integers(1, count + 1)]:
            start, tokens = done[i], known.tokens[i]
            done[i] = end = min(len(tokens), start + int(rng.choice([1, 1, 1, 7, 40])))
            batch.append(Chunk(tokens[start:end], start, tables[i], end - start))
            others.append(known.engine[i][start:end])
        logits = model.forward(batch, cache)
        some += np.split(logits, np.cumsum([chunk.logits for chunk in batch])[:-1])
    off = apart(some, others)
    shifts = [
        float(np.abs(np.exp(log_softmax(a)) - np.exp(log_softmax(b))).sum(-1).mean() / 2)
        for a, b in zip(some, others, strict=True)
    ]
    print(
        f"\nbetween batches logits differ by at most {off:.1e}; "
        f"a seeded draw at temperature 1 by {np.mean(shifts):.1e} per token"
    )
    assert off < 2 * known.rounding
    assert off < 2e-5 * known.greatest
    assert np.mean(shifts) < 1e-5
