"""What a vLLM server counts at `/metrics`: read from its Prometheus text into a typed snapshot.

The counts are of all clients together, since the server started. What happened in between is the difference of two
snapshots (:meth:`Snapshot.since`). Names as vLLM 0.32 writes them; a metric that another version lacks counts as 0.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from stratagem.core.errors import ProtocolError

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?[ \t]*")
_LABEL = re.compile(r'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"[ \t]*(?:,|$)')
_ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One line: the metric's name, its labels and its value."""

    name: str
    labels: Mapping[str, str]
    value: float


def parse(text: str) -> Iterator[Sample]:
    """The samples of a page in the Prometheus text format, version 0.0.4.

    Raises:
        ProtocolError: it is something else; names the line.
    """
    # Not splitlines(): a label may hold a form feed or a Unicode line separator, which end no line here.
    for number, line in enumerate(text.split("\n"), start=1):
        if not (line := line.strip("\r\t ")) or line.startswith("#"):
            continue
        found = _SAMPLE.fullmatch(line)
        labels = _labels(found[2] or "") if found is not None else None
        if found is None or labels is None:
            raise ProtocolError(f"Line {number} of the metrics is none of Prometheus: {line[:80]!r}.")
        try:
            value = float(found[3])
        except ValueError:
            raise ProtocolError(f"Line {number} of the metrics has no number: {line[:80]!r}.") from None
        yield Sample(found[1], labels, value)


def _labels(text: str) -> dict[str, str] | None:
    labels: dict[str, str] = {}
    at = 0
    while at < len(text):
        found = _LABEL.match(text, at)
        if found is None:
            return None
        labels[found[1]] = re.sub(r"\\.", lambda escape: _ESCAPES.get(escape[0], escape[0]), found[2])
        at = found.end()
    return labels


@dataclass(frozen=True, slots=True)
class Histogram:
    """Observations by size. ``counts[i]`` of them are at most ``bounds[i]``; the last bound is infinity."""

    bounds: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()
    sum: float = 0.0

    @property
    def count(self) -> float:
        """How many there are."""
        return self.counts[-1] if self.counts else 0.0

    @property
    def mean(self) -> float:
        """NaN where there are none."""
        return self.sum / self.count if self.count else math.nan

    def quantile(self, q: float) -> float:
        """The value that a share ``q`` of them does not exceed, linear inside a bucket, as Prometheus has it.

        In the last bucket, which has no end, it is that bucket's beginning. NaN where there are none.
        """
        if not self.count:
            return math.nan
        rank = q * self.count
        below_bound, below_count = 0.0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=True):
            if count >= rank and count > below_count:
                if math.isinf(bound):
                    return below_bound
                return below_bound + (bound - below_bound) * (rank - below_count) / (count - below_count)
            below_bound, below_count = bound, count
        return below_bound

    def minus(self, earlier: Histogram) -> Histogram:
        """What came after ``earlier``."""
        before = dict(zip(earlier.bounds, earlier.counts, strict=True))
        counts = (c - before.get(b, 0.0) for b, c in zip(self.bounds, self.counts, strict=True))
        return Histogram(self.bounds, tuple(counts), self.sum - earlier.sum)


@dataclass(frozen=True, slots=True)
class Speculation:
    """How guessing ahead went. The server does not say by which method."""

    drafts: float = 0.0
    draft_tokens: float = 0.0
    accepted: float = 0.0
    accepted_by_position: tuple[float, ...] = ()

    @property
    def acceptance_length(self) -> float:
        """Mean tokens that one step of a sequence gives where a guess was made: the accepted and one more.

        NaN where there were no guesses.
        """
        return 1 + self.accepted / self.drafts if self.drafts else math.nan

    @property
    def acceptance_rate(self) -> float:
        """The share of guessed tokens that were right; NaN where there were no guesses."""
        return self.accepted / self.draft_tokens if self.draft_tokens else math.nan

    def rates_by_position(self) -> tuple[float, ...]:
        """For each place in a guess, in how many guesses the token there was accepted, as a share."""
        return tuple(
            accepted / self.drafts if self.drafts else math.nan for accepted in self.accepted_by_position
        )

    def minus(self, earlier: Speculation) -> Speculation:
        """What came after ``earlier``."""
        before = (*earlier.accepted_by_position, *[0.0] * len(self.accepted_by_position))
        return Speculation(
            self.drafts - earlier.drafts,
            self.draft_tokens - earlier.draft_tokens,
            self.accepted - earlier.accepted,
            tuple(a - b for a, b in zip(self.accepted_by_position, before, strict=False)),
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A server's metrics at one time, over all its engines. Times in seconds."""

    version: str = ""
    # as it is now
    running: float = 0.0  # sequences
    waiting: float = 0.0  # sequences
    kv_usage: float = 0.0  # share of the KV cache in use by sequences, in the fullest engine
    cache: Mapping[str, str] = field(
        default_factory=dict[str, str]
    )  # its configuration, as the server names it
    # counted
    prefix_queries: float = 0.0  # prompt tokens looked up in the prefix cache
    prefix_hits: float = 0.0  # of these found there
    prompt_tokens: float = 0.0
    generation_tokens: float = 0.0
    preemptions: float = 0.0
    finished: Mapping[str, float] = field(default_factory=dict[str, float])  # sequences by reason
    first_token: Histogram = field(default_factory=Histogram)  # until the first token
    each_token: Histogram = field(default_factory=Histogram)  # per sequence, mean time per further token
    speculation: Speculation | None = None  # where the server guesses ahead

    @classmethod
    def of(cls, text: str, version: str = "") -> Self:
        """From the text of `/metrics` and what `/version` says.

        Raises:
            ProtocolError: the text is no page of metrics, or there is nothing of vLLM in it.
        """
        found: defaultdict[str, list[Sample]] = defaultdict(list)
        for sample in parse(text):
            name = sample.name.removeprefix("vllm:")
            if name != sample.name:
                found[name].append(sample)
        if "generation_tokens_total" not in found:
            remedy = "Start vLLM without --disable-log-stats, and ask it at its own port."
            raise ProtocolError("The metrics are not those of a vLLM server.", remedy=remedy)
        info = next((sample.labels for sample in found["cache_config_info"]), {})
        return cls(
            version=version,
            running=_sum(found["num_requests_running"]),
            waiting=_sum(found["num_requests_waiting"]),
            kv_usage=max((s.value for s in found["kv_cache_usage_perc"]), default=0.0),
            cache={key: value for key, value in info.items() if key not in ("engine", "model_name")},
            prefix_queries=_sum(found["prefix_cache_queries_total"]),
            prefix_hits=_sum(found["prefix_cache_hits_total"]),
            prompt_tokens=_sum(found["prompt_tokens_total"]),
            generation_tokens=_sum(found["generation_tokens_total"]),
            preemptions=_sum(found["num_preemptions_total"]),
            finished=_by(found["request_success_total"], "finished_reason"),
            first_token=_histogram(found, "time_to_first_token_seconds"),
            each_token=_histogram(found, "request_time_per_output_token_seconds"),
            speculation=_speculation(found) if "spec_decode_num_drafts_total" in found else None,
        )

    @property
    def prefix_hit_rate(self) -> float:
        """The share of prompt tokens that the prefix cache had; NaN where none was looked up."""
        return self.prefix_hits / self.prefix_queries if self.prefix_queries else math.nan

    @property
    def acceptance_length(self) -> float:
        """As :attr:`Speculation.acceptance_length`; NaN where the server does not guess."""
        return self.speculation.acceptance_length if self.speculation is not None else math.nan

    @property
    def prefix_caching(self) -> bool | None:
        """Whether prompts share what they begin with; None where the server does not say."""
        return {"True": True, "False": False}.get(self.cache.get("enable_prefix_caching", ""))

    @property
    def block_size(self) -> int | None:
        """Tokens of a block of the KV cache, which prompts share as a whole; None where the server does not say."""
        return _integer(self.cache.get("block_size"))

    @property
    def kv_tokens(self) -> int | None:
        """Tokens that the KV cache of one engine holds; None where the server does not say."""
        blocks = _integer(self.cache.get("num_gpu_blocks"))
        size = _integer(self.cache.get("kv_cache_size_tokens"))
        return (
            size
            if size is not None or blocks is None or self.block_size is None
            else blocks * self.block_size
        )

    def since(self, earlier: Snapshot) -> Snapshot:
        """What was counted after ``earlier``; states are those of now.

        A server that has counted backwards was started anew in between: then all that it has counted since.
        """
        if any(now < before for now, before in zip(self._counters(), earlier._counters(), strict=True)):
            return self
        speculation = self.speculation
        if speculation is not None and earlier.speculation is not None:
            speculation = speculation.minus(earlier.speculation)
        return replace(
            self,
            **{name: getattr(self, name) - getattr(earlier, name) for name in _COUNTERS},
            finished={reason: n - earlier.finished.get(reason, 0.0) for reason, n in self.finished.items()},
            first_token=self.first_token.minus(earlier.first_token),
            each_token=self.each_token.minus(earlier.each_token),
            speculation=speculation,
        )

    def figures(self) -> dict[str, float]:
        """For people: what was counted, by its name with its unit; without what is not known."""
        told = {
            "prompt tokens": self.prompt_tokens,
            "prefix-cache hit rate": self.prefix_hit_rate,
            "decoded tokens": self.generation_tokens,
            "sequences": sum(self.finished.values()),
            "preemptions": self.preemptions,
            "acceptance length": self.acceptance_length,
            "median seconds to the first token": self.first_token.quantile(0.5),
            "median seconds per token": self.each_token.quantile(0.5),
        }
        return {name: value for name, value in told.items() if not math.isnan(value)}

    def _counters(self) -> tuple[float, ...]:
        return (
            *(getattr(self, name) for name in _COUNTERS),
            self.first_token.count,
            sum(self.finished.values()),
        )


_COUNTERS = ("prefix_queries", "prefix_hits", "prompt_tokens", "generation_tokens", "preemptions")


def _sum(samples: Iterable[Sample]) -> float:
    return sum(sample.value for sample in samples)


def _by(samples: Iterable[Sample], label: str) -> dict[str, float]:
    """Sums by a label, over all others."""
    sums: defaultdict[str, float] = defaultdict(float)
    for sample in samples:
        sums[sample.labels.get(label, "")] += sample.value
    return dict(sums)


def _histogram(found: Mapping[str, list[Sample]], name: str) -> Histogram:
    by_bound = _by(found.get(f"{name}_bucket", ()), "le")
    try:
        counts = {float(bound): count for bound, count in by_bound.items()}
    except ValueError:
        raise ProtocolError(f"A bucket of the metric vllm:{name} has no bound.") from None
    bounds = sorted(counts)
    return Histogram(tuple(bounds), tuple(counts[b] for b in bounds), _sum(found.get(f"{name}_sum", ())))


def _speculation(found: Mapping[str, list[Sample]]) -> Speculation:
    by_position = _by(found.get("spec_decode_num_accepted_tokens_per_pos_total", ()), "position")
    if not all(place.isdecimal() for place in by_position):
        raise ProtocolError("The metrics count accepted tokens by a position that is no number.")
    return Speculation(
        drafts=_sum(found["spec_decode_num_drafts_total"]),
        draft_tokens=_sum(found.get("spec_decode_num_draft_tokens_total", ())),
        accepted=_sum(found.get("spec_decode_num_accepted_tokens_total", ())),
        accepted_by_position=tuple(by_position[place] for place in sorted(by_position, key=int)),
    )


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
