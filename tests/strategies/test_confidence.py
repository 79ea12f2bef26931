"""Self-certainty and DeepConf against numbers by hand, enumeration, and the toy engine's books."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import pytest

import stratagem as sg
from openai_kit import connected, settled
from stratagem.core.backend import TokenLogprob
from stratagem.core.errors import UnsupportedError
from stratagem.core.protocols import Strategy
from stratagem.core.trace import CallStarted
from stratagem.strategies._confidence import Gauge, quantile, token_confidence
from stratagem.strategies.deep_confidence import DeepConfidence
from stratagem.strategies.self_certainty import SelfCertainty
from stratagem.testing.loops import run as run_in
from stratagem.testing.server import SimCompletion, SimRequest, SimSettings, tokenize
from stratagem.testing.toy import CAPABLE, ToyModel, jittered

# Sure or not, then an answer; the ends are certain.
ROWS = {
    "": {"Surely": 0.4, "Perhaps": 0.6},
    "Surely": {" the answer is 1.": 0.9, " the answer is 2.": 0.1},
    "Perhaps": {" the answer is 2.": 0.6, " the answer is 3.": 0.4},
}
TEXTS = {a + b: p * q for a, p in ROWS[""].items() for b, q in ROWS[a].items()}


def certainty(text: str) -> float:
    """By hand: the mean over three tokens of the mean of -log p over what could have been said."""
    first = -(math.log(0.4) + math.log(0.6)) / 2
    second = -sum(map(math.log, ROWS[text.partition(" ")[0]].values())) / 2
    return (first + second + 0.0) / 3


def solved(strategy: Strategy, seeds: Sequence[int], **model: object) -> list[sg.Answer]:
    async def main() -> list[sg.Answer]:
        return [
            await sg.solve("Which?", strategy, llm=ToyModel(ROWS, **model), seed=seed)  # type: ignore[arg-type]
            for seed in seeds
        ]

    return asyncio.run(main())


def agrees(strategy: Strategy, n: int, wins: Callable[[Sequence[str]], str | None], runs: int = 800) -> None:
    """The distribution of the answer over seeds is the one over all n-tuples of texts."""
    exact: dict[str | None, float] = {}
    for drawn in product(TEXTS, repeat=n):
        value = wins(drawn)
        exact[value] = exact.get(value, 0.0) + math.prod(TEXTS[t] for t in drawn)
    found = Counter(answer.value for answer in solved(strategy, range(runs)))
    assert found.keys() <= exact.keys()
    for value, p in exact.items():
        error = math.sqrt(p * (1 - p) / runs)
        assert abs(found[value] / runs - p) <= 4 * error + 1e-12, (value, found[value] / runs, p)


def heaviest(drawn: Sequence[str], weights: Sequence[float]) -> str:
    totals: dict[str, float] = {}
    for text, weight in zip(drawn, weights, strict=True):
        totals[text[-2]] = totals.get(text[-2], 0.0) + weight
    return max(totals, key=totals.__getitem__)


def test_confidence_of_a_token_and_of_groups() -> None:
    def token(*ps: float) -> TokenLogprob:
        return TokenLogprob("x", 0.0, tuple(("x", math.log(p) if p else -math.inf) for p in ps))

    assert token_confidence(token(0.5, 0.25, 0.25), 2) == pytest.approx(math.log(8) / 2)
    assert token_confidence(token(0.5, 0.5, 0.0), 3) == pytest.approx(math.log(2))  # never said: left out
    assert token_confidence(token(), 3) == 0.0
    gauge = Gauge(1, 2)
    logs = [3.0, 1.0, 2.0, 4.0, 0.0]  # groups of two: 2, 1.5, 3, 2
    gauge.add([token(math.exp(-log)) for log in logs])
    got = [gauge.value(measure) for measure in ("lowest", "bottom", "tail", "mean")]
    assert got == pytest.approx([1.5, 1.5, 2.0, 2.0])
    assert gauge.lowest == pytest.approx(1.5)
    long = Gauge(1, 1)
    long.add([token(math.exp(-log)) for log in range(40)])  # the lowest 10 %: 0, 1, 2, 3
    assert long.value("bottom") == pytest.approx(1.5)
    short = Gauge(1, 9)
    short.add([token(math.exp(-log)) for log in logs])
    assert [short.value("lowest"), short.lowest] == [pytest.approx(2.0), math.inf]


def test_quantiles_are_those_of_numpy() -> None:
    numpy = pytest.importorskip("numpy")
    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    for share in (0.0, 0.1, 0.25, 0.5, 0.9, 1.0):
        assert quantile(values, share) == pytest.approx(float(numpy.quantile(values, share)))
    assert quantile([0.3], 0.1) == 0.3


def test_self_certainty_agrees_with_enumeration() -> None:
    def wins(drawn: Sequence[str]) -> str:
        ranked = sorted(range(3), key=lambda i: -certainty(drawn[i]))
        return heaviest(drawn, [math.sqrt(3 - ranked.index(i)) for i in range(3)])

    agrees(SelfCertainty(n=3), 3, wins)


def test_the_power_leads_from_the_majority_to_the_most_certain() -> None:
    majority = solved(sg.SelfConsistency(n=5), range(40))
    flat, steep = (solved(SelfCertainty(n=5, power=p), range(40)) for p in (0.0, 1000.0))
    assert [a.value for a in flat] == [a.value for a in majority]  # of the same samples
    for answer in steep:
        scores = [c.scores["self_certainty"] for c in answer.candidates]
        assert scores == pytest.approx([certainty(c.text) for c in answer.candidates])
        assert answer.text == answer.candidates[scores.index(max(scores))].text


def test_offline_filtering_agrees_with_enumeration() -> None:
    def wins(drawn: Sequence[str]) -> str:
        scores = [certainty(text) for text in drawn]
        bar = sorted(scores)[1]  # the quantile 1/2 of three
        return heaviest(drawn, [s if s >= bar else 0.0 for s in scores])

    agrees(DeepConfidence(n=3, warmup=3, keep=0.5, measure="mean"), 3, wins)


def test_online_filtering_and_consensus_agree_with_enumeration() -> None:
    def wins(drawn: Sequence[str]) -> str:
        scores = [certainty(text) for text in drawn]
        bar = min(scores[:2]) + 0.5 * abs(scores[0] - scores[1])
        counted = [(t, s) for t, s in zip(drawn[:2], scores, strict=False) if s >= bar]
        best = ""
        for last in range(2, 6):
            if last > 2 and scores[last - 1] >= bar:
                counted.append((drawn[last - 1], scores[last - 1]))
            best = heaviest(*zip(*counted, strict=True))  # type: ignore[arg-type]
            if sum(s for t, s in counted if t[-2] == best) >= 0.8 * sum(s for _, s in counted):
                break
        return best

    strategy = DeepConfidence(n=5, warmup=2, keep=0.5, measure="mean", consensus=0.8)
    agrees(strategy, 5, wins)


# A sure text of twelve tokens, or an unsure one that goes on for as long; every place has two tokens.
SURE, HEMS = {" yes": 0.98, " no": 0.02}, {" um": 0.5, " er": 0.5}


def talk(_: object, tokens: tuple[str, ...]) -> dict[str, float]:
    if not tokens:
        return {"Sure:": 0.5, "Hm:": 0.5}
    sure = tokens[0] == "Sure:"
    if len(tokens) <= 10:
        return SURE if sure else HEMS
    if len(tokens) == 11:
        return {" The answer is 1.": 0.98, " The answer is 2.": 0.02} if sure else {" The answer is 3.": 1.0}
    return {"": 1.0}


def test_unsure_samples_are_stopped_in_the_engine_at_the_first_group_below_the_threshold() -> None:
    async def main() -> None:
        stopped = 0
        for seed in range(30):
            plain = await sg.solve("Which?", sg.SelfConsistency(n=10), llm=ToyModel(talk), seed=seed)
            texts = [c.text for c in plain.candidates]
            if len({t[0] for t in texts[:4]}) < 2:
                continue  # a warm-up of one sort tells nothing apart
            toy = ToyModel(talk)
            strategy = DeepConfidence(n=10, warmup=4, keep=0.1, window=4, consensus=2.0, parallel=3)
            answer = await sg.solve("Which?", strategy, llm=toy, seed=seed)
            unsure = sum(t.startswith("Hm") for t in texts[4:])
            assert (toy.books.aborted, toy.books.in_flight) == (unsure, 0)
            assert toy.books.usage.completion_tokens == 13 * (10 - unsure) + 4 * unsure
            assert [c.text for c in answer.candidates] == [
                *texts[:4],
                *(t for t in texts[4:] if t.startswith("Sure")),
            ]
            assert answer.value in {"1", "2"}
            assert answer.usage == toy.books.usage
            stopped += unsure
        assert stopped > 60

    asyncio.run(main())


def test_ahead_changes_tokens_and_not_the_answer() -> None:
    async def main() -> None:
        for seed in range(20):
            got = []
            for ahead in (False, True):
                toy = ToyModel(talk, pace=jittered(seed))
                strategy = DeepConfidence(n=10, warmup=4, keep=0.5, window=4, consensus=0.9, ahead=ahead)
                answer = await sg.solve("Which?", strategy, llm=toy, seed=seed)
                got.append((answer.text, answer.confidence, [c.text for c in answer.candidates]))
                assert toy.books.in_flight == 0
            assert got[0] == got[1]

    asyncio.run(main())


def test_ahead_begins_samples_as_those_of_the_warm_up_end() -> None:
    """One sample of the warm-up is long: meanwhile the others' places are taken, at most ``parallel``."""
    rows: dict[str, dict[str, float]] = {
        "": {"a": 0.7, "b": 0.3},
        "a": {" The answer is 1.": 0.9, " Or 1.": 0.1},
    }
    rows |= {"b" + " so" * k: {" so": 1.0} if k < 40 else {" The answer is 2.": 1.0} for k in range(41)}

    async def once(seed: int, ahead: bool) -> tuple[float, int, object]:
        async def pace(_: object) -> None:
            await asyncio.sleep(1)

        loop = asyncio.get_running_loop()
        toy, began = ToyModel(rows, pace=pace), loop.time()
        strategy = DeepConfidence(
            n=8, warmup=4, measure="mean", keep=1.0, consensus=2.0, parallel=2, ahead=ahead
        )
        answer = await sg.solve("Which?", strategy, llm=toy, seed=seed)
        assert toy.books.peak <= 2 + ahead  # the warm-up is one request
        return loop.time() - began, toy.books.usage.tokens, answer.text

    async def main() -> None:
        sooner = 0
        for seed in range(10):
            plain, ahead = await once(seed, False), await once(seed, True)
            assert ahead[0] <= plain[0]
            assert ahead[1:] == plain[1:]  # nothing is below the threshold: not a token more
            sooner += ahead[0] < plain[0]
        assert sooner >= 5

    run_in(main())


def test_after_consensus_nothing_more_is_decoded() -> None:
    async def main() -> None:
        toy, trace = ToyModel({"": {"The answer is 1.": 0.9, "So the answer is 1.": 0.1}}), sg.Trace()
        answer = await sg.solve("Which?", DeepConfidence(n=32, warmup=3, window=1), llm=toy, trace=trace)
        assert [call.n for call in trace.of(CallStarted)] == [3]
        assert (answer.value, answer.stopped) == ("1", "complete")
        assert toy.books.aborted == 0

    asyncio.run(main())


def test_samples_in_flight_at_consensus_are_stopped_and_do_not_count() -> None:
    rows = {"": {"a": 0.5, "b": 0.3, "c": 0.2}, "a": {" The answer is 1.": 0.9, " or 2.": 0.1}}
    rows |= {"b": {" The answer is 2.": 0.9, " or 1.": 0.1}}
    rows |= {"c" + " so" * k: {" so": 0.9, " The answer is 3.": 0.1} for k in range(60)}

    async def once(seed: int, pace: int) -> tuple[object, int]:
        toy = ToyModel(rows, pace=jittered(pace))
        strategy = DeepConfidence(n=24, warmup=3, keep=1.0, measure="mean", consensus=0.7, parallel=8)
        answer = await sg.solve("Which?", strategy, llm=toy, seed=seed)
        assert toy.books.in_flight == 0
        return (answer.text, answer.confidence, [c.text for c in answer.candidates]), toy.books.aborted

    aborted = 0
    for seed in range(12):
        results = [asyncio.run(once(seed, pace)) for pace in range(3)]
        assert results[0][0] == results[1][0] == results[2][0]
        aborted += sum(count for _, count in results)
    assert aborted > 20


def talking(request: SimRequest) -> list[SimCompletion]:
    """Sure or unsure by the seed, forty pieces long."""
    assert request.seed is not None

    def one(seed: int) -> SimCompletion:
        sure = seed % 2 == 0
        text = " yes" * 36 + " The answer is 1." if sure else " um" * 36 + " The answer is 2."
        other = 0.01 if sure else 0.4
        top = [{piece: math.log(1 - other), " or": math.log(other)} for piece in tokenize(text)]
        return SimCompletion(text, [math.log(1 - other)] * len(top), top)

    return [one(request.seed + i) for i in range(request.n)]


def test_over_http_unsure_samples_are_stopped_by_the_server_s_own_count() -> None:
    async def main() -> None:
        settings = SimSettings(per_token=0.01)
        async with connected(settings, responder=talking) as (server, backend):
            strategy = DeepConfidence(n=16, warmup=4, keep=0.3, window=8, top=2, consensus=2.0, parallel=4)
            answer = await sg.solve("Which?", strategy, llm=backend, seed=1)
            await settled(server)
            totals = server.totals()
            assert answer.value == "1"
            # Seeds of siblings alternate: six of the twelve after the warm-up are unsure.
            assert (totals.aborted, totals.in_flight) == (6, 0)
            assert (
                totals.decoded < 10 * 42 + 6 * 14
            )  # of 42 pieces with the end; a group, and what is under way
            assert answer.usage.tokens <= totals.prompt_tokens + totals.decoded
            assert (
                totals.prompt_tokens + totals.decoded <= answer.usage.tokens + answer.usage.uncertain_tokens
            )

    run_in(main())


@pytest.mark.parametrize("strategy", [SelfCertainty(n=3), DeepConfidence(n=3)], ids=lambda s: s.kind)
@pytest.mark.parametrize("logprobs", [-1, 0])
def test_a_model_that_gives_no_alternatives_is_refused_before_it_is_asked(
    strategy: Strategy, logprobs: int
) -> None:
    model = ToyModel(ROWS, capabilities=replace(CAPABLE, logprobs=logprobs))
    with pytest.raises(UnsupportedError, match=f"by which {strategy.kind} .* Use a backend that does"):
        sg.solve_sync("Which?", strategy, llm=model)
    assert model.books.usage.calls == 0
