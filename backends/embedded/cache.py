"""Keys and values of all sequences, in blocks that sequences share by reference.

Block tables and prefix sharing follow PagedAttention (Kwon et al. 2023, https://arxiv.org/abs/2309.06180): a
full block is found again by the hash of all tokens up to its end, lives on after its last user, and is given
up least recently used first. Only the driver thread touches a cache.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

BLOCK = 16  # tokens


class BlockCache:
    """``capacity`` blocks of :data:`BLOCK` tokens each.

    ``data[layer]`` has the shape [2 * kv_heads, capacity, BLOCK, head_dim]: the key heads, then the value
    heads. Pages of memory are touched when a block is first used.
    """

    def __init__(self, layers: int, kv_heads: int, head_dim: int, capacity: int) -> None:
        self.data: NDArray[np.float32] = np.zeros(
            (layers, 2 * kv_heads, capacity, BLOCK, head_dim), np.float32
        )
        self.capacity = capacity
        self._fresh = 0  # blocks from here on have never been used
        self._free: list[int] = []
        self._users = [0] * capacity
        self._key: dict[int, bytes] = {}  # of a full block
        self._block: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # full blocks without users, oldest first

    @property
    def active(self) -> int:
        """Blocks in use by sequences."""
        return self._fresh - len(self._free) - len(self._idle)

    @property
    def cached(self) -> int:
        """Blocks kept for reuse only."""
        return len(self._idle)

    def take(self) -> int:
        """A block for one user.

        Raises:
            MemoryError: all blocks are in use.
        """
        if self._free:
            block = self._free.pop()
        elif self._fresh < self.capacity:
            block = self._fresh
            self._fresh += 1
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            del self._block[self._key.pop(block)]
        else:
            raise MemoryError(f"all {self.capacity} KV blocks are in use")
        self._users[block] = 1
        return block

    def release(self, blocks: Sequence[int]) -> None:
        """Give blocks back; of those kept for reuse, the end of a sequence is given up before its start."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                if block in self._key:
                    self._idle[block] = None
                else:
                    self._free.append(block)

    def share(self, blocks: Sequence[int], length: int) -> list[int]:
        """A second sequence's table of the first ``length`` tokens: full blocks shared, the last one copied."""
        full, rest = divmod(length, BLOCK)
        own = [self.take()] if rest else []
        for block in own:
            self.data[:, :, block, :rest] = self.data[:, :, blocks[full], :rest]
        for block in blocks[:full]:
            self._users[block] += 1
        return [*blocks[:full], *own]

    def lookup(self, tokens: Sequence[int]) -> tuple[list[int], list[bytes]]:
        """Blocks that hold the longest known prefix of ``tokens``, now in use, and their keys."""
        blocks: list[int] = []
        keys: list[bytes] = []
        for end in range(BLOCK, len(tokens) + 1, BLOCK):
            key = _key(keys[-1] if keys else b"", tokens[end - BLOCK : end])
            if (block := self._block.get(key)) is None:
                break
            if not self._users[block]:
                del self._idle[block]
            self._users[block] += 1
            blocks.append(block)
            keys.append(key)
        return blocks, keys

    def commit(self, tokens: Sequence[int], blocks: Sequence[int], keys: list[bytes], length: int) -> None:
        """Make the full blocks among the first ``length`` tokens findable; extends ``keys``."""
        while (end := (len(keys) + 1) * BLOCK) <= length:
            key = _key(keys[-1] if keys else b"", tokens[end - BLOCK : end])
            block = blocks[len(keys)]
            if key not in self._block:  # else a twin computed at the same time is the one that is found
                self._block[key] = block
                self._key[block] = key
            keys.append(key)


def _key(before: bytes, tokens: Sequence[int]) -> bytes:
    return blake2b(before + array("i", tokens).tobytes(), digest_size=16).digest()
