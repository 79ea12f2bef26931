"""What the tests of the bench share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from stratagem.bench.results import Results
from stratagem.bench.summary import summarise

COSTS = ("seconds", "tokens", "completion_tokens", "calls", "money")


def figures(results: Results, *, without: Sequence[str] = ("seconds",)) -> bytes:
    """All statistics but those of time."""
    summary = asdict(summarise(results))
    for row in summary["rows"]:
        for key in without:
            del row[key]
    return json.dumps(summary).encode()


def keys(out: Path) -> Counter[tuple[str, str, int]]:
    """How often each cell stands in the file."""
    cells = map(json.loads, (out / "results.jsonl").read_text().splitlines())
    return Counter((c["problem"], c["strategy"], c["seed"]) for c in cells)
