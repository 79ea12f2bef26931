"""The protocol between strategies and whatever produces tokens.

A wrapper (cache, journal, recorder) is a backend too. All sizes are counts of the model's own tokens; all
log-probabilities are natural logarithms of the model's distribution at temperature 1, before any constraint. What
is given back is text that can be encoded, whatever a server's JSON held.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

from stratagem.core.text import encodable
from stratagem.core.usage import Meter, Prices, Usage

MessageRole = Literal["system", "user", "assistant", "tool"]
Finish = Literal["stop", "length"]


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()  # ASCII: lone surrogates too


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. A trailing assistant message is continued, not answered."""

    role: MessageRole
    content: str


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the completion must match. ``choice``: JSON list of strings; ``regex``: a regular expression;
    ``json``: a JSON schema; ``grammar``: a grammar as the backend takes it (vLLM: EBNF or Lark)."""

    type: Literal["choice", "regex", "json", "grammar"]
    value: str

    @classmethod
    def choice(cls, options: Sequence[str]) -> Constraint:
        """Exactly one of the given strings."""
        return cls("choice", json.dumps(list(options), ensure_ascii=False))

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> Constraint:
        """A JSON value that the schema accepts."""
        return cls("json", json.dumps(schema, ensure_ascii=False, sort_keys=True))

    def decoded(self) -> Any:
        """The options or the schema as Python data (``choice`` and ``json`` only)."""
        return json.loads(self.value)


@dataclass(frozen=True, slots=True)
class Request:
    """``n`` independent completions of one conversation.

    Completion ``i`` is drawn with seed ``seed + i``, so that one request for k completions with seed s gives
    the same texts as k requests with seeds s .. s+k-1. ``temperature=None`` is the model's own default.
    ``logprobs=None`` asks for none, 0 for those of the chosen tokens, k for the k likeliest besides.
    """

    messages: tuple[Message, ...]
    n: int = 1
    max_tokens: int = 512  # per completion
    temperature: float | None = None
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    constraint: Constraint | None = None
    priority: int = 0  # smaller runs first, where the server schedules by priority
    tools: str = ""
    """JSON list of the tools that the model may call natively, as OpenAI's ``tools`` lists them. In texts a call
    is a line as in :mod:`stratagem.core.native`; the results are messages of the role ``tool``, in the order of
    calls."""
    calls: bool = True  # whether it may call any of ``tools`` now
    processors: str = ""
    """JSON object of arguments for logits processors that the server was started with (vLLM's ``vllm_xargs``)."""

    def key(self) -> str:
        """Content address of completion 0: hex SHA-256 of all that decides its text."""
        data = asdict(replace(self, n=1, priority=0))
        if not self.tools:
            del data["tools"]  # as before there were any
        if self.calls:
            del data["calls"]
        if not self.processors:
            del data["processors"]
        return _digest(data)

    def sibling(self, index: int) -> Request:
        """The request for completion ``index`` alone."""
        return replace(self, n=1, seed=None if self.seed is None else self.seed + index)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of a completion: its text, log-probability, and the likeliest alternatives, best first."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        # Once for each token: nothing may be built here, nor called that is not needed.
        try:
            if not self.token.isascii():
                self.token.encode()
            for text, _ in self.top:
                if not text.isascii():
                    text.encode()
        except UnicodeEncodeError:
            object.__setattr__(self, "token", encodable(self.token))
            object.__setattr__(self, "top", encodable(self.top))


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished completion. The stop string that ended it is not part of ``text``."""

    index: int
    text: str
    finish: Finish
    token_count: int
    tokens: tuple[TokenLogprob, ...] = ()  # empty unless logprobs were asked for

    def __post_init__(self) -> None:
        if not self.text.isascii():
            object.__setattr__(self, "text", encodable(self.text))


@dataclass(frozen=True, slots=True)
class Generation:
    """The answer to a :class:`Request`: ``n`` completions in order of index."""

    completions: tuple[Completion, ...]
    usage: Usage
    replayed: bool = False  # answered by a journal or cache: nothing was paid this time


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of completion ``index``; ``completion`` is set on its last piece and holds the whole."""

    index: int
    text: str
    tokens: tuple[TokenLogprob, ...] = ()
    completion: Completion | None = None

    def __post_init__(self) -> None:
        if not self.text.isascii():
            object.__setattr__(self, "text", encodable(self.text))


class Stream(Protocol):
    """Completions as they are decoded, interleaved."""

    @property
    def usage(self) -> Usage:
        """Spent so far; final once the ``async with`` block has been left."""
        ...

    @property
    def replayed(self) -> bool:
        """Whether a journal or cache answers, so that nothing is paid this time."""
        ...

    def __aiter__(self) -> AsyncIterator[Chunk]: ...


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Log-probabilities of given continuations of one conversation, each scored on its own."""

    messages: tuple[Message, ...]
    continuations: tuple[str, ...]

    def key(self) -> str:
        """Content address: hex SHA-256."""
        return _digest({"score": asdict(self)})


@dataclass(frozen=True, slots=True)
class Scoring:
    """Per continuation, in order, its tokens with their log-probabilities."""

    scores: tuple[tuple[TokenLogprob, ...], ...]
    usage: Usage
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do, found out once per endpoint."""

    model: str
    context: int | None = None  # tokens of prompt and completion together; None: unknown
    n: bool = False
    # n siblings, or continuations to score, are never more than one call of Usage.calls
    one_call: bool = False
    seed: bool = False
    logprobs: int = 0  # how many top log-probabilities it gives at most; -1: none at all
    prompt_logprobs: bool = False  # score() works
    reward: bool = False  # score() gives each continuation one entry: the log-probability that it is good
    constraints: frozenset[str] = frozenset()  # of choice, regex, json, grammar
    tools: bool = False  # takes Request.tools
    continue_final: bool = False  # continues a trailing assistant message
    exact_count: bool = False  # count_tokens() is exact, not an upper bound
    exact_abort: bool = False  # what an aborted request decoded is known to the token
    prices: Prices = field(default_factory=Prices)
    temperature: float | None = None  # the model's own default, where known
    version: str = ""


@runtime_checkable
class Backend(Protocol):
    """Where tokens come from.

    A prompt that does not fit raises ContextLengthError; a completion that would outgrow the context is cut
    there (finish "length"), where the backend knows the context and can count.

    Every method is safe to cancel: the engine stops, permits come back, and ``meter`` has been given what
    was spent. Whatever a call spends is added to ``meter`` exactly once, also when it fails; on success the
    sum equals the usage of the result (which, when ``replayed``, is the usage of the original call).
    """

    @property
    def name(self) -> str:
        """Stable identity of model and endpoint, without secrets: part of every content address."""
        ...

    async def capabilities(self) -> Capabilities:
        """What it can do; negotiated at the first call and remembered."""
        ...

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt: exact, or an upper bound (see ``capabilities().exact_count``)."""
        ...

    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        """All completions of ``request``, when the last has ended. One also ends where the context is full.

        Raises:
            ContextLengthError: the prompt leaves no room for a single token.
        """
        ...

    def stream(
        self, request: Request, meter: Meter | None = None, *, deltas: bool = True
    ) -> AbstractAsyncContextManager[Stream]:
        """Completions as they are decoded. Leaving the block aborts what is not finished, in the engine.

        With ``deltas=False`` one chunk is given per completion, when it has ended.
        """
        ...

    async def score(self, request: ScoreRequest, meter: Meter | None = None) -> Scoring:
        """Log-probabilities of given continuations; of a reward model, those that each is good."""
        ...

    async def aclose(self) -> None:
        """Give back connections and threads. A closed backend opens them again when used."""
        ...
