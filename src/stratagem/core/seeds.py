"""Seeds that follow from other seeds, the same in every process and version of Python."""

from __future__ import annotations

import hashlib


def derive(*parts: object) -> int:
    """A seed in [0, 2^31) from anything printable: BLAKE2b of the parts, joined by ``/``."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
