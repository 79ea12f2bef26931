"""Answers: what is decoded for each choice, and the bodies and stream chunks that carry it."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from stratagem.testing._server.text import (
    EOS,
    POOLING,
    SimCompletion,
    SimRequest,
    Vocabulary,
    alternatives,
    logprob,
    tokenize,
    tool_calls,
)
from stratagem.testing._server.wire import Body, Endpoint, Flavour


@dataclass(frozen=True, slots=True)
class Token:
    """A decoded token: its piece, the text it adds, its log-probability and the alternatives asked for."""

    piece: str
    text: str
    logprob: float
    top: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Choice:
    """All that will be decoded for one choice. `text` ends before the stop string; `ends[k]` is the length of
    the first k tokens' text."""

    index: int
    prefix: str
    tokens: tuple[Token, ...]
    ends: tuple[int, ...]
    text: str
    finish: str
    stop_reason: str | None
    hold: int
    head: tuple[float, ...] = ()

    def visible(self, decoded: int) -> int:
        """How many characters may be shown: what could begin a stop string is held back."""
        if decoded >= len(self.tokens):
            return len(self.text)
        return min(len(self.text), max(0, self.ends[decoded] - self.hold))


def plan(flavour: Flavour, request: SimRequest, completion: SimCompletion, index: int, body: Body) -> Choice:
    """Applies max_tokens, stop strings and the end token to what the responder said."""
    pieces = tokenize(completion.text)
    previous = request.prompt_tokens[-1] if request.prompt_tokens else ""
    values = completion.logprobs or [
        logprob(before, piece) for before, piece in zip([previous, *pieces], pieces, strict=False)
    ]
    tokens = []
    for i, (piece, value) in enumerate(zip(pieces, values, strict=True)):
        count = request.top_logprobs or 0
        given = completion.top[i] if completion.top is not None else alternatives(piece, value, count)
        tokens.append(Token(piece, piece, value, dict(list(given.items())[:count])))
    finish, stop_reason, text = "stop", None, completion.text
    if flavour == "vllm" and len(tokens) < request.max_tokens:
        # vLLM counts the end token as decoded; it adds no text.
        value = logprob(pieces[-1] if pieces else previous, EOS)
        tokens.append(Token(EOS, "", value, alternatives(EOS, value, request.top_logprobs or 0)))
    elif len(tokens) > request.max_tokens or (flavour == "vllm" and len(tokens) == request.max_tokens):
        finish, tokens = "length", tokens[: request.max_tokens]
        text = "".join(token.text for token in tokens)
    ends = tuple(accumulate((len(token.text) for token in tokens), initial=0))
    found = [(text.find(stop) + len(stop), stop) for stop in request.stop if stop in text]
    if found:
        end, stop = min(found)
        cut = next(k for k, reached in enumerate(ends) if reached >= end)
        tokens, ends = tokens[:cut], ends[: cut + 1]
        text = text[: end if body.include_stop_str_in_output else end - len(stop)]
        finish, stop_reason = "stop", stop
    if body.echo and request.max_tokens == 0 and flavour == "vllm":
        # vLLM decodes one token that it does not show when it is asked to echo only.
        tokens, ends, text, finish = [Token(EOS, "", 0.0, {})], (0, 0), "", "length"
    hold = max((len(stop) for stop in request.stop), default=1) - 1
    prefix = request.prompt if body.echo and request.endpoint == "completions" else ""
    head = tuple(completion.head)
    return Choice(index, prefix, tuple(tokens), ends, text, finish, stop_reason, hold, head)


def prompt_scores(request: SimRequest, count: int) -> list[Token | None]:
    """The prompt's tokens with their log-probabilities; the first has none."""
    scored: list[Token | None] = [None]
    for before, piece in zip(request.prompt_tokens, request.prompt_tokens[1:], strict=False):
        value = logprob(before, piece)
        scored.append(Token(piece, piece, value, alternatives(piece, value, count)))
    return scored


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes the answer to one HTTP request: `choices[i]` belongs to `requests[i // n]`."""

    flavour: Flavour
    endpoint: Endpoint
    body: Body
    requests: tuple[SimRequest, ...]
    choices: tuple[Choice, ...]
    vocabulary: Vocabulary
    model: str
    response_id: str
    created: int
    cached: int

    @classmethod
    def of(
        cls,
        flavour: Flavour,
        body: Body,
        requests: list[SimRequest],
        choices: list[Choice],
        vocabulary: Vocabulary,
        model: str,
        cached: int,
    ) -> "Writer":
        endpoint: Endpoint = "chat" if requests[0].endpoint == "chat" else "completions"
        prefix = "chatcmpl" if endpoint == "chat" else "cmpl"
        return cls(
            flavour,
            endpoint,
            body,
            tuple(requests),
            tuple(choices),
            vocabulary,
            model,
            f"{prefix}-{requests[0].id}",
            int(time.time()),
            cached,
        )

    def usage(self, decoded: int, prompt: int | None = None) -> dict[str, Any]:
        """Token counts, of the whole request unless one prompt's length is given."""
        whole = sum(len(request.prompt_tokens) for request in self.requests)
        count = whole if prompt is None else prompt
        usage: dict[str, Any] = {
            "prompt_tokens": count,
            "completion_tokens": decoded,
            "total_tokens": count + decoded,
        }
        if prompt is None:
            usage["prompt_tokens_details"] = {"cached_tokens": self.cached}
        return usage

    def whole(self) -> dict[str, Any]:
        """The body of a plain answer."""
        if self.requests[0].endpoint in POOLING:
            return self._pooled()
        name = "chat.completion" if self.endpoint == "chat" else "text_completion"
        head = self._head(name)
        head["choices"] = [self._whole_choice(choice) for choice in self.choices]
        head["usage"] = self.usage(sum(len(choice.tokens) for choice in self.choices))
        if self.endpoint == "chat" and self.body.prompt_logprobs is not None:
            head["prompt_logprobs"] = self._vllm_prompt_logprobs(self.requests[0])
        return head

    def _pooled(self) -> dict[str, Any]:
        """A row of numbers for each prompt, as vLLM's `/classify` and `/pooling` give it."""
        key = "probs" if self.requests[0].endpoint == "classify" else "data"
        active = self.body.use_activation is not False
        rows = [_activated(choice.head) if active else list(choice.head) for choice in self.choices]
        data = [{"index": i, key: row} for i, row in enumerate(rows)]
        return {**self._head("list"), "data": data, "usage": self.usage(0)}

    def _head(self, name: str) -> dict[str, Any]:
        return {"id": self.response_id, "object": name, "created": self.created, "model": self.model}

    def _whole_choice(self, choice: Choice) -> dict[str, Any]:
        out: dict[str, Any] = {"index": choice.index, "finish_reason": choice.finish}
        if self.flavour == "vllm":
            out["stop_reason"] = choice.stop_reason
        if self.body.return_token_ids:
            out["token_ids"] = self._ids(choice.tokens)
        if self.endpoint == "chat":
            out["message"] = {"role": "assistant", "content": choice.text, "refusal": None}
            if self.body.calls and (calls := tool_calls(choice.text)):
                out["finish_reason"] = self._finish(choice)
                out["message"] |= {
                    "content": choice.text.partition("<tool_call>")[0].strip() or None,
                    "tool_calls": [
                        {
                            "id": f"call_{i}",
                            "type": "function",
                            "function": {"name": name, "arguments": arguments},
                        }
                        for i, (_, name, arguments) in enumerate(calls)
                    ],
                }
            out["logprobs"] = self._chat_logprobs(choice.tokens)
            return out
        request = self.requests[choice.index // self.body.n]
        out["text"] = choice.prefix + choice.text
        shown: list[Token | None] = [] if request.max_tokens == 0 else list(choice.tokens)
        if choice.prefix:
            shown = [*prompt_scores(request, max(request.top_logprobs or 0, 1)), *shown]
        out["logprobs"] = self._completion_logprobs(shown, request, 0)
        if self.body.prompt_logprobs is not None:
            out["prompt_logprobs"] = self._vllm_prompt_logprobs(request)
        return out

    def _ids(self, tokens: tuple[Token, ...]) -> list[int]:
        return [self.vocabulary.id(token.piece) for token in tokens]

    def _chat_logprobs(self, tokens: tuple[Token, ...]) -> dict[str, Any] | None:
        if self.requests[0].top_logprobs is None:
            return None
        return {"content": [{**_named(t.piece, t.logprob), "top_logprobs": _ranked(t.top)} for t in tokens]}

    def _completion_logprobs(
        self, tokens: list[Token | None], request: SimRequest, offset: int
    ) -> dict[str, Any] | None:
        if request.top_logprobs is None:
            return None
        pieces = [request.prompt_tokens[0] if token is None else token.piece for token in tokens]
        return {
            "tokens": pieces,
            "token_logprobs": [None if token is None else token.logprob for token in tokens],
            "top_logprobs": [
                None if token is None else dict(token.top) or {token.piece: token.logprob} for token in tokens
            ],
            "text_offset": list(accumulate((len(piece) for piece in pieces), initial=offset))[:-1],
        }

    def _vllm_prompt_logprobs(self, request: SimRequest) -> list[dict[str, Any] | None]:
        count = max(self.body.prompt_logprobs or 0, 1)
        out: list[dict[str, Any] | None] = []
        for token in prompt_scores(request, count):
            if token is None:
                out.append(None)
                continue
            ranked = sorted(token.top.items(), key=lambda item: -item[1])
            entries = {
                str(self.vocabulary.id(piece)): {"logprob": value, "rank": rank, "decoded_token": piece}
                for rank, (piece, value) in enumerate(ranked, start=1)
            }
            out.append(entries)
        return out

    def opening(self) -> Iterator[bytes]:
        """The chunks that open a chat stream: a role for each choice."""
        if self.endpoint == "chat":
            for choice in self.choices:
                delta = {"role": "assistant", "content": ""}
                yield self._chunk({"index": choice.index, "delta": delta, "finish_reason": None}, choice, 0)

    def chunk(self, choice: Choice, before: int, decoded: int) -> bytes:
        """The chunk that takes a choice from `before` to `decoded` tokens."""
        text = choice.text[choice.visible(before) : choice.visible(decoded)]
        tokens = choice.tokens[before:decoded]
        finished = decoded >= len(choice.tokens)
        out: dict[str, Any] = {"index": choice.index, "finish_reason": choice.finish if finished else None}
        if finished and self.flavour == "vllm":
            out["stop_reason"] = choice.stop_reason
        if self.body.return_token_ids:
            out["token_ids"] = self._ids(tokens)
        if self.endpoint == "chat":
            out["delta"] = {"content": text}
            if self.body.calls and "<tool_call>" in choice.text:
                out["delta"] = self._called(choice, choice.visible(before), choice.visible(decoded))
                out["finish_reason"] = self._finish(choice) if finished else None
            out["logprobs"] = self._chat_logprobs(tokens)
        else:
            request = self.requests[choice.index // self.body.n]
            echoed: list[Token | None] = []
            if choice.prefix and not before:
                text = choice.prefix + text
                echoed = prompt_scores(request, max(request.top_logprobs or 0, 1))
            out["text"] = text
            offset = choice.ends[before] + (len(choice.prefix) if before else 0)
            out["logprobs"] = self._completion_logprobs([*echoed, *tokens], request, offset)
        return self._chunk(out, choice, decoded)

    def _finish(self, choice: Choice) -> str:
        """How a choice with calls ended; vLLM does not tell that it was cut short."""
        return choice.finish if choice.finish == "length" and self.flavour == "openai" else "tool_calls"

    def _called(self, choice: Choice, start: int, stop: int) -> dict[str, Any]:
        """What of a text with calls of tools stands between two places: a call where it ends, in two pieces."""
        first = choice.text.index("<tool_call>")
        delta: dict[str, Any] = {"content": choice.text[start : min(stop, first)]}
        parts: list[dict[str, Any]] = []
        for i, (end, name, arguments) in enumerate(tool_calls(choice.text)):
            if start < end <= stop:
                head = {"index": i, "id": f"call_{i}", "type": "function"}
                half = len(arguments) // 2
                parts.append({**head, "function": {"name": name, "arguments": arguments[:half]}})
                parts.append({"index": i, "function": {"arguments": arguments[half:]}})
        return {**delta, "tool_calls": parts} if parts else delta

    def _chunk(self, choice_data: dict[str, Any], choice: Choice, decoded: int) -> bytes:
        head = self._head("chat.completion.chunk" if self.endpoint == "chat" else "text_completion")
        head["choices"] = [choice_data]
        if self.body.continuous_usage:
            request = self.requests[choice.index // self.body.n]
            head["usage"] = self.usage(decoded, len(request.prompt_tokens))
        elif self.body.include_usage and self.flavour == "openai":
            head["usage"] = None
        return sse(head)

    def closing(self) -> bytes:
        """The end of a stream: the usage of all, where asked for, and `[DONE]`."""
        end = b"data: [DONE]\n\n"
        if not self.body.include_usage:
            return end
        head = self._head("chat.completion.chunk" if self.endpoint == "chat" else "text_completion")
        head["choices"] = []
        head["usage"] = self.usage(sum(len(choice.tokens) for choice in self.choices))
        return sse(head) + end


def sse(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _activated(numbers: Sequence[float]) -> list[float]:
    """The sigmoid of one number, the softmax of several."""
    logits = [0.0, *numbers] if len(numbers) == 1 else numbers
    weights = [math.exp(number) for number in logits]
    return [weight / math.fsum(weights) for weight in weights[-len(numbers) :]]


def _named(piece: str, value: float) -> dict[str, Any]:
    return {"token": piece, "logprob": value, "bytes": list(piece.encode())}


def _ranked(top: Mapping[str, float]) -> list[dict[str, Any]]:
    return [_named(piece, value) for piece, value in sorted(top.items(), key=lambda item: -item[1])]
