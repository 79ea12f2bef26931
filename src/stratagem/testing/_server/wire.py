"""The wire format: requests as vLLM and OpenAI take them, validation errors as they give them."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stratagem.testing._server.text import POOLING, SimRequest, Vocabulary, render_chat, tokenize

Flavour = Literal["vllm", "openai"]
Endpoint = Literal["chat", "completions", "classify", "pooling"]
_VLLM_ONLY = {
    "structured_outputs",
    "prompt_logprobs",
    "continue_final_message",
    "add_generation_prompt",
    "include_stop_str_in_output",
    "return_token_ids",
    "priority",
    "stream_interval",
    "top_k",
    "min_p",
}
_MAX_N = 128
_MAX_TOP_LOGPROBS = 20


class WireError(Exception):
    """A request that is refused, with its status and the body that says why."""

    def __init__(
        self, status: int, message: str, kind: str, *, param: str | None = None, code: object = None
    ):
        super().__init__(message)
        self.status = status
        self.body: object = {
            "error": {
                "message": message,
                "type": kind,
                "param": param,
                "code": status if code is None else code,
            }
        }


def bad_request(
    flavour: Flavour, message: str, param: str | None = None, code: str | None = None
) -> WireError:
    """A 400 as vLLM (numeric code) or OpenAI (named code) writes it."""
    if flavour == "vllm":
        return WireError(400, message, "BadRequestError", param=param)
    return WireError(400, message, "invalid_request_error", param=param, code=code or "invalid_value")


def unauthorized(flavour: Flavour) -> WireError:
    """A 401: vLLM's has a bare string for its error, OpenAI's an object."""
    error = WireError(401, "Incorrect API key provided.", "invalid_request_error", code="invalid_api_key")
    if flavour == "vllm":
        error.body = {"error": "Unauthorized"}
    return error


def unknown_model(flavour: Flavour, model: str) -> WireError:
    """A 404 for a model that is not served."""
    if flavour == "vllm":
        return WireError(404, f"The model `{model}` does not exist.", "NotFoundError", param="model")
    message = f"The model `{model}` does not exist or you do not have access to it."
    return WireError(404, message, "invalid_request_error", code="model_not_found")


class _StreamOptions(BaseModel):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class _Structured(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    choice: list[str] | None = None
    regex: str | None = None
    json_: dict[str, Any] | str | None = Field(None, alias="json")
    grammar: str | None = None


class Body(BaseModel):
    """What the server reads of a completion request; other fields are ignored, as vLLM does."""

    model_config = ConfigDict(extra="ignore")
    model: str | None = None
    messages: list[dict[str, Any]] | None = None
    prompt: str | list[int] | list[str] | list[list[int]] | None = None
    input: str | list[str] | None = None
    use_activation: bool | None = None
    n: int = Field(1, ge=1, le=_MAX_N)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    stream_interval: int = Field(1, ge=1)
    max_tokens: int | None = Field(None, ge=0)
    max_completion_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    logprobs: bool | int | None = None
    top_logprobs: int | None = Field(None, ge=0, le=_MAX_TOP_LOGPROBS)
    echo: bool = False
    prompt_logprobs: int | None = Field(None, ge=0, le=_MAX_TOP_LOGPROBS)
    structured_outputs: _Structured | None = None
    response_format: dict[str, Any] | None = None
    continue_final_message: bool = False
    add_generation_prompt: bool = True
    include_stop_str_in_output: bool = False
    return_token_ids: bool = False
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] = "auto"

    @property
    def calls(self) -> bool:
        """Whether what a model writes as calls of tools is given as such."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def continuous_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


def parse_body(flavour: Flavour, endpoint: Endpoint, raw: bytes) -> tuple[Body, Mapping[str, Any]]:
    """The request body, validated. Raises WireError."""
    data = parse_json(flavour, raw)
    if flavour == "openai":
        for name in sorted(_VLLM_ONLY & data.keys()):
            raise bad_request(
                flavour, f"Unrecognized request argument supplied: {name}", name, "unknown_parameter"
            )
        options = data.get("stream_options")
        if isinstance(options, dict) and "continuous_usage_stats" in options:
            name = "stream_options.continuous_usage_stats"
            raise bad_request(flavour, f"Unknown parameter: '{name}'.", name, "unknown_parameter")
    try:
        body = Body.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = ".".join(str(part) for part in first["loc"])
        raise bad_request(flavour, f"{param}: {first['msg']}", param) from error
    problem = _problem(endpoint, body, data)
    if flavour == "vllm" and body.n > 1 and body.temperature == 0:
        problem = f"n must be 1 when using greedy sampling, got {body.n}.", "n"
    if problem is not None:
        raise bad_request(flavour, *problem)
    return body, data


def parse_json(flavour: Flavour, raw: bytes) -> dict[str, Any]:
    """A JSON object. Raises WireError."""
    try:
        data = json.loads(raw)
    except ValueError as error:
        raise bad_request(flavour, f"JSON decode error: {error}") from error
    if not isinstance(data, dict):
        raise bad_request(flavour, "The body must be a JSON object.")
    return data


def _problem(endpoint: Endpoint, body: Body, data: Mapping[str, Any]) -> tuple[str, str] | None:
    if endpoint == "chat" and not body.messages:
        return "`messages` must be a non-empty list.", "messages"
    if endpoint == "completions" and not body.prompt:
        return "Either prompt or prompt_embeds must be provided and non-empty.", "prompt"
    if endpoint in POOLING and not (body.messages or body.input):
        return "You must pass at least one prompt", "input"
    if endpoint == "chat" and body.top_logprobs and not body.logprobs:
        return "when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs"
    if data.get("stream_options") and not body.stream:
        return "Stream options can only be defined when `stream=True`.", "stream_options"
    if body.stream and body.prompt_logprobs:
        return "`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs"
    if body.continue_final_message and body.add_generation_prompt:
        message = "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
        return message, "continue_final_message"
    if body.structured_outputs is not None and len(_constraint(body) or {}) != 1:
        message = (
            "You can only use one kind of constraints for structured outputs ('json', 'regex' or 'choice')."
        )
        return message, "structured_outputs"
    for message_ in body.messages or ():
        if not isinstance(message_.get("role"), str):
            return "each message must have a role", "messages"
    return None


def _constraint(body: Body) -> dict[str, Any] | None:
    if body.structured_outputs is not None:
        return body.structured_outputs.model_dump(exclude_none=True, by_alias=True)
    form = body.response_format or {"type": "text"}
    if form.get("type") == "json_schema":
        return {"json": form.get("json_schema", {}).get("schema", {})}
    return {"json": {"type": "object"}} if form.get("type") == "json_object" else None


def sim_requests(
    flavour: Flavour,
    endpoint: Endpoint,
    body: Body,
    data: Mapping[str, Any],
    *,
    number: int,
    request_id: str,
    headers: Mapping[str, str],
    vocabulary: Vocabulary,
    max_model_len: int,
) -> list[SimRequest]:
    """One request per prompt (only completions may carry several). Raises WireError."""
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    top: int | None = None
    if endpoint == "completions":
        top = None if body.logprobs is None else int(body.logprobs)
    elif body.logprobs:
        top = body.top_logprobs or 0
    asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    if endpoint == "completions" and asked is None:
        asked = 16
    if endpoint in POOLING:
        asked = 0
    requests = []
    for prompt in _prompts(flavour, body, vocabulary):
        pieces = tuple(tokenize(prompt))
        for text in pieces:
            vocabulary.id(text)
        requests.append(
            SimRequest(
                number=number,
                id=request_id,
                endpoint=endpoint,
                prompt=prompt,
                prompt_tokens=pieces,
                messages=tuple(body.messages or ()),
                n=body.n,
                seed=body.seed,
                temperature=1.0 if body.temperature is None else body.temperature,
                max_tokens=_room(flavour, asked, len(pieces), max_model_len),
                stop=tuple(text for text in stop if text),
                stream=body.stream,
                top_logprobs=top,
                structured=_constraint(body),
                headers=headers,
                body=data,
            )
        )
    return requests


def _prompts(flavour: Flavour, body: Body, vocabulary: Vocabulary) -> list[str]:
    if body.messages is not None:
        try:
            rendered = render_chat(
                body.messages,
                generation_prompt=body.add_generation_prompt,
                continue_final=body.continue_final_message,
            )
        except ValueError as error:
            raise bad_request(flavour, str(error), "messages") from error
        return [rendered]
    prompt = body.prompt or body.input or ""
    if isinstance(prompt, str):
        return [prompt]
    try:
        texts = [item if isinstance(item, str) else _decoded(item, vocabulary) for item in prompt]
    except IndexError as error:
        raise bad_request(flavour, "Token id out of vocabulary.", "prompt") from error
    return ["".join(texts)] if isinstance(prompt[0], int) else texts


def _decoded(ids: int | list[int], vocabulary: Vocabulary) -> str:
    return "".join(vocabulary.piece(i) for i in (ids if isinstance(ids, list) else [ids]))


def _room(flavour: Flavour, asked: int | None, prompt: int, limit: int) -> int:
    if asked is None:
        if prompt < limit:
            return limit - prompt
        message = (
            f"This model's maximum context length is {limit} tokens. However, your request has {prompt} "
            "input tokens. Please reduce the length of the input messages."
        )
        raise bad_request(flavour, message, "input_tokens", "context_length_exceeded")
    if prompt + asked > limit:
        message = (
            f"This model's maximum context length is {limit} tokens. However, you requested {asked} output "
            f"tokens and your prompt contains at least {prompt} input tokens, for a total of at least "
            f"{prompt + asked} tokens. Please reduce the length of the input prompt or the number of "
            "requested output tokens."
        )
        raise bad_request(flavour, message, "input_tokens", "context_length_exceeded")
    return asked
