"""Tools that come with a JSON schema in place of a typed function: from other libraries and from servers."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from jsonschema.protocols import Validator
from pydantic_core import to_jsonable_python
from referencing import Registry

from stratagem.core.errors import ConfigurationError
from stratagem.tools.tool import Effect, Tool


class _Argument:
    """Checks one argument, as a :class:`pydantic.TypeAdapter` does."""

    def __init__(self, validator: Validator) -> None:
        self._validator = validator

    def validate_python(self, value: Any) -> Any:
        error = best_match(self._validator.iter_errors(value))
        if error is not None:
            raise ValueError(error.message)
        return value


class _Anything:
    """A result of which nothing is known."""

    def validate_python(self, value: Any) -> Any:
        return value

    def dump_python(self, value: Any, *, mode: str) -> Any:
        return to_jsonable_python(value)  # dates, models and the documents of LangChain


def schema_tool(
    name: str,
    description: str,
    schema: Mapping[str, Any],
    function: Callable[..., Awaitable[Any]],
    *,
    effect: Effect = "destructive",
    timeout: float = 30.0,
    max_bytes: int = 100_000,
    secrets: Sequence[str] = (),
) -> Tool:
    """A tool from the JSON schema of its arguments and an async function that takes them by name.

    A name that the plan notation cannot write (``-`` and ``.`` are common), of the tool or of an argument, gets
    ``_`` there; the function gets the argument's own name. Each argument is
    checked by its own part of the schema. A ``$ref`` to somewhere else is not fetched: no argument fits it.

    Raises:
        ConfigurationError: the schema is none, or not one of an object.
    """
    properties = dict(schema.get("properties") or {})
    written = _written(properties)
    own = {name: key for key, name in written.items()}
    parameters = {
        "type": "object",
        **schema,
        "required": [written.get(key, key) for key in schema.get("required") or []],
        "properties": {written[key]: each for key, each in properties.items()},
    }
    try:
        Draft202012Validator.check_schema(parameters)
    except SchemaError as error:
        raise ConfigurationError(f"Tool {name!r}: its schema is none: {error.message}.") from None
    if parameters["type"] != "object":
        raise ConfigurationError(
            f"Tool {name!r}: its schema is one of {parameters['type']!r}, not of an object."
        )
    # A registry of our own, though empty, keeps it from fetching a remote $ref.
    whole = Draft202012Validator(parameters, registry=Registry())
    arguments: dict[str, Any] = {
        key: _Argument(whole.evolve(schema=each)) for key, each in parameters["properties"].items()
    }
    return Tool(
        _written([name])[name],
        description or name,
        parameters,
        function if all(name == key for name, key in own.items()) else _renamed(function, own),
        timeout,
        0,
        None,
        None,
        0.0,
        effect,
        max_bytes,
        "skip",
        tuple(secrets),
        arguments,
        _Anything(),  # type: ignore[arg-type]
    )


def _written(keys: Iterable[str]) -> dict[str, str]:
    """By key, a name that the plan notation can write; of two that would be the same the later has a ``_`` more."""
    names: dict[str, str] = {}
    for key in keys:
        name = re.sub(r"\W", "_", key, flags=re.ASCII)
        name = name if name[:1].isalpha() or name[:1] == "_" else f"_{name}"
        while name in names.values():
            name += "_"
        names[key] = name
    return names


def _renamed(
    function: Callable[..., Awaitable[Any]], own: Mapping[str, str]
) -> Callable[..., Awaitable[Any]]:
    async def named(**arguments: Any) -> Any:
        return await function(**{own[name]: value for name, value in arguments.items()})

    return named
