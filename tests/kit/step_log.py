"""Inside a vLLM server: writes when each step begins and how many sequences are in it, to the file STEP_LOG.

Changes no text. Started with ``--logits-processors step_log:StepLog``; the lines are monotonic nanoseconds and a
count.
"""

from __future__ import annotations

import os
import time
from importlib import import_module
from pathlib import Path
from typing import Any

# vLLM is not where the types are checked.
LogitsProcessor: Any = import_module("vllm.v1.sample.logits_processor").LogitsProcessor


class StepLog(LogitsProcessor):
    """What vLLM calls a logits processor: it is told of the batch before each step."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        self._file = Path(os.environ["STEP_LOG"]).open("a", buffering=1)  # noqa: SIM115 - as long as the server
        self._size = 0

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Any will do."""

    def is_argmax_invariant(self) -> bool:
        """Greedy text never changes."""
        return True

    def apply(self, logits: Any) -> Any:
        """As they are."""
        return logits

    def update_state(self, batch_update: Any) -> None:
        """Before each step; with an update if other sequences are in it than in the last."""
        if batch_update is not None:
            self._size = batch_update.batch_size
        self._file.write(f"{time.monotonic_ns()} {self._size}\n")
