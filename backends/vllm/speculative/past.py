"""Past runs as a datastore: what models wrote in them, out of journals, traces and plain texts."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path

from tokenizers import Tokenizer

from stratagem.backends._replay.codec import load_completion
from stratagem.backends.vllm.speculative.datastore import Datastore
from stratagem.core.errors import ConfigurationError, StoreError
from stratagem.core.trace import CompletionArrived

_SQLITE = b"SQLite format 3\0"
_BEGUN = re.compile(rb'\{"number": ?\d+, ?"at": ?')  # an event of a trace, of which the rest may be missing


def collected(model: str | Path, files: Iterable[str | Path]) -> Datastore:
    """The completions in these files as tokens of this model.

    Args:
        model: a folder with its tokenizer.json, or a name on the Hugging Face hub.
        files: journals and caches (SQLite), traces (JSON lines), and texts, of which each is one sequence.

    Raises:
        ConfigurationError: a file or the tokenizer cannot be read, or there is no completion in all of them.
    """
    tokenizer = _tokenizer(model)

    def encoded(text: str) -> list[int]:
        # Half of a surrogate pair, which a server's JSON may hold, is no text to the tokenizer.
        return tokenizer.encode(text.encode(errors="replace").decode(), add_special_tokens=False).ids

    made = Datastore.of(
        (encoded(text) for path in files for text in texts(Path(path)) if text.strip()), _digest(tokenizer)
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
            head = file.readline()
        if head.startswith(_SQLITE):
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
                for (value,) in database.execute("SELECT value FROM stratagem_calls"):
                    yield from _journaled(value)
        elif _is_event(head):
            yield from _traced(path)
        else:
            yield path.read_text(encoding="utf-8")
    except (OSError, sqlite3.Error, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from error


def _journaled(value: str) -> Iterator[str]:
    """The text of a kept completion; none for scores, which are kept beside them and were decoded by nobody."""
    with suppress(StoreError):
        yield load_completion(value, 0)[0].text


def _is_event(line: bytes) -> bool:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return _BEGUN.match(line) is not None
    return isinstance(event, dict) and {"type", "run_id"} <= event.keys()


def _traced(path: Path) -> Iterator[str]:
    """The completions of a trace. What a kill has cut off in its last line, in mid-character even, is left out."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
            text = event["text"] if event["type"] == CompletionArrived.type else None
            if not isinstance(text, str | None):
                raise TypeError("it is no text")
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                return
            raise ConfigurationError(
                f"{path}:{number} is no event of a trace.",
                remedy="Take out that line, or give a file that --trace wrote.",
            ) from None
        if text is not None:
            yield text


def vocabulary_of(model: str | Path) -> str:
    """The digest of its tokens and their ids. Raises ConfigurationError where its tokenizer cannot be read."""
    return _digest(_tokenizer(model))


def _digest(tokenizer: Tokenizer) -> str:
    told = json.dumps(tokenizer.get_vocab(with_added_tokens=True), sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


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
