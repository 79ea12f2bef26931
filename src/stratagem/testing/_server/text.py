"""The simulated model: its tokenizer, its chat template, its log-probabilities and its default answers.

All of it is a pure function of the text (and of the seed), so that a test can compute what it must get.
"""

import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

EOS = "<|end|>"
POOLING = frozenset({"classify", "pooling"})
_PIECE = re.compile(r"<\|\w+\|>|\s?[^\W\d_]{1,12}|\s?\d|\s?[^\w\s]|\s?_|\s|\w")
_WORDS = tuple(
    re.findall(
        r"\w+",
        "so then we add take both half twice more less each left right next now here gives makes leaves "
        "total apples coins boxes books pens cups trees birds days hours shelf bag",
    )
)


def tokenize(text: str) -> list[str]:
    """Cuts text into word pieces; `"".join(tokenize(text)) == text` and each piece has at least one byte."""
    return _PIECE.findall(text)


class Vocabulary:
    """Token ids, given in the order in which pieces are first seen; ids 0-4 are the special tokens."""

    def __init__(self) -> None:
        self._pieces = ["<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", EOS]
        self._ids = {piece: i for i, piece in enumerate(self._pieces)}

    def id(self, piece: str) -> int:
        found = self._ids.get(piece)
        if found is None:
            found = self._ids[piece] = len(self._pieces)
            self._pieces.append(piece)
        return found

    def piece(self, token_id: int) -> str:
        """Raises IndexError for an id that was never given out."""
        return self._pieces[token_id]


def render_chat(
    messages: Sequence[Mapping[str, Any]], *, generation_prompt: bool, continue_final: bool
) -> str:
    """The prompt text of a chat: `<|role|>content<|end|>`, repeated; a continued last message stays open."""
    parts = [f"<|{m['role']}|>{content_text(m.get('content'))}{_called(m)}{EOS}" for m in messages]
    if continue_final and parts:
        parts[-1] = parts[-1].removesuffix(EOS)
    elif generation_prompt:
        parts.append("<|assistant|>")
    return "".join(parts)


def _called(message: Mapping[str, Any]) -> str:
    """The calls of tools in a message, as a chat template of the Hermes kind writes them."""
    calls = (call["function"] for call in message.get("tool_calls") or ())
    return "".join(
        f'\n<tool_call>{{"name": "{each["name"]}", "arguments": {each["arguments"]}}}</tool_call>'
        for each in calls
    )


_HALF = re.compile(r'<tool_call>\{"name": "([^"]*)", "arguments": ((?:(?!</tool_call>).)*)$', re.DOTALL)


def tool_calls(text: str) -> list[tuple[int, str, str]]:
    """The calls of tools in what a model wrote: where each ends, its name, its arguments as JSON; and at the end as
    much as there is of one that was cut short."""
    found: list[tuple[int, str, str]] = []
    for match in re.finditer(r"<tool_call>(.*?)</tool_call>", text, re.DOTALL):
        data = json.loads(match[1])
        found.append((match.end(), data["name"], json.dumps(data["arguments"])))
    if half := _HALF.search(text):
        found.append((len(text), half[1], half[2]))
    return found


def content_text(content: object) -> str:
    """The text of a message's content: a string, a list of parts, or nothing."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    raise ValueError(f"message content must be text or a list of parts, not {type(content).__name__}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimRequest:
    """One prompt of one request, as a responder and a fault hook see it."""

    number: int
    id: str
    endpoint: str
    prompt: str
    prompt_tokens: tuple[str, ...]
    messages: tuple[Mapping[str, Any], ...] = ()
    n: int = 1
    seed: int | None = None
    temperature: float = 1.0
    max_tokens: int
    stop: tuple[str, ...] = ()
    stream: bool = False
    top_logprobs: int | None = None
    structured: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SimCompletion:
    """What the simulated model says.

    `logprobs` (nats, one per piece of `tokenize(text)`) and `top` (alternatives per piece, token to logprob)
    may be left out; the server then fills in `logprob` of each piece. A reward model says no text, but the
    numbers of its head.
    """

    text: str
    logprobs: Sequence[float] | None = None
    top: Sequence[Mapping[str, float]] | None = None
    head: Sequence[float] = ()


Responder = Callable[[SimRequest], Sequence[SimCompletion]]


def logprob(previous: str, piece: str) -> float:
    """Natural log-probability in (-3, -0.05) of a piece after the one before it, decoded or scored."""
    return -0.05 - 2.95 * (zlib.crc32(f"{previous}\x00{piece}".encode()) / 2**32)


def logit(prompt: str) -> float:
    """What the simulated reward model's head gives to a whole prompt, in [-4, 4)."""
    return 8 * (zlib.crc32(prompt.encode()) / 2**32) - 4


def alternatives(piece: str, value: float, count: int) -> dict[str, float]:
    """The `count` most probable tokens, `piece` first; the others share the mass that it leaves."""
    top = {piece: value}
    rest = math.log(max(-math.expm1(value), 1e-12))
    words = (word for word in (" " + w for w in _WORDS) if word != piece)
    for rank, word in zip(range(1, count), words, strict=False):
        top[word] = min(rest, value) - rank * math.log(2)
    return top


@dataclass(frozen=True, slots=True)
class ToyResponder:
    """Answers that depend on prompt and seed only: filler words, then `The answer is N.`

    Lengths are log-normal with mean `mean_tokens` and log-scale deviation `spread` (0: all alike). With
    temperature 0 the seed is ignored, as greedy decoding does; without a seed the request's number serves.
    What is to be rewarded gets its `logit`.
    """

    mean_tokens: float = 40.0
    spread: float = 0.6

    def __call__(self, request: SimRequest) -> list[SimCompletion]:
        if request.endpoint in POOLING:
            return [SimCompletion("", head=[logit(request.prompt)])]
        base = request.seed if request.seed is not None else 1_000_003 * (request.number + 1)
        seeds = [0] * request.n if request.temperature == 0 else [base + i for i in range(request.n)]
        return [self._complete(request, Random(f"{seed}\x00{request.prompt}")) for seed in seeds]

    def _complete(self, request: SimRequest, rng: Random) -> SimCompletion:
        if request.structured is not None:
            return _constrained(request, rng)
        tail = f" The answer is {rng.randrange(10)}."
        drawn = rng.lognormvariate(math.log(self.mean_tokens) - self.spread**2 / 2, self.spread)
        filler = max(0, round(drawn) - len(tokenize(tail)))
        text = "".join(" " + rng.choice(_WORDS) for _ in range(filler)) + tail
        return SimCompletion(text.lstrip() if request.prompt.endswith("|>") else text)


def _constrained(request: SimRequest, rng: Random) -> SimCompletion:
    constraint = request.structured or {}
    choices = constraint.get("choice")
    if choices:
        weights = [math.exp(2 * logprob(request.prompt, choice)) for choice in choices]
        total = sum(weights)
        picked = (
            max(range(len(choices)), key=weights.__getitem__)
            if request.temperature == 0
            else rng.choices(range(len(choices)), weights)[0]
        )
        first: dict[str, float] = {}
        for choice, weight in zip(choices, weights, strict=True):
            head = tokenize(choice)[0]
            first[head] = math.log(math.exp(first.get(head, -math.inf)) + weight / total)
        pieces = tokenize(choices[picked])
        return SimCompletion(
            choices[picked],
            logprobs=[first[pieces[0]], *(-1e-6 for _ in pieces[1:])],
            top=[first, *({piece: -1e-6} for piece in pieces[1:])],
        )
    if "json" in constraint:
        schema = constraint["json"]
        return SimCompletion(
            json.dumps(_instance(json.loads(schema) if isinstance(schema, str) else schema, rng))
        )
    raise ValueError(
        f"the simulated model has no text for the constraint {sorted(constraint)}; "
        "give the server a responder that answers it"
    )


def _instance(schema: Mapping[str, Any], rng: Random) -> object:
    """A value of a JSON schema, by its types, enum, const, bounds, required fields and first alternatives."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            return _instance(schema[key][0], rng)
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {key: _instance(value, rng) for key, value in schema.get("properties", {}).items()}
    if kind == "array":
        return [
            _instance(schema.get("items", {"type": "integer"}), rng) for _ in range(schema.get("minItems", 1))
        ]
    if kind == "string":
        return " ".join(rng.choice(_WORDS) for _ in range(2))
    if kind in ("integer", "number"):
        low = schema.get("minimum", 0)
        return rng.randint(int(low), int(schema.get("maximum", low + 9)))
    return rng.random() < 0.5 if kind == "boolean" else None
