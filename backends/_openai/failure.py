"""What can go wrong with a request, what it may have cost, and whether to send it again."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import httpx2
import openai

from stratagem.core.errors import (
    BackendError,
    BackendTimeoutError,
    ConfigurationError,
    ContextLengthError,
    ProtocolError,
    RateLimitedError,
    RejectedError,
    StratagemError,
    UnavailableError,
    UnsupportedError,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed attempt: the error to raise if it is the last, and whether another one makes sense.

    `maybe_billed`: the server may have worked on it and may charge for that.
    """

    error: StratagemError
    resend: bool = False
    maybe_billed: bool = False
    retry_after: float | None = None  # seconds
    absent: bool = False  # nobody listens there


class FirstTokenLate(TimeoutError):
    """No token came within `first_token_timeout`."""


class Malformed(Exception):
    """The answer is not what the protocol says."""


class NoLogprobs(Exception):
    """The server answers, but without the log-probabilities that it was asked for."""


CAUGHT = (openai.OpenAIError, httpx2.HTTPError, TimeoutError, Malformed, NoLogprobs, json.JSONDecodeError)


def classify(error: Exception, *, where: str, model: str, sent: bool) -> Failure:
    """The failure behind an exception of `CAUGHT`. `sent`: the request had begun to leave this machine."""
    if isinstance(error, openai.APIStatusError):
        return _of_status(error, where, model)
    if isinstance(error, (openai.APITimeoutError, httpx2.TimeoutException, TimeoutError)):
        what = "no first token in time" if isinstance(error, FirstTokenLate) else "no answer in time"
        remedy = "Raise timeout= or first_token_timeout=, or send less at once."
        late = BackendTimeoutError(f"{where}: {what}.", remedy=remedy)
        return Failure(late, resend=True, maybe_billed=sent)
    if isinstance(error, (openai.APIConnectionError, httpx2.HTTPError)):
        cause = error.__cause__ or error
        if sent:
            dropped = UnavailableError(f"{where}: the connection broke ({_named(cause)}).")
            return Failure(dropped, resend=True, maybe_billed=True)
        remedy = "Start the server, or correct the address."
        nobody = UnavailableError(f"No server answers at {where} ({_named(cause)}).", remedy=remedy)
        return Failure(nobody, resend=True, absent=True)
    if isinstance(error, NoLogprobs):
        remedy = "Use a server that gives them (vLLM does), or a strategy that needs none."
        return Failure(
            UnsupportedError(f"{where} gives no log-probabilities with {model}.", remedy=remedy),
            maybe_billed=True,
        )
    if isinstance(error, (Malformed, json.JSONDecodeError)):
        broken = ProtocolError(f"{where} gave an answer that is not the protocol: {error}.")
        return Failure(broken, resend=True, maybe_billed=True)
    if isinstance(error, openai.APIError):  # told in the middle of a stream
        return Failure(BackendError(f"{where} failed: {error.message}."), resend=True, maybe_billed=True)
    return Failure(BackendError(f"{where} failed: {_named(error)}."))


def _of_status(error: openai.APIStatusError, where: str, model: str) -> Failure:
    status, said = error.status_code, _said(error)
    if status == 429:
        if error.code == "insufficient_quota":
            return Failure(RejectedError(f"{where} refuses: {said}"))
        limited = RateLimitedError(f"{where} limits the rate: {said}", remedy="Lower rate= or permits=.")
        return Failure(limited, resend=True, retry_after=retry_after(error.response.headers))
    if status == 503:
        busy = UnavailableError(f"{where} is unavailable for now: {said}")
        return Failure(busy, resend=True, retry_after=retry_after(error.response.headers))
    if status in (401, 403):
        remedy = "Set OPENAI_API_KEY to the right one, or give api_key= (on the command line --api-key-env)."
        return Failure(ConfigurationError(f"{where} does not accept the API key.", remedy=remedy))
    if status >= 500 or status in (408, 409):
        broken = BackendError(f"{where} failed with status {status}: {said}")
        return Failure(
            broken, resend=True, maybe_billed=True, retry_after=retry_after(error.response.headers)
        )
    if "maximum context length" in said or error.code == "context_length_exceeded":
        remedy = "Shorten the question, lower max_tokens, or use a model with a longer context."
        return Failure(ContextLengthError(f"{model}: {said}", remedy=remedy))
    if error.code == "unknown_parameter":
        return Failure(UnsupportedError(f"{where} cannot do what was asked: {said}"))
    if status == 404 and isinstance(error.body, Mapping) and error.body.get("detail") == "Not Found":
        remedy = (
            "A model of rewards or scores is for the role reward (PoolingBackend); ask one that writes text."
        )
        return Failure(RejectedError(f"{where} does not complete chats.", remedy=remedy))
    if status == 404 and model:
        return Failure(RejectedError(f"{where} has no model {model!r}: {said}"))
    return Failure(RejectedError(f"{where} refuses the request (status {status}): {said}"))


def _said(error: openai.APIStatusError) -> str:
    """The server's own message, in one line of at most 500 characters."""
    body = error.body
    message = body.get("message") if isinstance(body, Mapping) else body
    said = " ".join(str(message or error.response.text or "nothing said").split())[:500]
    return "a web page" if said.startswith("<") else said


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds to wait, from a Retry-After header in either of its forms (RFC 9110, section 10.2.3)."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - (time.time() if now is None else now)
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
