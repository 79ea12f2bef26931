"""What each filter leaves is what its definition says."""

from collections.abc import Callable

import numpy as np
import pytest

from stratagem.backends.embedded.sampling import Sampling, best, draw, log_softmax

P = np.array([0.05, 0.4, 0.3, 0.05, 0.15, 0.05])
LOGITS = np.log(P).astype(np.float32)


def frequencies(sampling: Sampling, mask: np.ndarray | None = None, n: int = 6000) -> np.ndarray:
    generators = [np.random.Generator(np.random.PCG64(i)) for i in range(n)]
    tokens = draw(np.tile(LOGITS, (n, 1)), [sampling] * n, generators, [mask] * n)
    return np.bincount(tokens, minlength=len(P)) / n


def normal(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum()


KEEP_TWO, KEEP_THREE = np.array([0, 1, 1, 0, 0, 0]), np.array([0, 1, 1, 0, 1, 0])


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), P),
        (Sampling(temperature=0.5), normal(P**2)),
        (Sampling(temperature=2.0), normal(P**0.5)),
        (Sampling(temperature=0.0), np.eye(6)[1]),
        (Sampling(temperature=1e-9), np.eye(6)[1]),
        (Sampling(top_k=2), normal(P * KEEP_TWO)),
        (Sampling(top_p=0.6), normal(P * KEEP_TWO)),
        (Sampling(top_p=0.8), normal(P * KEEP_THREE)),
        (Sampling(top_p=1e-9), np.eye(6)[1]),
        (Sampling(min_p=0.3), normal(P * KEEP_THREE)),
        (Sampling(min_p=0.5, top_p=0.99), normal(P * KEEP_TWO)),
    ],
)
def test_a_filter_leaves_what_it_should(sampling: Sampling, expected: np.ndarray) -> None:
    assert frequencies(sampling) == pytest.approx(expected, abs=0.025)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_mask_excludes_before_anything_else(temperature: float) -> None:
    mask = np.array([True, False, False, True, True, True])
    found = frequencies(Sampling(temperature=temperature, top_k=4), mask)
    expected = np.eye(6)[4] if temperature == 0 else normal(P * mask)
    assert found == pytest.approx(expected, abs=0.025)


def test_a_row_is_drawn_the_same_in_any_company() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((40, 300)).astype(np.float32)
    samplings = [
        Sampling(temperature=float(rng.choice([0.0, 0.7, 1.0])), top_p=float(rng.choice([0.8, 1.0])))
        for _ in range(40)
    ]
    make: Callable[[int], np.random.Generator] = lambda i: np.random.Generator(np.random.PCG64(i))  # noqa: E731
    together = draw(logits, samplings, [make(i) for i in range(40)], [None] * 40)
    alone = [draw(logits[i : i + 1], [samplings[i]], [make(i)], [None])[0] for i in range(40)]
    assert together == alone


def test_best_and_log_softmax() -> None:
    logprobs = log_softmax(LOGITS[None])[0]
    assert np.exp(logprobs) == pytest.approx(P, abs=1e-7)
    assert [i for i, _ in best(logprobs, 3)] == [1, 2, 4]
    assert best(logprobs, 0) == []
    assert len(best(logprobs, 99)) == 6
