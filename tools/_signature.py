"""What a typed function's signature says: how to check its arguments and result, and the JSON schema of them."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from stratagem.core.errors import ConfigurationError


def typed(
    name: str, function: Callable[..., Any]
) -> tuple[Callable[..., Any], dict[str, TypeAdapter[Any]], TypeAdapter[Any], dict[str, Any]]:
    """The function as it is called, validators of its arguments and of its result, and the JSON schema of the
    arguments."""
    try:
        given = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"Tool {name!r}: its signature cannot be read: {error}.", remedy="Write a function that calls it."
        ) from None
    try:
        types = typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # an annotation in quotes is evaluated, which may raise anything
        raise ConfigurationError(
            f"Tool {name!r}: a type cannot be resolved: {type(error).__name__}: {error}.",
            remedy="Annotate a function with types that its module knows.",
        ) from None
    for each in given.values():
        if each.kind not in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
            raise ConfigurationError(
                f"Tool {name!r}: parameter {each} cannot be named.", remedy="List what it takes, by name."
            )
    untyped = [each for each in (*given, "return") if each not in types]
    if untyped:
        raise ConfigurationError(
            f"Tool {name!r} has no type for: {', '.join(untyped)}.", remedy="Annotate it."
        )
    fields = {key: each.default for key, each in given.items() if isinstance(each.default, FieldInfo)}
    for key, default in fields.items():
        types[key] = Annotated[types[key], default]
    plain = {key: each for key, each in given.items() if key not in fields and each.default is not each.empty}
    try:
        arguments = {each: TypeAdapter(types[each]) for each in given}
        result = TypeAdapter(types["return"])
        parts, shared = TypeAdapter.json_schemas([(key, "validation", a) for key, a in arguments.items()])
        properties = {key: parts[key, "validation"] for key in arguments}
        for key, parameter in plain.items():
            told = arguments[key].dump_python(parameter.default, mode="json")
            properties[key] = {**properties[key], "default": told}
    except Exception as error:  # types have hooks of their own
        raise ConfigurationError(
            f"Tool {name!r}: a type has no JSON schema: {str(error).partition(chr(10))[0]}",
            remedy="Use JSON's types, data classes or pydantic models.",
        ) from None
    required = [key for key in given if key not in plain and (key not in fields or fields[key].is_required())]
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return _filled(function, fields), arguments, result, {**schema, **shared}


def _filled(function: Callable[..., Any], fields: dict[str, FieldInfo]) -> Callable[..., Any]:
    """The function, where pydantic's fields stand as defaults of parameters with the fields' own defaults."""
    if not fields:
        return function

    def fill(arguments: dict[str, Any]) -> dict[str, Any]:
        for key, each in fields.items():
            if key not in arguments:
                default = each.get_default(call_default_factory=True, validated_data=arguments)
                arguments = {**arguments, key: default}
        return arguments

    signature = inspect.signature(function)
    named = [
        each.replace(kind=each.KEYWORD_ONLY, default=fields[key].default if key in fields else each.default)
        for key, each in signature.parameters.items()
    ]
    made = changed(function, fill)
    made.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]
    return made


def changed(
    function: Callable[..., Any], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> Callable[..., Any]:
    """The function, async if it is, called with its arguments as ``change`` gives them."""

    def blocking(**arguments: Any) -> Any:
        return function(**change(arguments))

    async def in_loop(**arguments: Any) -> Any:
        return await blocking(**arguments)

    return in_loop if inspect.iscoroutinefunction(function) else blocking
