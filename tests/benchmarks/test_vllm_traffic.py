"""What proposers of draft tokens are measured on is what strategies really send."""

from __future__ import annotations

import asyncio

from speculation import strategies, traffic
from stratagem.backends.vllm.speculative.simulate import Spoken


def test_the_traffic_is_what_strategies_of_each_kind_have_decoded() -> None:
    found = asyncio.run(traffic(0, 1, 2))
    assert found.keys() == strategies(2).keys()
    for texts in found.values():
        decoded = [text for text in texts if text.output]  # what was stopped may have none
        assert decoded
        assert all(len(text.tops) == len(text.output) for text in decoded)
        assert all(text.output[0] == text.tops[0][0] for text in decoded if len(text.output) == 1)
    assert [len(found["samples"]), len(found["grades"])] == [2, 4]
    assert not extending(found["samples"])
    for kind in ("grades", "steps", "rewrites", "plans", "calls"):
        assert extending(found[kind]), kind


def extending(texts: list[Spoken]) -> bool:
    """Whether one was asked for with what another had said, but for its end, in its prompt."""
    whole = [(*text.prompt, *text.output[:-1]) for text in texts if len(text.output) > 1]
    return any(tuple(text.prompt[: len(said)]) == said for text in texts for said in whole)
