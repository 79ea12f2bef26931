"""A Llama decoder in numpy: one function from a ragged batch of token chunks to logits.

Architecture: RMSNorm, rotary positions, grouped-query attention, SwiGLU (Touvron et al. 2023,
https://arxiv.org/abs/2302.13971; Ainslie et al. 2023, https://arxiv.org/abs/2305.13245), in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stratagem.backends.embedded.cache import BLOCK, BlockCache
from stratagem.backends.embedded.checkpoint import Config, read_config, read_weights

Floats = NDArray[np.float32]
MASKED = np.float32(-1e30)
KV_BYTES = 1 << 21  # of a group's keys and values, so that they are still in a near cache when used


@dataclass(slots=True)
class Chunk:
    """Consecutive tokens of one sequence that follow ``start`` tokens already in its blocks.

    ``blocks`` covers the chunk too. ``logits`` says for how many of its last tokens logits are wanted.
    """

    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    logits: int


@dataclass(slots=True)
class _Group:
    """Chunks of equal length and like context that attend together; rows [first, first + n * length)."""

    first: int
    n: int
    length: int
    table: NDArray[np.intp]  # [n, blocks]
    bias: Floats  # [1, n, length, 1, keys]: 0 where a key is visible


@dataclass(slots=True)
class _Layer:
    qkv: Floats  # [hidden, (heads + 2 kv_heads) head_dim], norm weight and query scale folded in
    out: Floats  # [heads * head_dim, hidden]
    gate_up: Floats  # [hidden, 2 ffn], norm weight folded in
    down: Floats  # [ffn, hidden]


class Model:
    """Weights of one model folder (float16, bfloat16 or float32 on disk), ready to run.

    Exact but for the rounding of float32, which grows with the logits. On random weights (logits of about 1) they
    are those of transformers to 1e-5. On stratagem-mini (up to 29) they are 2e-4 off the float64 of transformers,
    whose own float32 is 1e-4 off. Sums are taken in another order for another shape, so batches differ from each
    other: by 2e-6 on random weights and by 5e-5 on stratagem-mini, where that changes one seeded draw in some
    millions.
    """

    def __init__(self, config: Config, weights: Mapping[str, Floats]) -> None:
        self.config = c = config
        # Rotary pairs (i, i + d/2) are made neighbours, so that a rotation is one complex product.
        pairs = np.arange(c.head_dim).reshape(2, -1).T.reshape(-1)

        def rotary(name: str, heads: int) -> Floats:
            w = weights[name].reshape(heads, c.head_dim, c.hidden)
            return w[:, pairs].reshape(heads * c.head_dim, c.hidden)

        def folded(rows: Sequence[Floats], norm: str) -> Floats:
            return np.ascontiguousarray((np.concatenate(rows) * weights[norm]).T)

        self.layers: list[_Layer] = []
        for i in range(c.layers):
            at = f"model.layers.{i}."
            q = rotary(f"{at}self_attn.q_proj.weight", c.heads) / np.float32(np.sqrt(c.head_dim))
            k = rotary(f"{at}self_attn.k_proj.weight", c.kv_heads)
            v = weights[f"{at}self_attn.v_proj.weight"]
            mlp = [weights[f"{at}mlp.{part}_proj.weight"] for part in ("gate", "up")]
            self.layers.append(
                _Layer(
                    qkv=folded([q, k, v], f"{at}input_layernorm.weight"),
                    out=np.ascontiguousarray(weights[f"{at}self_attn.o_proj.weight"].T),
                    gate_up=folded(mlp, f"{at}post_attention_layernorm.weight"),
                    down=np.ascontiguousarray(weights[f"{at}mlp.down_proj.weight"].T),
                )
            )
        self.embedding = weights["model.embed_tokens.weight"]
        head = self.embedding if c.tied else weights["lm_head.weight"]
        self.head = folded([head], "model.norm.weight")
        frequency = c.rope_theta ** (-np.arange(0, c.head_dim, 2) / c.head_dim)
        angle = np.arange(c.context)[:, None] * frequency
        self.rotation: NDArray[np.complex64] = np.exp(1j * angle).astype(np.complex64)[:, None, :]

    @classmethod
    def load(cls, folder: Path) -> Model:
        """Read config.json and model.safetensors.

        Raises:
            ConfigurationError: a file is missing, broken, or of another architecture.
        """
        config = read_config(folder)
        return cls(config, read_weights(folder, config))

    def new_cache(self, capacity: int) -> BlockCache:
        """A key-value cache of ``capacity`` blocks for this model."""
        c = self.config
        return BlockCache(c.layers, c.kv_heads, c.head_dim, capacity)

    def forward(self, chunks: Sequence[Chunk], cache: BlockCache) -> Floats:
        """Run chunks of different sequences at once; writes their keys and values into their blocks.

        Returns logits [sum of chunk.logits, vocabulary], in the order of ``chunks``.
        """
        c = self.config
        order = sorted(range(len(chunks)), key=lambda i: (len(chunks[i].tokens), chunks[i].start))
        batch = [chunks[i] for i in order]
        groups = _groups(batch, KV_BYTES // (2 * c.kv_heads * c.head_dim * 4))
        tokens = np.fromiter((t for chunk in batch for t in chunk.tokens), np.intp)
        positions = np.concatenate([np.arange(k.start, k.start + len(k.tokens)) for k in batch])
        slots = np.fromiter(
            (
                k.blocks[p // BLOCK] * BLOCK + p % BLOCK
                for k in batch
                for p in range(k.start, k.start + len(k.tokens))
            ),
            np.intp,
        )
        wanted = _wanted(chunks, batch, order)
        rows, d, share = len(tokens), c.head_dim, c.heads // c.kv_heads
        rotation = self.rotation[positions]
        rotated = (c.heads + c.kv_heads) * d
        # BLAS runs small products fastest in multiples of four rows, so queries are padded to that.
        queries = np.zeros((c.kv_heads, rows, -(-share // 4) * 4, d), np.float32)
        x: Floats = self.embedding[tokens]
        for number, layer in enumerate(self.layers):
            qkv = _normed(x, c.eps) @ layer.qkv
            qk = qkv[:, :rotated].reshape(rows, -1, d)
            turned = (qk.view(np.complex64) * rotation).view(np.float32)
            queries[:, :, :share] = turned[:, : c.heads].reshape(rows, c.kv_heads, share, d).swapaxes(0, 1)
            store = cache.data[number]
            flat = store.reshape(2 * c.kv_heads, -1, d)
            flat[: c.kv_heads, slots] = turned[:, c.heads :].swapaxes(0, 1)
            flat[c.kv_heads :, slots] = qkv[:, rotated:].reshape(rows, c.kv_heads, d).swapaxes(0, 1)
            mixed = np.empty((rows, c.kv_heads, share, d), np.float32)
            for group in groups:
                _attend(group, queries, store, mixed)
            attended = mixed.reshape(rows, -1)
            if number == c.layers - 1 and wanted is not None:
                x, attended = x[wanted], attended[wanted]
            x += attended @ layer.out
            gate_up = _normed(x, c.eps) @ layer.gate_up
            gate, up = gate_up[:, : c.ffn], gate_up[:, c.ffn :]
            act = np.negative(gate)
            np.exp(act, out=act)
            act += 1
            np.divide(gate, act, out=act)
            act *= up
            x += act @ layer.down
        return _normed(x, c.eps) @ self.head


def _normed(x: Floats, eps: float) -> Floats:
    """RMSNorm without its weight, which is folded into the matrix that follows."""
    mean = np.einsum("ij,ij->i", x, x) / np.float32(x.shape[1])
    scaled: Floats = x / np.sqrt(mean + np.float32(eps))[:, None]
    return scaled


def _wanted(chunks: Sequence[Chunk], batch: Sequence[Chunk], order: Sequence[int]) -> NDArray[np.intp] | None:
    """Rows whose logits are wanted, in the callers' order; None for all rows as they stand."""
    ends = dict(zip(order, accumulate(len(k.tokens) for k in batch), strict=True))
    rows = [row for i, k in enumerate(chunks) for row in range(ends[i] - k.logits, ends[i])]
    total = sum(len(k.tokens) for k in batch)
    return None if rows == list(range(total)) else np.array(rows, np.intp)


def _groups(batch: Sequence[Chunk], most: int) -> list[_Group]:
    """Cut a batch sorted by (length, start) where padding would cost more than one more pass, or where the
    keys of a group would be more than ``most``."""
    groups: list[_Group] = []
    first = begin = 0
    for i in range(1, len(batch) + 1):
        if i < len(batch) and _alike(batch[begin], batch[i], most // (i + 1 - begin)):
            continue
        part = batch[begin:i]
        length = len(part[0].tokens)
        blocks = -(-(part[-1].start + length) // BLOCK)
        table = np.zeros((len(part), blocks), np.intp)
        for row, chunk in zip(table, part, strict=True):
            used = -(-(chunk.start + length) // BLOCK)
            row[:used] = chunk.blocks[:used]
        start = np.array([chunk.start for chunk in part])
        seen = start[:, None] + np.arange(length)  # the last visible key of each query
        hidden = np.arange(blocks * BLOCK) > seen[:, :, None]
        bias = np.where(hidden, MASKED, np.float32(0))[None, :, :, None, :]
        groups.append(_Group(first, len(part), length, table, bias))
        first += len(part) * length
        begin = i
    return groups


def _alike(shortest: Chunk, chunk: Chunk, most: int) -> bool:
    length = len(chunk.tokens)
    padded = chunk.start >= 1.25 * shortest.start + 2 * BLOCK
    return length == len(shortest.tokens) and not padded and chunk.start + length <= most


def _attend(group: _Group, queries: Floats, store: Floats, mixed: Floats) -> None:
    """Attention of one group: reads ``queries`` [kv_heads, rows, padded share, d], writes ``mixed``
    [rows, kv_heads, share, d]."""
    kv_heads, _, padded, d = queries.shape
    share = mixed.shape[2]
    last = group.first + group.n * group.length
    q = queries[:, group.first : last].reshape(kv_heads, group.n, group.length * padded, d)
    kv = np.take(store, group.table, axis=1).reshape(2 * kv_heads, group.n, -1, d)
    weights = q @ kv[:kv_heads].swapaxes(2, 3)
    spread = weights.reshape(kv_heads, group.n, group.length, padded, -1)
    spread += group.bias
    weights -= weights.max(-1, keepdims=True)
    np.exp(weights, out=weights)
    out = (weights @ kv[kv_heads:]) / weights.sum(-1, keepdims=True)
    out = out.reshape(kv_heads, last - group.first, padded, d)[:, :, :share]
    mixed[group.first : last] = out.swapaxes(0, 1)
