"""The strategy auto: what it picks under which budget, and why."""

from __future__ import annotations

from pathlib import Path

import pytest

import stratagem as sg
from stratagem.core.trace import Chosen
from stratagem.testing.loops import run
from stratagem.testing.toy import ToyModel

NARROW = sg.Measured(strategy=sg.Direct(), accuracy=0.5, low=0.4, tokens=20, calls=1, seconds=1)
MIDDLE = sg.Measured(
    strategy=sg.SelfConsistency(n=3, max_tokens=20), accuracy=0.7, low=0.6, tokens=200, calls=3, seconds=2
)
LUCKY = sg.Measured(strategy=sg.BestOfN(n=3), accuracy=0.8, low=0.5, tokens=200, calls=6, seconds=4)
WIDE = sg.Measured(strategy=sg.SelfConsistency(n=9), accuracy=0.8, low=0.7, tokens=600, calls=9, seconds=3)
AUTO = sg.Auto(measured=(WIDE, NARROW, LUCKY, MIDDLE))


@pytest.mark.parametrize(
    ("budget", "chosen"),
    [
        (sg.Budget(), WIDE),
        (sg.Budget(tokens=599), MIDDLE),
        (sg.Budget(tokens=600), WIDE),
        (sg.Budget(calls=5), MIDDLE),
        (sg.Budget(tokens=10_000, seconds=1.5), NARROW),
        (sg.Budget(tokens=199), NARROW),
        (sg.Budget(tokens=19), NARROW),
    ],
)
def test_the_best_lower_end_that_fits(budget: sg.Budget, chosen: sg.Measured) -> None:
    assert AUTO.choose(budget)[0] == chosen.strategy


def test_it_looks_at_what_is_left_here_and_around() -> None:
    trace, model = sg.Trace(), ToyModel()
    answer = run(sg.solve("How many?", AUTO, llm=model, budget="tokens=300", trace=trace))
    [event] = trace.of(Chosen)
    assert event.strategy == MIDDLE.strategy.dump()
    assert event.reason == "accuracy 0.700, at least 0.600, the best of 3 that fit"
    same = run(sg.solve("How many?", MIDDLE.strategy, llm=ToyModel()))
    assert (answer.value, answer.candidates) == (same.value, same.candidates)

    async def nested() -> sg.Answer:
        outer = sg.Run({"policy": model}, ledger=sg.Ledger(sg.Budget(tokens=300)))
        async with outer.within(sg.Budget(tokens=5_000)) as inner:
            await inner.sample("How many apples?", 40, sampling=sg.Sampling(max_tokens=10))
            return await AUTO(sg.Task.of("How many?"), inner)

    assert len(run(nested()).candidates) == 1, "what is spent is gone"


def test_of_equals_the_cheaper() -> None:
    dear = MIDDLE.model_copy(update={"tokens": 300.0, "strategy": sg.SelfConsistency(n=4)})
    assert sg.Auto(measured=(dear, MIDDLE)).choose(sg.Budget())[0] == MIDDLE.strategy


def test_with_nothing_measured_it_samples_until_it_is_sure() -> None:
    for auto, same in (
        (sg.Auto(n=8), sg.EarlyStoppingConsistency(n=8)),
        (sg.Auto(n=8, verifier=sg.Judge()), sg.AdaptiveBestOfN(n=8, verifier=sg.Judge())),
    ):
        mine, its = (run(sg.solve("How many?", s, llm=ToyModel(), seed=3)) for s in (auto, same))
        assert (mine.text, mine.candidates, mine.usage) == (its.text, its.candidates, its.usage)


def test_it_is_kept_in_a_file(tmp_path: Path) -> None:
    import yaml

    (tmp_path / "auto.yaml").write_text(yaml.safe_dump(AUTO.dump()), encoding="utf-8")
    assert sg.Strategy.load(tmp_path / "auto.yaml") == AUTO
    broken = AUTO.dump()
    broken["measured"][1]["strategy"]["kind"] = "guess"
    with pytest.raises(sg.ConfigurationError, match="Unknown strategy 'guess'"):
        sg.Strategy.load(broken)
