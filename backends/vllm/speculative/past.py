"""Past runs as a datastore: what models wrote in them, out of journals, traces and plain texts."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from stratagem.backends._replay.codec import load_completion
from stratagem.backends.vllm.speculative.datastore import Datastore
from stratagem.core.errors import ConfigurationError, StoreError
from stratagem.core.trace import CompletionArrived

_SQLITE = b"SQLite format 3\0"


def collected(model: str | Path, files: Iterable[str | Path]) -> Datastore:
    """The completions in these files as tokens of this model.

    Args:
        model: a folder with its tokenizer.json, or a name on the Hugging Face hub.
        files: journals and caches (SQLite), traces (JSON lines), and texts, of which each is one sequence.

    Raises:
        ConfigurationError: a file or the tokenizer cannot be read, or there is no completion in all of them.
    """
    encode = _tokenizer(model).encode
    made = Datastore.of(
        encode(text, add_special_tokens=False).ids
        for path in files
        for text in texts(Path(path))
        if text.strip()
    )
    if not made.sequences:
        raise ConfigurationError(
            "There is no completion in these files.", remedy="Give journals, traces or texts of past runs."
        )
    return made


def texts(path: Path) -> Iterator[str]:
    """What was decoded, in one such file. Raises ConfigurationError."""
    try:
        with path.open("rb") as file:
            journal = file.read(len(_SQLITE)) == _SQLITE
        if journal:
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
                for (value,) in database.execute("SELECT value FROM stratagem_calls"):
                    yield from _journaled(value)
            return
        text = path.read_text(encoding="utf-8")
    except (OSError, sqlite3.Error, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from error
    lines = [_object(line) for line in text.splitlines() if line.strip()]
    if lines and all("type" in line for line in lines):
        yield from (line["text"] for line in lines if line["type"] == CompletionArrived.type)
    else:
        yield text


def _journaled(value: str) -> Iterator[str]:
    """The text of a kept completion; none for scores, which are kept beside them and were decoded by nobody."""
    try:
        text = load_completion(value, 0)[0].text
    except StoreError:
        return
    if isinstance(text, str):
        yield text


def _object(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _tokenizer(model: str | Path) -> Tokenizer:
    folder = Path(model)
    try:
        if folder.is_dir():
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
        return Tokenizer.from_pretrained(str(model))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ConfigurationError(
            f"There is no tokenizer of {model}: {error}.",
            remedy="Give a folder with a tokenizer.json, or a name on the Hugging Face hub.",
        ) from error
