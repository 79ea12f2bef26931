"""Log-probabilities of given continuations, read off vLLM's prompt log-probabilities.

vLLM could tell of single tokens in one answer for all (`logprob_token_ids`). In 0.32 that puts them in place of the
log-probabilities of all other requests in the same step, and fails where it guesses ahead; so it is not asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stratagem.backends._openai.failure import Malformed
from stratagem.backends._openai.wire import Dialect, chat, read_usage, reading, scored
from stratagem.core.backend import Message, TokenLogprob
from stratagem.core.errors import UnsupportedError
from stratagem.core.usage import Usage


def continued(messages: Sequence[Message], continuation: str) -> tuple[Message, ...]:
    """The conversation with the continuation as the (end of the) assistant's last message."""
    if messages and messages[-1].role == "assistant":
        last = messages[-1]
        return (*messages[:-1], replace(last, content=last.content + continuation))
    return (*messages, Message("assistant", continuation))


def body(messages: Sequence[Message], continuation: str, dialect: Dialect) -> dict[str, object]:
    """The request that scores one continuation. It decodes one token, since vLLM decodes no fewer."""
    asked = chat(continued(messages, continuation), dialect)
    return asked | {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}


def read(
    answer: object, prefix: Sequence[int] | None, continuation: str, model: str
) -> tuple[tuple[TokenLogprob, ...], Usage]:
    """The continuation's tokens, and the usage.

    `prefix` are the ids of the prompt without the continuation. Without them the tokens are told by their text.

    Raises:
        Malformed: the answer is not the protocol.
        UnsupportedError: the model's chat template changes the text.
    """
    with reading():
        usage = read_usage(answer.get("usage") if isinstance(answer, dict) else None)
        entries = scored(answer)
    if usage is None:
        raise Malformed("it has no usage")
    start = _start_by_text(entries, continuation) if prefix is None else _start_by_ids(entries, prefix)
    tokens = tuple(entry[1] for entry in entries[start:] if entry is not None)
    text = "".join(token.token for token in tokens)
    # A token may hold part of a character, which decodes to U+FFFD; and it may begin before the continuation.
    if "\ufffd" not in text and not text.rstrip().endswith(continuation.strip()):
        raise UnsupportedError(f"The chat template of {model} changes the text that is to be scored.")
    return tokens, usage


def _start_by_ids(entries: Sequence[tuple[int, TokenLogprob] | None], prefix: Sequence[int]) -> int:
    """The first position at which the scored prompt differs from the one without the continuation."""
    for position in range(1, min(len(entries), len(prefix))):
        entry = entries[position]
        if entry is not None and entry[0] != prefix[position]:
            return position
    return min(len(entries), len(prefix))


def _start_by_text(entries: Sequence[tuple[int, TokenLogprob] | None], continuation: str) -> int:
    """The position from which the last tokens' texts are as long as the continuation."""
    missing = len(continuation)
    position = len(entries)
    while missing > 0 and position > 1:
        position -= 1
        entry = entries[position]
        missing -= len(entry[1].token) if entry is not None else 0
    return position
