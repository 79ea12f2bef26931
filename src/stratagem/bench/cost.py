"""What a served model could cost at best: a roofline of its prefill and decode steps, and the memory that it takes.

What computes n operations and moves b bytes takes at least max(n / peak, b / bandwidth) seconds (Williams et al.
2009, Roofline, doi:10.1145/1498765.1498785). What each part of a transformer counts is from Yuan et al. 2024, LLM
Inference Unveiled, https://arxiv.org/abs/2402.16363, but for what a floor must not count: masked scores, norms,
activations and sums where kernels are fused, and a decode step for the first token, which the prefill gives. Each
matrix product is a kernel that reads and writes its activations. A real server launches kernels, schedules and
talks over a network besides: it is slower, often by half.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np

from stratagem.core.errors import ConfigurationError
from stratagem.core.files import json_object


@dataclass(frozen=True, slots=True)
class Device:
    """What computes: an accelerator, or a processor."""

    name: str
    bandwidth: float  # bytes per second between memory and arithmetic units
    peak: float  # operations per second, at 16 bits (of a processor at 32)

    @property
    def ridge(self) -> float:
        """Operations per byte below which memory is what limits."""
        return self.peak / self.bandwidth

    @classmethod
    def named(cls, name: str) -> Self:
        """An accelerator by its name in :data:`DEVICES`.

        Raises:
            ConfigurationError: there is no such one.
        """
        if name not in DEVICES:
            raise ConfigurationError(
                f"No device {name!r} is known.",
                remedy=f"Known are {', '.join(DEVICES)}; or give Device(...).",
            )
        bandwidth, peak = DEVICES[name]
        return cls(name, bandwidth * 1e9, peak * 1e12)

    @classmethod
    def here(cls, working_set: int, *, seconds: float = 1.0) -> Self:
        """This machine's processor in float32, by the fastest of what numpy does in that time.

        Args:
            working_set: bytes that a step reads: small models are read from caches, faster than memory.
            seconds: of measuring.
        """
        side = max(16, math.isqrt(working_set // 4))
        vector = np.ones(side, np.float32)
        matrix = np.ones((side, side), np.float32)
        flat = matrix.reshape(-1)
        reads = ((matrix, vector), (vector, matrix), (flat, flat))
        bandwidth = max(flat.nbytes / _fastest(partial(np.dot, a, b), seconds / 6) for a, b in reads)
        squares = [np.ones((n, n), np.float32) for n in (256, 512, 1024)]
        peak = max(2 * len(a) ** 3 / _fastest(partial(np.dot, a, a), seconds / 6) for a in squares)
        return cls("this machine", bandwidth, peak)


# GB/s and 16-bit tera-operations per second, without sparsity, as Yuan et al. (2024) have them.
DEVICES = {
    "V100": (900, 112),
    "A100-40G": (1555, 312),
    "A100-80G": (2039, 312),
    "A6000": (768, 154.8),
    "L40": (864, 181),
    "H100": (3072, 989.5),
}


def _fastest(work: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest of all runs that begin within ``seconds``, two at least."""
    best, begin, runs = math.inf, time.perf_counter(), 0
    while runs < 2 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
        runs += 1
    return best


@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes of a number."""

    weights: float = 2
    activations: float = 2
    kv: float = 2

    @property
    def eight_bit(self) -> bool:
        """Whether products may use 8-bit units, twice as fast: only if all that enters them is that small."""
        return max(self.weights, self.activations, self.kv) <= 1


_UNKNOWN = {
    "mixture of experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "multi-head latent attention": ("kv_lora_rank",),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A dense decoder with gated feed-forward layers (Llama, Qwen, Mistral and their like)."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    tied: bool = False  # input and output embeddings are one matrix

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """From ``config.json`` in the Hugging Face layout, or the folder that it lies in.

        Raises:
            ConfigurationError: there is none, or the model is of another kind.
        """
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        remedy = "Give a model folder in the Hugging Face format, or its config.json."
        data = json_object(path, remedy)
        data = data.get("text_config", data)  # of a model that sees pictures too
        if not isinstance(data, dict):
            raise ConfigurationError(f"{path}: 'text_config' is {data!r}.", remedy=remedy)
        for what, keys in _UNKNOWN.items():
            if any(data.get(key) for key in keys):
                raise ConfigurationError(f"{path}: {what} is not modelled.", remedy="Give a dense model.")
        if data.get("sliding_window") and data.get("use_sliding_window", True):
            raise ConfigurationError(f"{path}: sliding windows are not modelled.", remedy="Give another one.")

        def size(key: str, default: int | None = None) -> int:
            value = default if data.get(key) is None and default is not None else data.get(key)
            if key not in data and default is None:
                raise ConfigurationError(f"{path} lacks the key {key!r}.", remedy=remedy)
            if type(value) is not int or value < 1:
                raise ConfigurationError(f"{path}: {key!r} is {value!r}, and no size.", remedy=remedy)
            return value

        heads, hidden = size("num_attention_heads"), size("hidden_size")
        return cls(
            hidden=hidden,
            layers=size("num_hidden_layers"),
            heads=heads,
            kv_heads=size("num_key_value_heads", heads),
            head_dim=size("head_dim", hidden // heads),
            ffn=size("intermediate_size"),
            vocabulary=size("vocab_size"),
            tied=bool(data.get("tie_word_embeddings", False)),
        )

    @property
    def parameters(self) -> int:
        """Weights in all."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        layer = attention + 3 * self.hidden * self.ffn + 2 * self.hidden
        return self.layers * layer + self.hidden + (1 if self.tied else 2) * self.vocabulary * self.hidden


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a step, on one device. Each of its counts is for one of ``times`` that it is done."""

    name: str
    operations: float
    weights: float = 0.0  # bytes read
    activations: float = 0.0  # bytes read and written
    kv: float = 0.0  # bytes of the KV cache read or written
    times: int = 1  # once per layer, or once

    @property
    def moved(self) -> float:
        """Bytes between memory and arithmetic units."""
        return self.weights + self.activations + self.kv

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.moved


@dataclass(frozen=True, slots=True)
class Step:
    """All operations of one forward pass, and the roof that they run under."""

    operations: tuple[Operation, ...]
    bandwidth: float  # bytes per second
    peak: float  # operations per second

    @property
    def seconds(self) -> float:
        """The least time for all of them, one after another."""
        return math.fsum(map(self.time, self.operations))

    def time(self, operation: Operation) -> float:
        """Seconds that this one takes at least, all ``times`` together."""
        return operation.times * max(operation.operations / self.peak, operation.moved / self.bandwidth)

    def memory_bound(self, operation: Operation) -> bool:
        """Whether it waits for memory rather than for arithmetic."""
        return operation.moved / self.bandwidth > operation.operations / self.peak

    def __getitem__(self, name: str) -> Operation:
        return next(operation for operation in self.operations if operation.name == name)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device."""

    weights: float
    kv: float
    activations: float  # of the widest operation

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.kv + self.activations


@dataclass(frozen=True, slots=True)
class Roofline:
    """Least times of one model on one kind of device.

    Args:
        fused: whether attention keeps its scores on the chip and skips masked ones, as every server does, and
            norms, activations and sums cost nothing, as if done within the products beside them; else the whole
            square of scores is computed, written and read, and each of the others is a pass over memory of its
            own, as the source counts it.
        devices: how many the weights and heads are divided among; what they say to each other is not counted.
    """

    shape: Shape
    device: Device
    precision: Precision = field(default_factory=Precision)
    fused: bool = True
    devices: int = 1

    def __post_init__(self) -> None:
        if self.devices < 1 or self.shape.heads % self.devices:
            raise ConfigurationError(
                f"devices = {self.devices}: {self.shape.heads} heads cannot be divided among so many.",
                remedy=f"Give a divisor of {self.shape.heads}.",
            )

    def prefill(self, batch: int, length: int, cached: int = 0) -> Step:
        """The pass over ``length`` new tokens of each of ``batch`` prompts, which gives each its first token.

        ``cached`` tokens before them are in the KV cache already.
        """
        if batch < 1 or length < 1 or cached < 0:
            raise ValueError(f"batch = {batch}, length = {length}, cached = {cached}: too small")
        operations = (*self._layer(batch, length, cached), self._head(batch))
        peak = self.device.peak * (2 if self.precision.eight_bit else 1)
        return Step(operations, self.device.bandwidth, peak)

    def decode(self, batch: int, context: int) -> Step:
        """The pass that gives each of ``batch`` sequences one token more, when it attends to ``context`` tokens."""
        return self.prefill(batch, 1, context - 1)

    def generation(self, batch: int, prompt: int, output: int) -> float:
        """Seconds from prompts to answers of ``output`` tokens each, all sequences in step."""
        if output < 1:
            raise ValueError(f"output = {output}: too small")
        further = (self.decode(batch, prompt + i).seconds for i in range(1, output))
        return self.prefill(batch, prompt).seconds + math.fsum(further)

    def memory(self, batch: int, context: int) -> Memory:
        """What ``batch`` sequences of ``context`` tokens need while they decode."""
        s = self.shape
        kv = 2 * s.layers * context * self._kv_heads * s.head_dim * batch * self.precision.kv
        widest = max(operation.activations for operation in self.decode(batch, context).operations)
        return Memory(s.parameters * self.precision.weights / self.devices, kv, widest)

    def sequences(self, memory: float, context: int) -> int:
        """How many sequences of ``context`` tokens fit ``memory`` bytes on each device."""
        one, two = self.memory(1, context), self.memory(2, context)
        return max(0, math.floor((memory - one.total) / (two.total - one.total)) + 1)

    @property
    def _kv_heads(self) -> int:
        """On each device; where there are fewer heads than devices, some hold the same."""
        return max(1, self.shape.kv_heads // self.devices)

    def _linear(
        self, name: str, inputs: int, outputs: int, tokens: int, times: int, *, kv: bool = False
    ) -> Operation:
        """A product of activations with a matrix of weights; the results of k and v go to the KV cache."""
        p = self.precision
        result = outputs * tokens
        return Operation(
            name,
            operations=2 * inputs * result,
            weights=inputs * outputs * p.weights,
            activations=(inputs * tokens + (0 if kv else result)) * p.activations,
            kv=result * p.kv if kv else 0.0,
            times=times,
        )

    def _layer(self, batch: int, new: int, cached: int) -> Iterator[Operation]:
        s, n, layers = self.shape, batch * new, self.shape.layers
        a = self.precision.activations
        q, kv = s.heads // self.devices * s.head_dim, self._kv_heads * s.head_dim
        ffn = s.ffn // self.devices
        if not self.fused:
            for name in ("attention norm", "ffn norm"):
                yield Operation(name, 7 * s.hidden * n, activations=2 * s.hidden * n * a, times=layers)
            yield Operation("activation", 2 * ffn * n, activations=3 * ffn * n * a, times=layers)
            for name in ("attention add", "ffn add"):
                yield Operation(name, s.hidden * n, activations=2 * s.hidden * n * a, times=layers)
        yield self._linear("q", s.hidden, q, n, layers)
        yield self._linear("k", s.hidden, kv, n, layers, kv=True)
        yield self._linear("v", s.hidden, kv, n, layers, kv=True)
        yield from self._attention(batch, new, cached)
        yield self._linear("o", q, s.hidden, n, layers)
        yield self._linear("gate", s.hidden, ffn, n, layers)
        yield self._linear("up", s.hidden, ffn, n, layers)
        yield self._linear("down", ffn, s.hidden, n, layers)

    def _attention(self, batch: int, new: int, cached: int) -> Iterator[Operation]:
        s, p, layers = self.shape, self.precision, self.shape.layers
        heads, context = s.heads // self.devices, cached + new
        queries = batch * new * heads * s.head_dim * p.activations
        read = batch * context * self._kv_heads * s.head_dim * p.kv
        if self.fused:
            pairs = batch * heads * (new * cached + new * (new + 1) // 2)
            work = (4 * s.head_dim + 5) * pairs
            yield Operation("attention", work, activations=2 * queries, kv=2 * read, times=layers)
            return
        pairs = batch * heads * new * context
        scores = pairs * p.activations
        work = 2 * s.head_dim * pairs
        yield Operation("scores", work, activations=queries + scores, kv=read, times=layers)
        yield Operation("softmax", 5 * pairs, activations=2 * scores, times=layers)
        yield Operation("values", work, activations=scores + queries, kv=read, times=layers)

    def _head(self, batch: int) -> Operation:
        return self._linear("head", self.shape.hidden, -(-self.shape.vocabulary // self.devices), batch, 1)
