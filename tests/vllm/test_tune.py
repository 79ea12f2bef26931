"""A search on real servers, interrupted from the keyboard and gone on with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_kit import MINI, gone_afterwards

pytestmark = pytest.mark.vllm


def searching(out: Path, *options: str) -> subprocess.Popen[str]:
    """`stratagem vllm tune` for one setting, on few short requests."""
    workload = ["--limit", "8", "-n", "2", "--max-tokens", "24", "--concurrency", "8", "--repeats", "1"]
    search = ["--search", "max_num_seqs", "--trials", "3", "--out", str(out)]
    flags = ["--", "--max-model-len", "1024", "--kv-cache-memory-bytes", str(2**28), "--dtype", "float32"]
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "stratagem.cli", "vllm", "tune", str(MINI)),
            *workload,
            *search,
            *options,
            *flags,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kept(out: Path) -> list[str]:
    return (out / "trials.jsonl").read_text().splitlines()


def test_three_trials_with_an_interruption(tmp_path: Path) -> None:
    out = tmp_path / "tuning"
    with searching(out) as process:
        assert process.stderr is not None
        told = next(line for line in process.stderr if "1/3" in line)
        assert "max_num_seqs=8: " in told, "the profile itself"
        # By then the second trial's guard runs, or is about to.
        with gone_afterwards(process.pid, 0):
            process.send_signal(signal.SIGINT)
            process.communicate()
        assert process.returncode == 130
    before = kept(out)
    assert len(before) == 2, "the header and one trial"

    again = searching(out, "--json", "--latency", "1000")
    text, errors = again.communicate()
    assert again.returncode == 0, errors
    assert kept(out)[:2] == before, "what was measured stays"
    found: dict[str, Any] = json.loads(text)
    assert [trial["number"] for trial in found["trials"]] == [0, 1, 2]
    assert len({trial["values"]["max_num_seqs"] for trial in found["trials"]}) == 3
    speeds = [trial["measurement"]["throughput"] for trial in found["trials"]]
    assert all(trial["measurement"]["latency"] > 0 for trial in found["trials"])
    assert found["within"]
    assert speeds[found["best"]] == max(speeds) > 0
    seqs = found["trials"][found["best"]]["values"]["max_num_seqs"]
    assert f"--max-num-seqs {seqs} " in found["command"]
    assert "--max-model-len 1024" in found["command"]
    assert (out / "landscape.png").read_bytes().startswith(b"\x89PNG")

    table = searching(out)
    text, errors = table.communicate()
    assert table.returncode == 0, errors
    assert len(errors.splitlines()) == 3, "the trials that are there; no server is started"
    assert [line for line in text.splitlines() if "the profile itself" in line]
    assert found["command"] in text
    assert str(out / "landscape.png") in text
    strict = searching(out, "--latency", "1e-6")
    text, errors = strict.communicate()
    assert strict.returncode == 1, errors
    assert "None of 3 is within 1e-06 s" in text
