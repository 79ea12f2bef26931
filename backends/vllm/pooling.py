"""A reward model behind vLLM's pooling endpoints: r(x, y) = sigmoid(z), z the number that its head gives to (x, y).

`vllm serve MODEL --runner pooling` serves a sequence classifier, whose head reads the last token (`/classify` and
`/pooling`), or a model that rewards every token (`/pooling`, where the last token's row counts; of a process reward
model with a step tag the last step's). Either takes one conversation, which the server puts into the model's chat
template, or a list of texts. A cross-encoder, which reads a question and an answer side by side, has `/score`: it
takes one question and a list of answers (`/rerank` gives the same numbers, sorted).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn

import openai

from stratagem.backends._openai.endpoint import Attempt
from stratagem.backends._openai.failure import Malformed
from stratagem.backends._openai.scoring import continued
from stratagem.backends._openai.sender import Tally
from stratagem.backends._openai.wire import Dialect, priced, read_usage, reading
from stratagem.backends.openai import OpenAIBackend
from stratagem.core.backend import (
    Capabilities,
    Generation,
    Message,
    Request,
    ScoreRequest,
    Scoring,
    TokenLogprob,
)
from stratagem.core.concurrency import task_group
from stratagem.core.errors import ConfigurationError, ProtocolError, RejectedError, UnsupportedError
from stratagem.core.usage import Meter, Usage

_ENDPOINTS = ("classify", "pooling", "score")
_SPECIAL_TOKENS = 16  # more than end an answer in a chat template, or are put around a text
_PLACE = re.compile(r"\{(question|answer)\}")


class PoolingBackend(OpenAIBackend):
    """A reward model on a vLLM server: `score` gives the logarithm of each continuation's reward, in [0, 1].

        models = {"reward": PoolingBackend("http://localhost:8001/v1")}
        answer = await sg.solve(question, sg.BestOfN(verifier=sg.RewardModel()), models=models)

    Args:
        base_url: of the server, with `/v1`.
        model: its name there; may be left out where there is only one.
        api_key: default: the environment variable `OPENAI_API_KEY`.
        endpoint: `classify` for sequence classifiers, `pooling` for models that reward every token as well, `score`
            for cross-encoders and rerankers, which take question and answer as a pair: all answers of a call are
            then one request.
        label: which of the head's numbers is the reward, from 0; may be left out where there is only one.
        activation: `sigmoid` maps the head's number z to 1 / (1 + exp(-z)); `server` takes what the server's own
            activation makes of the numbers (softmax over several classes), which must lie in [0, 1].
        template: a text with `{question}` and `{answer}`, for models without a chat template; all texts of a call
            are then one request. Default: the model's chat template, one request for each text.
        options: further ones of :class:`~stratagem.backends.openai.OpenAIBackend`; `permits` counts requests.

    Raises:
        ConfigurationError: a value makes no sense.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        *,
        endpoint: Literal["classify", "pooling", "score"] = "classify",
        label: int | None = None,
        activation: Literal["sigmoid", "server"] = "sigmoid",
        template: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(base_url, model, api_key, **options)
        if endpoint not in _ENDPOINTS:
            raise ConfigurationError(
                f"endpoint={endpoint!r} is unknown.", remedy=f"Give one of {', '.join(_ENDPOINTS)}."
            )
        if activation not in ("sigmoid", "server"):
            raise ConfigurationError(
                f"activation={activation!r} is unknown.", remedy="Give sigmoid or server."
            )
        if label is not None and label < 0:
            raise ConfigurationError(f"label={label} makes no sense.", remedy="Classes are counted from 0.")
        if template is not None and "{answer}" not in template:
            raise ConfigurationError(
                "The template has no {answer}.", remedy="Write it like {question}\\n{answer}."
            )
        if endpoint == "score" and (label is not None or template is not None):
            raise ConfigurationError(
                "endpoint='score' takes pairs and gives one number to each: it has no label= and no template=.",
                remedy="Leave them out, or take endpoint='classify'.",
            )
        self._endpoint = endpoint
        self._label = label
        self._sigmoid = activation == "sigmoid"
        self._template = template

    @property
    def name(self) -> str:
        """The endpoint, the model where it was given, and a digest of how its rewards are read."""
        how = json.dumps([self._endpoint, self._label, self._sigmoid, self._template])
        return f"{super().name}+{hashlib.sha256(how.encode()).hexdigest()[:8]}"

    async def capabilities(self) -> Capabilities:
        """It rewards and does nothing else. Raises as :meth:`OpenAIBackend.capabilities`."""
        able = await super().capabilities()
        return Capabilities(
            able.model,
            context=able.context,
            one_call=self._together,
            logprobs=-1,
            reward=True,
            prices=able.prices,
            version=able.version,
        )

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        """The most that the prompt can be with an answer of no tokens."""
        if not self._together:
            await super().count_tokens(messages)  # which remembers what the server says
        return self._bound(tuple(messages))

    async def generate(self, request: Request, meter: Meter | None = None) -> Generation:
        """Raises UnsupportedError."""
        self._refuse()

    def stream(self, request: Request, meter: Meter | None = None, *, deltas: bool = True) -> NoReturn:
        """Raises UnsupportedError."""
        self._refuse()

    async def score(self, request: ScoreRequest, meter: Meter | None = None) -> Scoring:
        """The logarithm of each continuation's reward, as the only entry of its scores.

        Raises:
            UnsupportedError: the server has no such endpoint: it generates, or embeds.
            ConfigurationError: the head has several numbers and `label` names none of them.
            ProtocolError: a reward is no number, or lies outside [0, 1].
            BackendError: the call failed for good.
        """
        dialect = await self._dialect()
        tally = Tally(meter)
        texts = request.continuations
        groups = [texts] if self._together and texts else [(text,) for text in texts]
        async with task_group() as group:
            tasks = [
                group.create_task(self._asked(request.messages, each, dialect, tally)) for each in groups
            ]
        rows = [row for task in tasks for row in task.result()]
        rewards = [self._log_reward(row, dialect.caps.model) for row in rows]
        return Scoring(tuple((TokenLogprob("", reward),) for reward in rewards), tally.total)

    async def _asked(
        self, messages: tuple[Message, ...], texts: Sequence[str], dialect: Dialect, tally: Tally
    ) -> list[list[float]]:
        """What the head gives to each text, of which there is one where the server renders the conversation."""
        sender = await self._sender()
        body = self._body(messages, texts, dialect)
        bound = sum(self._bound(messages) + len(_encoded(text)) for text in texts)

        async def once(attempt: Attempt) -> tuple[list[list[float]], Usage]:
            answer = await sender.endpoint.post(f"{self._settings.root}/{self._endpoint}", body, attempt)
            rows, usage = _read(answer, len(texts))
            return rows, priced(usage, self._prices)

        def lost() -> Usage:
            return priced(Usage(uncertain_tokens=bound, calls=1), self._prices, uncertain_prompt=bound)

        try:
            return await sender.whole(once, model=dialect.caps.model, tally=tally, lost=lost)
        except RejectedError as error:
            if not isinstance(error.__cause__, openai.NotFoundError):
                raise
            raise UnsupportedError(  # the model is there, so it is the path that is not
                f"{self._where} has no /{self._endpoint}: {dialect.caps.model} is not served as a reward model.",
                remedy="Start one by: vllm serve MODEL --runner pooling",
            ) from error

    def _body(
        self, messages: tuple[Message, ...], texts: Sequence[str], dialect: Dialect
    ) -> Mapping[str, Any]:
        asked: dict[str, Any]
        if self._endpoint == "score":
            pairs = [_pair(messages, text) for text in texts]
            asked = {"text_1": pairs[0][0], "text_2": [answer for _, answer in pairs]}
        elif self._template is not None:
            asked = {"input": [self._rendered(messages, text) for text in texts]}
        else:
            whole = continued(messages, texts[0])
            asked = {"messages": [{"role": message.role, "content": message.content} for message in whole]}
        activated = {"use_activation": False} if self._sigmoid else {}
        return {"model": dialect.caps.model, **asked, **activated}

    def _bound(self, messages: tuple[Message, ...]) -> int:
        if not self._together:
            return self._prompt_bound(messages) + _SPECIAL_TOKENS
        text = "".join(_pair(messages, "")) if self._template is None else self._rendered(messages, "")
        return len(_encoded(text)) + _SPECIAL_TOKENS

    @property
    def _together(self) -> bool:
        """Whether all texts of a call are one request."""
        return self._template is not None or self._endpoint == "score"

    def _rendered(self, messages: Sequence[Message], answer: str) -> str:
        """The template with both put in."""
        question, answer = _pair(messages, answer)
        parts = {"question": question, "answer": answer}
        return _PLACE.sub(lambda place: parts[place[1]], self._template or "")

    def _log_reward(self, row: Sequence[float], model: str) -> float:
        label = self._label
        if label is None and len(row) > 1:
            raise ConfigurationError(
                f"{model} gives {len(row)} numbers to an answer, one for each class.",
                remedy=f"Say by label= which is the reward, from 0 to {len(row) - 1}.",
            )
        if label is not None and label >= len(row):
            raise ConfigurationError(
                f"{model} has no class {label}.", remedy=f"Give label= from 0 to {len(row) - 1}."
            )
        value = row[label or 0]
        if not self._sigmoid and not 0.0 <= value <= 1.0:
            raise ProtocolError(
                f"{model} gave the reward {value}, which is outside [0, 1].",
                remedy='Take activation="sigmoid".',
            )
        if not math.isfinite(value):
            raise ProtocolError(
                f"{model} gave the reward {value}.", remedy="Look at its weights and its dtype."
            )
        if self._sigmoid:
            return min(value, 0.0) - math.log1p(math.exp(-abs(value)))
        return math.log(value) if value else -math.inf

    def _refuse(self) -> NoReturn:
        raise UnsupportedError(
            f"{self._where} is used as a reward model, which writes nothing.",
            remedy='Give it as models={"reward": ...}, and a model that generates as llm=.',
        )


def _read(answer: object, count: int) -> tuple[list[list[float]], Usage]:
    """The head's numbers for each of so many inputs, in order, and the usage (no money yet). Raises Malformed."""
    with reading():
        usage = read_usage(answer["usage"])  # type: ignore[index]
        items = sorted(answer["data"], key=lambda item: item["index"])  # type: ignore[index]
        rows = [_row(next(item[key] for key in ("probs", "score", "data") if key in item)) for item in items]
    if usage is None:
        raise Malformed("it has no usage")
    if len(rows) != count:
        raise Malformed(f"it has {len(rows)} results for {count} inputs")
    return rows, usage


def _row(value: Any) -> list[float]:
    """The numbers of an input; those of its last token, where each token has some."""
    if isinstance(value, int | float):
        return [float(value)]
    if not value:
        raise ValueError("an input has no numbers")
    if isinstance(value[-1], list):
        return _row(value[-1])
    return [float(number) for number in value]


def _pair(messages: Sequence[Message], answer: str) -> tuple[str, str]:
    """Question and answer; the question is all that was said before."""
    *before, last = messages
    if last.role == "assistant":
        messages, answer = before, last.content + answer
    return "\n\n".join(message.content for message in messages), answer


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")
