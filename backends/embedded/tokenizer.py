"""Text to tokens and back, for the chat format of the shipped model family.

``<|user|>{content}<|end|><|assistant|>{content}<|end|>...``: role tokens, no newlines, no BOS. A trailing
assistant message is continued; otherwise ``<|assistant|>`` is appended. What stands inside a message is
always text: a message cannot forge a role token.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer

from stratagem.core.errors import ConfigurationError, RejectedError, UnsupportedError

SPECIAL = ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
ROLES = ("system", "user", "assistant")
LONG = 3000  # characters that take about 1 ms to encode


def _byte_of_char() -> dict[str, int]:
    """The byte-level BPE alphabet: printable Latin-1 stands for itself, the rest is moved to U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in printable}
    moved = (b for b in range(256) if b not in set(printable))
    table.update({chr(0x100 + i): b for i, b in enumerate(moved)})
    return table


class Tokenizer:
    """Byte-level BPE of a model folder (``tokenizer.json``).

    Raises:
        ConfigurationError: the folder has no such file, or it is not of this tokenizer family.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        try:
            self.json = path.read_text(encoding="utf-8")
            self._plain = FastTokenizer.from_str(self.json)
        except OSError as error:
            raise ConfigurationError(
                f"The model folder {folder} has no readable tokenizer.json ({error.strerror}).",
                remedy="Give a folder with config.json, model.safetensors and tokenizer.json.",
            ) from error
        except Exception as error:  # the tokenizers library raises bare Exception
            raise ConfigurationError(f"{path} is not a tokenizer: {error}.") from error
        self._plain.encode_special_tokens = True
        vocabulary = self._plain.get_vocab(with_added_tokens=True)
        ids = {token: vocabulary[token] for token in SPECIAL if token in vocabulary}
        missing = [token for token in SPECIAL if token not in ids]
        alphabet = _byte_of_char()
        foreign = [t for t in vocabulary if t not in ids and not all(c in alphabet for c in t)]
        if missing or foreign:
            why = f"lacks {', '.join(missing)}" if missing else f"has the token {foreign[0]!r}"
            raise ConfigurationError(
                f"{path} {why}: the embedded engine takes byte-level BPE with the tokens {', '.join(SPECIAL)}.",
                remedy="Serve other models with vLLM and connect to its URL.",
            )
        self.end: int = ids["<|end|>"]
        self._role = {role: ids[f"<|{role}|>"] for role in ROLES}
        self.bytes: list[bytes] = [b""] * (max(vocabulary.values()) + 1)  # by id; special tokens have none
        for token, number in vocabulary.items():
            if token not in ids:
                self.bytes[number] = bytes(alphabet[c] for c in token)

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text; what looks like a special token is text too.

        Raises:
            RejectedError: the text has a lone surrogate.
        """
        try:
            if len(text) < LONG:
                return list(self._plain.encode(text, add_special_tokens=False).ids)
            # Unlike encode() this lets go of the interpreter meanwhile.
            [encoded] = self._plain.encode_batch([text], add_special_tokens=False)
            return list(encoded.ids)
        except TypeError as error:
            raise RejectedError("The text has a lone surrogate, which is no character.") from error

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens; special tokens have none, bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.bytes[t] for t in tokens).decode("utf-8", "replace")

    def render(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        """Tokens of a conversation, (role, content) each, ready for the assistant's next token.

        Raises:
            UnsupportedError: the chat format has no such role.
        """
        out: list[int] = []
        for role, content in turns:
            if role not in self._role:
                raise UnsupportedError(
                    f"The model's chat format has no role {role!r}.", remedy=f"Use one of {', '.join(ROLES)}."
                )
            out.append(self._role[role])
            out += self.encode(content)
            out.append(self.end)
        if turns and turns[-1][0] == "assistant":
            out.pop()
        else:
            out.append(self._role["assistant"])
        return out


class TextStream:
    """Text of a sequence as its tokens come.

    Holds back a character until all its bytes are there, and text that may turn out to begin a stop string.
    """

    __slots__ = ("_decoder", "_longest", "_pending", "_stops", "text")

    def __init__(self, stops: Sequence[str]) -> None:
        self.text = ""  # released so far
        self._pending = ""
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> tuple[str, bool]:
        """Add a token's bytes; returns the text released by it and whether a stop string came."""
        return self._add(data, last=False)

    def end(self, *, cut: bool) -> str:
        """Release the rest. Bytes that wait for the rest of their character become U+FFFD, or, where the text
        is ``cut`` short, nothing: so it is a beginning of the longer text."""
        if cut:
            self._decoder.reset()
        return self._add(b"", last=True)[0]

    def _add(self, data: bytes, *, last: bool) -> tuple[str, bool]:
        self._pending += self._decoder.decode(data, last)
        cut = min((at for s in self._stops if (at := self._pending.find(s)) >= 0), default=-1)
        if cut >= 0:
            return self._release(cut), True
        return self._release(len(self._pending) - (0 if last else self._held())), False

    def _held(self) -> int:
        """Length of the longest end of the pending text that begins a stop string."""
        for k in range(min(len(self._pending), self._longest - 1), 0, -1):
            if any(s.startswith(self._pending[-k:]) for s in self._stops):
                return k
        return 0

    def _release(self, count: int) -> str:
        released, self._pending = self._pending[:count], self._pending[count:]
        self.text += released
        return released
