"""What a server and its model can do: asked once per endpoint and remembered in the process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from stratagem.backends._openai.endpoint import Settings
from stratagem.backends._openai.sender import Sender
from stratagem.backends._openai.wire import Dialect
from stratagem.core.backend import Capabilities
from stratagem.core.errors import BackendTimeoutError, ConfigurationError, ProtocolError, RejectedError

_TOP_LOGPROBS = 20  # the most that OpenAI gives, and vLLM unless told otherwise


async def negotiate(sender: Sender, settings: Settings, model: str | None) -> Dialect:
    """Asks /models, /version, /tokenize and /metrics.

    Raises:
        UnavailableError: nobody answers there.
        ProtocolError: whoever answers there is no OpenAI-compatible server.
        ConfigurationError: the key or the model is wrong.
    """
    cards = await _models(sender, settings)
    card = _pick(cards, model, sender.where)
    name = str(card["id"])
    # Others answer /version too, or not at all, but only vLLM says that it owns the model.
    owned = card.get("owned_by") == "vllm"
    version = await _optional(sender, settings.root + "/version") if owned else None
    vllm = version is not None and isinstance(version.get("version"), str)
    if not vllm:
        official = urlsplit(settings.base_url).hostname == "api.openai.com"
        return Dialect(
            Capabilities(
                name,
                n=True,
                seed=True,
                logprobs=_TOP_LOGPROBS,
                constraints=frozenset({"json"}),
                tools=True,
            ),
            limit_name="max_completion_tokens" if official else "max_tokens",
        )
    probe = {"model": name, "messages": [{"role": "user", "content": "a"}]}
    counted = await _optional(sender, settings.root + "/tokenize", probe)
    # An adapter has the context of the model that it adapts.
    base = next((each for each in cards if each["id"] == card.get("parent")), card)
    context = base.get("max_model_len")
    tokenize = counted is not None and isinstance(counted.get("count"), int)
    return Dialect(
        Capabilities(
            name,
            context=context if isinstance(context, int) else None,
            n=True,
            seed=not await _guesses(sender, settings.root),
            logprobs=_TOP_LOGPROBS,
            prompt_logprobs=True,
            constraints=frozenset({"choice", "regex", "json", "grammar"}),
            continue_final=True,
            tools=True,
            exact_count=tokenize,
            version=f"vLLM {version['version']}" if version else "",
        ),
        vllm=True,
        tokenize=tokenize,
    )


async def _guesses(sender: Sender, root: str) -> bool:
    """Whether a vLLM server decodes speculatively, so that a seed does not repeat a text."""
    try:
        return "vllm:spec_decode" in await sender.page(root + "/metrics")
    except (RejectedError, ProtocolError, ConfigurationError, BackendTimeoutError):
        return False  # it does not show its counters


async def _models(sender: Sender, settings: Settings) -> list[Mapping[str, Any]]:
    try:
        data = await sender.ask(settings.base_url + "/models")
        cards = data.get("data") if isinstance(data, dict) else None
        if not isinstance(cards, list) or not all(isinstance(c, dict) and "id" in c for c in cards):
            raise ProtocolError(f"{sender.where}/models gives no list of models.")
    except (RejectedError, ProtocolError) as error:
        message = f"{sender.where} is no OpenAI-compatible server ({error.message})"
        remedy = "Give the base URL of one; it usually ends in /v1."
        raise ProtocolError(message, remedy=remedy) from error
    except BackendTimeoutError as error:
        remedy = "Look whether an OpenAI-compatible server listens there, and whether it is busy."
        raise BackendTimeoutError(error.message, remedy=remedy) from error
    return cards


def _pick(cards: list[Mapping[str, Any]], model: str | None, where: str) -> Mapping[str, Any]:
    names = [str(card["id"]) for card in cards]
    listed = ", ".join(names[:20]) or "none"
    if model is None:
        if len(cards) != 1:
            raise ConfigurationError(
                f"{where} has {len(cards)} models: say which with model=.", remedy=f"There are: {listed}."
            )
        return cards[0]
    for card in cards:
        if card["id"] == model:
            return card
    raise ConfigurationError(f"{where} has no model {model!r}.", remedy=f"There are: {listed}.")


async def _optional(
    sender: Sender, url: str, body: Mapping[str, Any] | None = None
) -> Mapping[str, Any] | None:
    """The answer of a path that not every server has; None where it is missing."""
    try:
        answer = await sender.ask(url, body)
    except (RejectedError, ProtocolError, ConfigurationError):
        return None
    return answer if isinstance(answer, dict) else None
