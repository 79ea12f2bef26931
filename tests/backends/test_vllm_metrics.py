"""The metrics of a vLLM server, read from a page that a real one (0.32, ngram speculation) has given."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratagem.backends.vllm.metrics import Histogram, Sample, Snapshot, Speculation, parse
from stratagem.core.errors import ProtocolError

PAGE = (Path(__file__).parent / "data" / "vllm-0.32.0-ngram.metrics.txt").read_text(encoding="utf-8")


def counted(**changes: float) -> str:
    """The page with other values of metrics that have one sample."""
    text = PAGE
    for name, value in changes.items():
        head, found, tail = text.partition(f'\nvllm:{name}{{engine="0",model_name="mini"}} ')
        assert found, name
        text = f"{head}{found}{value}\n{tail.partition(chr(10))[2]}"
    return text


def test_every_line_of_a_real_page_is_read() -> None:
    samples = list(parse(PAGE))
    assert len(samples) == sum(bool(line) and line[0] != "#" for line in PAGE.splitlines()) == 441
    assert Sample("vllm:prompt_tokens_total", {"engine": "0", "model_name": "mini"}, 344.0) in samples


def test_a_real_page() -> None:
    """Eight samples of one prompt of 43 tokens, 64 tokens at most each, guessed by n-grams of 4."""
    found = Snapshot.of(PAGE, "0.32.0")
    assert (found.running, found.waiting, found.kv_usage) == (0, 0, 0)
    assert (found.prompt_tokens, found.generation_tokens) == (8 * 43, 476)
    assert (found.prefix_queries, found.prefix_hits) == (8 * 43, 7 * 32)
    assert found.prefix_hit_rate == 7 * 32 / (8 * 43)
    assert found.finished == {"stop": 1, "length": 7, "abort": 0, "error": 0, "repetition": 0}
    assert (found.prefix_caching, found.block_size, found.kv_tokens) == (True, 32, 349504)
    assert found.speculation is not None
    assert found.speculation == Speculation(181, 724, 13, (12, 1, 0, 0))
    assert found.acceptance_length == 1 + 13 / 181
    assert found.speculation.acceptance_rate == 13 / 724
    assert found.speculation.rates_by_position() == (12 / 181, 1 / 181, 0, 0)
    assert found.first_token.count == found.each_token.count == 8
    assert found.first_token.mean == pytest.approx(7.489676475524902 / 8)
    # All eight began together: their only bucket is the one from 0.75 to 1 s.
    assert found.first_token.quantile(0.5) == pytest.approx(0.875)
    assert found.figures()["acceptance length"] == found.acceptance_length


def test_without_speculation_there_is_no_acceptance() -> None:
    plain = "\n".join(line for line in PAGE.split("\n") if "spec_decode" not in line)
    found = Snapshot.of(plain)
    assert found.speculation is None
    assert math.isnan(found.acceptance_length)
    assert "acceptance length" not in found.figures()


def test_a_difference_is_what_came_in_between() -> None:
    before = Snapshot.of(PAGE)
    text = counted(
        prompt_tokens_total=444,
        prefix_cache_queries_total=444,
        prefix_cache_hits_total=304,
        spec_decode_num_drafts_total=191,
        spec_decode_num_accepted_tokens_total=33,
        num_requests_running=5,
    )
    between = Snapshot.of(text).since(before)
    assert (between.prompt_tokens, between.generation_tokens, between.running) == (100, 0, 5)
    assert between.prefix_hit_rate == 0.8
    assert between.acceptance_length == 3.0
    assert between.finished["stop"] == 0
    assert between.first_token.count == 0
    assert math.isnan(between.first_token.quantile(0.5))
    assert "median seconds to the first token" not in between.figures()


def test_a_server_started_anew_counts_from_its_start() -> None:
    before = Snapshot.of(PAGE)
    after = Snapshot.of(counted(generation_tokens_total=7))
    assert after.since(before).generation_tokens == 7


def test_engines_are_added_and_the_fullest_cache_counts() -> None:
    extra = (
        'vllm:generation_tokens_total{engine="1",model_name="mini"} 24\n'
        'vllm:num_requests_running{engine="1",model_name="mini"} 2\n'
        'vllm:kv_cache_usage_perc{engine="1",model_name="mini"} 0.75\n'
    )
    found = Snapshot.of(PAGE + extra)
    assert (found.generation_tokens, found.running, found.kv_usage) == (500, 2, 0.75)


@pytest.mark.parametrize(
    "text",
    [
        "<html>Not Found</html>",
        "{}",
        "vllm:a{b=1} 2",
        'vllm:a{b="1} 2',
        "vllm:a",
        "vllm:a one",
        'a{b="1" c="2"} 3',
    ],
)
def test_what_is_no_page_of_metrics_is_told(text: str) -> None:
    with pytest.raises(ProtocolError, match="Line 1 of the metrics"):
        list(parse(text))


@pytest.mark.parametrize("text", ["", "python_info 1\n"])
def test_metrics_of_something_else_are_told(text: str) -> None:
    with pytest.raises(ProtocolError, match="not those of a vLLM server"):
        Snapshot.of(text)


def test_labels_of_another_kind_are_told() -> None:
    with pytest.raises(ProtocolError, match="no bound"):
        Snapshot.of(PAGE + 'vllm:time_to_first_token_seconds_bucket{engine="0"} 1\n')
    with pytest.raises(ProtocolError, match="no number"):
        Snapshot.of(PAGE + 'vllm:spec_decode_num_accepted_tokens_per_pos_total{position="x"} 1\n')


def test_infinities_and_times_of_samples() -> None:
    first, second = parse('a{le="+Inf"} +Inf 1700000000\r\nb NaN\n# c 1')
    assert first == Sample("a", {"le": "+Inf"}, math.inf)
    assert second.name == "b"
    assert math.isnan(second.value)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,6}", fullmatch=True), st.text(), max_size=4), st.floats())
def test_any_label_comes_back(labels: dict[str, str], value: float) -> None:
    def escaped(text: str) -> str:
        return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    pairs = ",".join(f'{name}="{escaped(text)}"' for name, text in labels.items())
    [sample] = parse(f"vllm:x{{{pairs}}} {value!r}")
    assert sample.labels == labels
    assert sample.value == value or math.isnan(value)


@given(st.lists(st.floats(0, 9.99), min_size=1, max_size=50), st.floats(0.01, 1))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], q: float) -> None:
    bounds = (*(float(b) for b in range(11)), math.inf)
    histogram = Histogram(bounds, tuple(float(sum(v <= b for v in values)) for b in bounds), sum(values))
    true = sorted(values)[math.ceil(q * len(values) - 1e-9) - 1]
    assert math.ceil(true) - 1 - 1e-9 <= histogram.quantile(q) <= math.ceil(true) + 1e-9


def test_the_last_bucket_gives_its_beginning() -> None:
    assert Histogram((1.0, math.inf), (0.0, 3.0), 99.0).quantile(0.5) == 1.0
