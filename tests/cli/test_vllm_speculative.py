"""Speculative methods and datastores on the command line; nothing here needs vLLM."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from stratagem.backends.embedded.backend import MINI
from stratagem.backends.vllm.profiles import DATASTORE, OWN


def test_a_datastore_is_made_and_named(inside: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("Ana has 3 apples.")
    made = inside("vllm", "datastore", str(MINI), "notes.txt")
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.startswith("runs.npz: 1 sequences, ")
    how = ["--speculative", "retrieval", "--datastore", "runs.npz"]
    printed = inside("vllm", "serve", "a-model", "--print", *how)
    assert printed.returncode == 0
    words = shlex.split(printed.stdout)
    assert json.loads(words[words.index("--speculative-config") + 1])["model"] == OWN["retrieval"]
    assert json.loads(words[words.index("--additional-config") + 1]) == {DATASTORE: "runs.npz"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "a-model", "--print", "--speculative", "magic"], "no speculative method 'magic'"),
        (["serve", "a-model", "--print", "--datastore", "none.npz"], "no file none.npz"),
        (["serve", "a-model", "--print", "--speculative", "retrieval"], "needs a datastore"),
        (["datastore", str(MINI), "no-such-file"], "no-such-file cannot be read"),
        (["datastore", "docs", "pyproject.toml"], "no tokenizer of docs"),
    ],
)
def test_what_cannot_be_is_one_error(inside: Any, arguments: list[str], message: str) -> None:
    done = inside("vllm", *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
