"""Idealized runtimes against known ones, and of traces written by hand and by real runs."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stratagem as sg
from stratagem.bench.cost import Device, Roofline, Shape
from stratagem.bench.cost_runtime import Idealized, Runtime, Timing, idealized
from stratagem.core.errors import DataError

LLAMA7 = Shape(hidden=4096, layers=32, heads=32, kv_heads=32, head_dim=128, ffn=11008, vocabulary=32000)
unhurried = settings(deadline=None)

# -- idealized runtime ---------------------------------------------------------------------------------

# GPT-3 davinci on A100s, as Narayanan et al. (2023) have it.
DAVINCI = Runtime(((1, 0.084), (512, 0.178), (1024, 0.323), (1536, 0.476), (1920, 0.597)), 0.081)
grids = st.lists(st.integers(1, 5000), min_size=1, max_size=6, unique=True)


def measured(runtime: Runtime, prompts: list[int], outputs: tuple[int, ...] = (1, 4, 16, 64)) -> list[Timing]:
    return [Timing(p, o, runtime.seconds(p, o)) for p in prompts for o in outputs]


def test_davinci() -> None:
    assert DAVINCI.seconds(512, 64) == pytest.approx(0.178 + 63 * 0.081)
    assert DAVINCI.seconds(512, 64) == pytest.approx(5.281)
    assert DAVINCI.first(768) == pytest.approx((0.178 + 0.323) / 2)
    assert DAVINCI.first(1920) == pytest.approx(0.597)
    assert DAVINCI.first(2304) == pytest.approx(0.597 + 0.121)
    assert Runtime(((7, 2.0),), 0.0).first(1) == Runtime(((7, 2.0),), 0.0).first(99) == 2.0
    with pytest.raises(ValueError, match="output = 0"):
        DAVINCI.seconds(1, 0)


@unhurried
@given(grids, st.floats(0, 1), st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_a_known_runtime_is_recovered(
    prompts: list[int], base: float, slope: float, per_token: float
) -> None:
    known = Runtime(tuple((p, base + slope * p) for p in sorted(prompts)), per_token)
    found = Runtime.fit(reversed(measured(known, prompts)))
    assert found.per_token == pytest.approx(per_token, rel=1e-6, abs=1e-9)
    assert [p for p, _ in found.prefill] == sorted(prompts)
    for prompt in (*prompts, 0, 777, 9999) if len(prompts) > 1 else prompts:
        assert found.first(prompt) == pytest.approx(known.first(prompt), abs=1e-9)


@unhurried
@given(grids, st.data())
def test_what_is_measured_rises_with_the_prompt(prompts: list[int], data: st.DataObject) -> None:
    seconds = st.floats(0.001, 10)
    timings = [Timing(p, o, o + data.draw(seconds)) for p in prompts for o in (1, 30)]
    found = Runtime.fit(timings)
    times = [found.first(p) for p in range(0, 5000, 97)]
    assert all(later >= now * (1 - 1e-12) for now, later in pairwise(times))
    assert found.per_token > 0
    for timing in timings:
        if timing.output == 1:
            assert found.seconds(timing.prompt, 1) >= timing.seconds * (1 - 1e-12)


def test_the_fastest_trial_is_nearer_than_the_mean() -> None:
    """Noise only ever adds; ten trials."""
    draw = random.Random(1)
    exact = measured(DAVINCI, [1, 512, 1024])
    trials = [[replace(t, seconds=t.seconds + draw.expovariate(5)) for _ in range(10)] for t in exact]
    means = [replace(t[0], seconds=sum(one.seconds for one in t) / 10) for t in trials]
    queries = [(p, o) for p in (1, 300, 900) for o in (1, 32, 128)]

    def error(found: Runtime) -> float:
        return sum(abs(found.seconds(p, o) - DAVINCI.seconds(p, o)) for p, o in queries)

    assert error(Runtime.fit(t for ts in trials for t in ts)) < error(Runtime.fit(means)) / 2


def test_too_few_timings_are_one_error() -> None:
    for timings in ([], [Timing(1, 1, 1.0)], [Timing(1, 2, 1.0)]):
        with pytest.raises(DataError, match=r"one decoded token.*Measure each prompt length"):
            Runtime.fit(timings)


@pytest.mark.parametrize("more", [0.9, 1.0])
def test_tokens_that_take_no_time_are_one_error(more: float) -> None:
    with pytest.raises(DataError, match=r"takes no time.*Measure longer answers"):
        Runtime.fit([Timing(8, 1, 1.0), Timing(8, 64, more)])


def test_a_roofline_gives_the_least_runtime() -> None:
    r = Roofline(LLAMA7, Device.named("A100-40G"))
    least = Runtime.of_roofline(r, [1, 512, 2048], output=3)
    assert least.first(512) == pytest.approx(r.prefill(1, 512).seconds)
    steps = [r.generation(1, p, 3) - r.prefill(1, p).seconds for p in (1, 512, 2048)]
    assert least.per_token == pytest.approx(sum(steps) / 6)


# -- traces --------------------------------------------------------------------------------------------

COUNTED = Runtime(
    ((0, 0.0), (1000, 1.0)), 1.0
)  # a thousandth for a prompt token, 1 for each token but the first


def events(*told: tuple[str, dict[str, Any]], run: str = "r") -> list[str]:
    return [json.dumps({"type": kind, "run_id": run, **data}) for kind, data in told]


def started(call: int, n: int = 1) -> tuple[str, dict[str, Any]]:
    return "call_started", {"call": call, "n": n}


def arrived(call: int, tokens: int) -> tuple[str, dict[str, Any]]:
    return "completion", {"call": call, "token_count": tokens}


def finished(call: int, prompt: int, completion: int, calls: int = 1) -> tuple[str, dict[str, Any]]:
    usage = sg.Usage(prompt_tokens=prompt, completion_tokens=completion, calls=calls)
    return "call_finished", {"call": call, "usage": asdict(usage)}


@pytest.fixture
def file(tmp_path: Path) -> Callable[[list[str]], Path]:
    def write(lines: list[str]) -> Path:
        path = tmp_path / "trace.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write


def test_a_judge_waits_for_the_sample_that_it_judges_alone(file: Callable[[list[str]], Path]) -> None:
    """Two siblings; the first is judged while the second is still decoded."""
    lines = events(
        started(1, n=2),
        arrived(1, 10),
        started(2),
        arrived(2, 1),
        finished(2, 300, 1),
        arrived(1, 20),
        finished(1, 100, 30),
        started(3),
        arrived(3, 5),
        finished(3, 200, 5),
    )
    first, second, judge, last = 0.1 + 9, 0.1 + 19, 0.3, 0.2 + 4
    [(run, found)] = idealized(file(lines), COUNTED).items()
    assert run == "r"
    assert found.work == pytest.approx(first + second + judge + last)
    assert found.span == pytest.approx(max(first + judge, second) + last)


def test_aborted_and_scored_calls_count(file: Callable[[list[str]], Path]) -> None:
    lines = events(
        started(1, n=3),
        arrived(1, 10),
        finished(1, 200, 10 + 8, calls=2),  # two siblings aborted after 4 tokens each; two requests
        started(2, n=2),
        finished(2, 600, 0, calls=2),  # two continuations scored
        started(3, n=4),
        finished(3, 0, 0, calls=0),  # refused unheard
    )
    found = idealized(file(lines), COUNTED)["r"]
    assert found.work == pytest.approx((0.1 + 9) + 2 * (0.1 + 3) + 2 * 0.3)
    assert found.span == pytest.approx((0.1 + 9) + 0.3)


def test_runs_in_one_file_do_not_wait_for_each_other(file: Callable[[list[str]], Path]) -> None:
    one = events(started(1), arrived(1, 3), finished(1, 0, 3), run="a")
    other = events(started(1), arrived(1, 8), finished(1, 0, 8), run="b")
    mixed = [line for pair in zip(one, other, strict=True) for line in pair]
    others = ("proposed", {"value": "1"}), ("tool_started", {"call": "add(1, 2)"})
    path = file([*mixed, *events(*others, run="a")])
    with path.open("ab") as cut:
        cut.write('{"type": "call_sta … '.encode()[:-2])  # killed in mid-line, in mid-character
    assert idealized(path, COUNTED) == {"a": Idealized(2.0, 2.0), "b": Idealized(7.0, 7.0)}


def test_a_trace_without_its_head(file: Callable[[list[str]], Path]) -> None:
    assert idealized(file(events(arrived(4, 3), finished(4, 0, 3))), COUNTED)["r"] == Idealized(2.0, 2.0)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"type": "completion", "run_id": "r"}',
        '{"call": 1}',
        '{"type": "call_finished", "run_id": "r", "call": 1, "usage": {}}',
        '{"type": "call_finished", "run_id": "r", "call": 1, "usage": null}',
        '{"type": "call_finished", "run_id": "r", "call": 1, "usage": {"calls": 1, "prompt_tokens": "3", '
        '"completion_tokens": 0}}',
        '{"type": "call_started", "run_id": "r", "call": 1, "n": null}',
        '{"type": "completion", "run_id": "r", "call": 1, "token_count": -1}',
        '{"type": "completion", "run_id": "r", "call": [], "token_count": 1}',
        '{"type": "proposed", "run_id": []}',
        '{"type": [], "run_id": "r"}',
    ],
)
def test_what_is_no_trace_is_one_error(file: Callable[[list[str]], Path], line: str) -> None:
    with pytest.raises(DataError, match=r"trace.jsonl:2 is no event"):
        idealized(file([*events(started(1)), line]), COUNTED)
    with pytest.raises(DataError, match="Cannot read the trace /no/such"):
        idealized("/no/such", COUNTED)


@pytest.mark.parametrize("kind", ["direct", "self_consistency", "best_of_n"])
def test_of_real_runs(kind: str, tmp_path: Path) -> None:
    """Calls and tokens as the method's formula has them: N parallel samples, and for best-of-N a judgement of each
    after it. The file says what the records in memory say."""
    strategy = sg.Strategy.load({"kind": kind} | ({} if kind == "direct" else {"n": 4}))
    lines = sg.JsonLines(tmp_path / "trace.jsonl")
    trace = sg.Trace(listeners=[lines])
    answer = asyncio.run(_solved(strategy, trace))
    lines.close()
    tokens_only = Runtime(((1, 1.0),), 1.0)  # T(p, o) = o
    [(run, found)] = idealized(trace.records, tokens_only).items()
    lengths = [candidate.token_count for candidate in answer.candidates]
    judged = 0 if kind != "best_of_n" else answer.usage.completion_tokens - sum(lengths)
    assert found.work == sum(lengths) + judged == answer.usage.completion_tokens
    assert max(lengths) <= found.span <= max(lengths) + judged / max(1, len(lengths))
    assert idealized(tmp_path / "trace.jsonl", tokens_only) == {run: found}


async def _solved(strategy: sg.Strategy, trace: sg.Trace) -> sg.Answer:
    return await sg.solve("Tina has 35 beads. Tina loses 27 beads. How many has Tina?", strategy, trace=trace)
