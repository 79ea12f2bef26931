"""A logits processor, for a vLLM server to load."""

from __future__ import annotations

from typing import Any

from vllm.v1.sample.logits_processor import (  # pyright: ignore[reportMissingImports]
    AdapterLogitsProcessor,
)


class Only(AdapterLogitsProcessor):
    """Lets a request decode nothing but the token that it names by ``only``."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: Any) -> Any:
        token = (params.extra_args or {}).get("only")
        if token is None:
            return None

        def apply(output: list[int], logits: Any) -> Any:
            kept = logits[token].clone()
            logits.fill_(float("-inf"))
            logits[token] = kept
            return logits

        return apply
