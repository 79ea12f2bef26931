"""Derived seeds: written down, since runs that were begun with them must go on with them."""

from __future__ import annotations

from stratagem.core.seeds import derive


def test_they_never_change() -> None:
    assert [derive(), derive(0, "child", 1), derive(7, "gym:words/test/3")] == [
        154724242,
        666657625,
        859983032,
    ]


def test_each_is_a_seed_that_every_backend_takes_and_they_differ() -> None:
    seeds = [derive(seed, "problem", number) for seed in range(50) for number in range(50)]
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert len(set(seeds)) == len(seeds)  # of 2,500 two fall together with probability 0.0015
