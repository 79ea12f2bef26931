"""Requests as the protocol has them, and answers read back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from stratagem.backends._openai.failure import Malformed
from stratagem.core.backend import (
    Capabilities,
    Completion,
    Constraint,
    Finish,
    Message,
    Request,
    TokenLogprob,
)
from stratagem.core.errors import RejectedError, UnsupportedError
from stratagem.core.native import closed, opened, read_call
from stratagem.core.usage import Prices, Usage

MAX_GROUP = 128  # the most completions that OpenAI gives to one request


@dataclass(frozen=True, slots=True)
class Dialect:
    """What was found out about a server and one of its models."""

    caps: Capabilities
    vllm: bool = False
    tokenize: bool = False  # it has vLLM's /tokenize
    limit_name: str = "max_tokens"  # OpenAI's own newer models take max_completion_tokens only


def chat(messages: Sequence[Message], dialect: Dialect, tools: str = "") -> dict[str, Any]:
    """The part of a request that says what is asked. A trailing assistant message is continued.

    Raises UnsupportedError where the server cannot do that, RejectedError for what cannot be sent as UTF-8.
    """
    for message in messages:
        try:
            message.content.encode()
        except UnicodeEncodeError as error:
            raise RejectedError(f"A message is not text that can be sent: {error}.") from error
    body: dict[str, Any] = {
        "model": dialect.caps.model,
        "messages": _messages(messages) if tools else [_plain(m) for m in messages],
    }
    if tools:
        body["tools"] = json.loads(tools)
    if messages and messages[-1].role == "assistant":
        if not dialect.caps.continue_final:
            raise UnsupportedError(
                f"The server of {dialect.caps.model} cannot continue an assistant's message.",
                remedy="Use a vLLM server or the embedded model, or end the conversation with a user's message.",
            )
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return body


def _plain(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content}


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages whose calls of tools stand in fields of their own."""
    sent: list[dict[str, Any]] = []
    waiting: list[str] = []  # ids of calls without a result yet
    for number, message in enumerate(messages):
        if message.role == "tool":
            sent.append(_plain(message) | {"tool_call_id": waiting.pop(0) if waiting else f"call_{number}"})
            continue
        calls: list[dict[str, Any]] = []
        text: list[str] = []
        for line in message.content.split("\n") if message.role == "assistant" else ():
            found = read_call(line)
            if found is None:
                text.append(line)
                continue
            name, arguments = found
            function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
            calls.append({"id": f"call_{number}_{len(calls)}", "type": "function", "function": function})
        if calls:
            waiting = [str(call["id"]) for call in calls]
            sent.append(
                {"role": "assistant", "content": "\n".join(text).strip() or None, "tool_calls": calls}
            )
        else:
            sent.append(_plain(message))
    return sent


def completion(
    request: Request, indices: Sequence[int], dialect: Dialect, *, stream: bool, every: int
) -> dict[str, Any]:
    """The body that asks for the completions `indices` (consecutive where there is a seed), told, where they are
    streamed by vLLM, in chunks of `every` tokens.

    Raises UnsupportedError for what the server is known not to do.
    """
    caps = dialect.caps
    body = chat(request.messages, dialect, request.tools)
    if not request.calls:
        body["tool_choice"] = "none"  # the tools stay in the prompt, which so stays in the prefix cache
    body[dialect.limit_name] = request.max_tokens
    body["top_p"] = request.top_p
    if len(indices) > 1:
        body["n"] = len(indices)
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.seed is not None:
        body["seed"] = request.seed + indices[0]
    if request.stop:
        body["stop"] = list(request.stop)
    if request.logprobs is not None:
        if request.logprobs > caps.logprobs:
            able = f"at most {caps.logprobs}" if caps.logprobs >= 0 else "no"
            raise UnsupportedError(
                f"{caps.model} gives {able} log-probabilities of a token; {request.logprobs} were asked for."
            )
        body |= {"logprobs": True, "top_logprobs": request.logprobs}
    if request.constraint is not None:
        body |= _constraint(request.constraint, dialect)
    if request.processors:
        if not dialect.vllm:
            raise UnsupportedError(f"{caps.model} has no logits processors to ask for.", remedy="vLLM has.")
        body["vllm_xargs"] = json.loads(request.processors)
    if dialect.vllm and not stream:
        # They are how many tokens each completion has; a stream counts for itself.
        body["return_token_ids"] = True
    if stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
        if dialect.vllm:
            body["stream_options"]["continuous_usage_stats"] = True
            body["stream_interval"] = every
    return body


def _constraint(constraint: Constraint, dialect: Dialect) -> dict[str, Any]:
    caps = dialect.caps
    if constraint.type not in caps.constraints:
        able = ", ".join(sorted(caps.constraints)) or "none"
        raise UnsupportedError(
            f"{caps.model} cannot constrain its answer by {constraint.type}.", remedy=f"It can by: {able}."
        )
    value = constraint.decoded() if constraint.type in ("choice", "json") else constraint.value
    if dialect.vllm:
        return {"structured_outputs": {constraint.type: value}}
    schema = {"name": "answer", "schema": value, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


@contextmanager
def reading() -> Iterator[None]:
    """Turns whatever goes wrong while an answer is taken apart into Malformed."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise Malformed(f"{type(error).__name__}: {error}") from error


@dataclass(slots=True)
class Draft:
    """A completion that is arriving. `count` is exact when `counted`, else at most what has been decoded."""

    index: int
    text: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)
    count: int = 0
    counted: bool = False
    finish: Finish | None = None
    call: int | None = None  # the native call that is arriving
    given: bool = False  # arguments of that call have begun

    def take(self, text: str, calls: Sequence[CallPart] = ()) -> None:
        """Add what has arrived."""
        self.text += text
        for part in calls:
            if part.index != self.call:
                self.close()
                self.text += "\n" * bool(self.text) + opened(part.name)
                self.call, self.given = part.index, False
            self.text += part.arguments
            self.given = self.given or bool(part.arguments)

    def close(self) -> None:
        """End the native call that is arriving, if one is."""
        if self.call is not None:
            self.text += closed(empty=not self.given)
            self.call = None

    def done(self) -> Completion:
        """The finished completion."""
        assert self.finish is not None
        return Completion(self.index, self.text, self.finish, self.count, tuple(self.tokens))


@dataclass(frozen=True, slots=True)
class CallPart:
    """A piece of a native call: its name comes first, its arguments in pieces of JSON."""

    index: int
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Delta:
    """What one chunk of a stream adds to one completion."""

    slot: int  # position among the completions that the request asked for
    text: str
    tokens: tuple[TokenLogprob, ...]
    count: int | None  # tokens of this completion so far, where the server says so
    finish: Finish | None
    calls: tuple[CallPart, ...] = ()


def read_whole(body: object, indices: Sequence[int]) -> tuple[list[Draft], Usage]:
    """The completions of a plain answer with their usage (no money yet). There may be fewer than asked for.

    Raises Malformed.
    """
    data = _mapping(body, "the answer")
    usage = read_usage(data.get("usage"))
    if usage is None:
        raise Malformed("it has no usage")
    drafts: list[Draft] = []
    for choice in _list(data.get("choices"), "choices")[: len(indices)]:
        entry = _mapping(choice, "a choice")
        message = _mapping(entry.get("message"), "a message")
        text = message.get("content")
        tokens = _logprobs(entry.get("logprobs"))
        draft = Draft(indices[_slot(entry, indices)], tokens=list(tokens))
        draft.take(text if isinstance(text, str) else "", _calls(message))
        draft.close()
        draft.finish = _finish(entry.get("finish_reason")) or "stop"
        ids = entry.get("token_ids")
        if isinstance(ids, list):
            draft.count, draft.counted = len(ids), True
        drafts.append(draft)
    if not drafts:
        raise Malformed("it has no choices")
    if len({draft.index for draft in drafts}) != len(drafts):
        raise Malformed("two choices have the same index")
    _apportion(drafts, usage.completion_tokens)
    return sorted(drafts, key=lambda draft: draft.index), usage


def _apportion(drafts: list[Draft], total: int) -> None:
    """Gives completions that the server did not count their share of the total, by length of text."""
    if all(draft.counted for draft in drafts):
        return
    if all(draft.tokens for draft in drafts):
        for draft in drafts:
            draft.count = len(draft.tokens)
        return
    weights = [len(draft.text.encode("utf-8", "surrogatepass")) + 1 for draft in drafts]
    given = 0
    for i, draft in enumerate(drafts):
        upto = round(total * sum(weights[: i + 1]) / sum(weights))
        draft.count, given = upto - given, upto


def read_chunk(chunk: object, want_logprobs: bool) -> tuple[list[Delta], Usage | None, bool]:
    """What a chunk of a stream adds; its usage, and whether that is of the whole request. Raises Malformed."""
    data = _mapping(chunk, "a chunk")
    usage = read_usage(data.get("usage"))
    choices = _list(data.get("choices"), "choices")
    deltas: list[Delta] = []
    for choice in choices:
        entry = _mapping(choice, "a choice")
        slot = entry.get("index")
        if not isinstance(slot, int):
            raise Malformed("a choice has no index")
        delta = _mapping(entry.get("delta"), "a delta")
        content = delta.get("content")
        finish = _finish(entry.get("finish_reason"))
        tokens = _logprobs(entry.get("logprobs")) if want_logprobs else ()
        count = usage.completion_tokens if usage is not None and len(choices) == 1 else None
        text = content if isinstance(content, str) else ""
        deltas.append(Delta(slot, text, tokens, count, finish, _calls(delta)))
    return deltas, usage, not choices


def _calls(message: Mapping[str, Any]) -> tuple[CallPart, ...]:
    parts: list[CallPart] = []
    for position, call in enumerate(message.get("tool_calls") or ()):
        entry = _mapping(call, "a call of a tool")
        function = _mapping(entry.get("function"), "the function of a call")
        index = entry.get("index", position)
        if not isinstance(index, int):
            raise Malformed("a call of a tool has no index")
        # New lines are between tokens of JSON, and a call is a line.
        arguments = str(function.get("arguments") or "").replace("\n", " ")
        parts.append(CallPart(index, str(function.get("name") or ""), arguments))
    return tuple(parts)


def read_usage(value: object) -> Usage | None:
    """Token counts (one call, no money), if there are any. Raises Malformed."""
    if not isinstance(value, Mapping) or value.get("prompt_tokens") is None:
        return None
    details = value.get("prompt_tokens_details")
    cached = _count(details, "cached_tokens") if isinstance(details, Mapping) else 0
    return Usage(
        _count(value, "prompt_tokens"), _count(value, "completion_tokens"), cached_tokens=cached, calls=1
    )


def _count(value: Mapping[str, Any], key: str) -> int:
    count = value.get(key)
    if count is None:
        return 0
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise Malformed(f"{key} is {count!r}")
    return count


def priced(usage: Usage, prices: Prices, *, uncertain_prompt: int = 0) -> Usage:
    """The usage with its money, at the upper end of what is uncertain (`uncertain_prompt` of it is prompt)."""
    prompt = usage.prompt_tokens + uncertain_prompt
    decoded = usage.completion_tokens + usage.uncertain_tokens - uncertain_prompt
    return replace(usage, money=prices.of(prompt, decoded))


def scored(body: object) -> list[tuple[int, TokenLogprob] | None]:
    """vLLM's `prompt_logprobs`: per prompt token its id and log-probability. Raises Malformed."""
    out: list[tuple[int, TokenLogprob] | None] = []
    for item in _list(_mapping(body, "the answer").get("prompt_logprobs"), "prompt_logprobs"):
        if item is None:
            out.append(None)
            continue
        entries = _mapping(item, "a prompt token")
        # With prompt_logprobs=0 the only entry is the prompt's own token.
        token_id, entry = next(iter(entries.items()))
        named = _mapping(entry, "a log-probability")
        logprob = TokenLogprob(str(named.get("decoded_token") or ""), float(named["logprob"]))
        out.append((int(token_id), logprob))
    return out


def _logprobs(value: object) -> tuple[TokenLogprob, ...]:
    content = value.get("content") if isinstance(value, Mapping) else None
    if not isinstance(content, list):
        return ()
    tokens = []
    for item in content:
        entry = _mapping(item, "a token")
        top = [(str(t["token"]), float(t["logprob"])) for t in entry.get("top_logprobs") or ()]
        top.sort(key=lambda pair: -pair[1])
        tokens.append(TokenLogprob(str(entry.get("token")), float(entry["logprob"]), tuple(top)))
    return tuple(tokens)


def _finish(value: object) -> Finish | None:
    if value is None:
        return None
    if value == "abort":
        raise Malformed("the server aborted the request itself")
    return "length" if value == "length" else "stop"


def _slot(entry: Mapping[str, Any], indices: Sequence[int]) -> int:
    slot = entry.get("index")
    if not isinstance(slot, int) or not 0 <= slot < len(indices):
        raise Malformed(f"a choice has the index {slot!r}")
    return slot


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Malformed(f"{what} is {type(value).__name__}, not an object")
    return value


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise Malformed(f"{what} is {type(value).__name__}, not a list")
    return value
