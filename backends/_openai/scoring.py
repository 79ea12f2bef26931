"""Log-probabilities of given continuations, read off vLLM's prompt log-probabilities; of single tokens, off the
next token's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

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


MOST_LABELS = 128  # that vLLM tells of in one answer
SHORT = 16  # characters of what may be one token


def labels_body(messages: Sequence[Message], ids: Sequence[int], dialect: Dialect) -> dict[str, Any]:
    """The request for the log-probabilities of these tokens as the next one.

    Unlike prompt log-probabilities it has the prompt from the prefix cache, and it is one for all.
    """
    asked = {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "return_tokens_as_token_ids": True}
    return chat(messages, dialect) | asked | {"logprob_token_ids": list(ids)}


def read_labels(answer: Any, ids: Sequence[int]) -> tuple[dict[int, float] | None, Usage]:
    """The log-probability of each token, and the usage; ``None`` from a vLLM that does not know what it is asked.

    Raises Malformed where the answer is not the protocol.
    """
    with reading():
        usage = read_usage(answer.get("usage"))
        [step] = answer["choices"][0]["logprobs"]["content"]
        told = {str(each["token"]): float(each["logprob"]) for each in (*step["top_logprobs"], step)}
    if usage is None:
        raise Malformed("it has no usage")
    found = {each: told.get(f"token_id:{each}") for each in ids}
    known = {each: logprob for each, logprob in found.items() if logprob is not None}
    return (known if len(known) == len(found) else None), usage


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
