"""Tools that come with a JSON schema in place of a typed function: from other libraries and from servers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from stratagem.core.errors import ConfigurationError
from stratagem.core.text import encodable
from stratagem.tools._checking import Checked
from stratagem.tools._schemas import resolved, written
from stratagem.tools._signature import changed
from stratagem.tools.tool import MOST_SAID, Effect, Tool

# At the top of a schema, what says the same as the merged properties, or what no model's server takes there.
_MERGED = {"$ref", "allOf", "anyOf", "oneOf", "not", "if", "then", "else", "enum", "const"}


class _Anything:
    """A result of which nothing is known."""

    def validate_python(self, value: Any) -> Any:
        return value

    def dump_python(self, value: Any, *, mode: str) -> Any:
        return to_jsonable_python(value)  # dates, models and the documents of LangChain


@dataclass(frozen=True, eq=False, kw_only=True)
class _SchemaTool(Tool):
    """A tool whose arguments are checked together too, and may be more than those that its schema names."""

    own: Mapping[str, str]
    """By name, what the schema and the function call an argument."""
    together: Checked

    def _checked(
        self, arguments: Mapping[str, Any], unknown: frozenset[str]
    ) -> tuple[dict[str, Any], list[str]]:
        named = arguments
        if self.parameters["additionalProperties"]:
            named = {key: value for key, value in arguments.items() if key in self._arguments}
        checked, wrong = super()._checked(named, unknown)
        if not wrong and not unknown:
            try:
                self.together.validate_python(
                    {self.own.get(key, key): value for key, value in arguments.items()}
                )
            except Exception as error:  # also a reference to somewhere else
                wrong = [self.masked(f"{self.name}: {str(error)[:MOST_SAID]}.", arguments)]
        return {**arguments, **checked}, wrong


def schema_tool(
    name: str,
    description: str,
    schema: Mapping[str, Any],
    function: Callable[..., Any],
    *,
    effect: Effect = "destructive",
    timeout: float = 30.0,
    max_bytes: int = 100_000,
    secrets: Sequence[str] = (),
) -> Tool:
    """A tool from the JSON schema of its arguments and a function, async or not, that takes them by name.

    The schema is of the draft that its ``$schema`` names, else of 2020-12 or, where it does not fit that, of draft
    7. Arguments are those of its ``properties``, also where these stand in a ``$ref``, ``allOf``, ``anyOf`` or
    ``oneOf``. Others are taken where it has ``additionalProperties`` or ``patternProperties``; saying nothing of
    them is not enough, since a misspelt name would go unseen.

    A name that the plan notation cannot write (``-`` and ``.`` are common), of the tool or of an argument, gets
    ``_`` there; the function gets the argument's own name. Each argument is checked by its own part of the schema,
    and all of them by the whole. A ``$ref`` to somewhere else is not fetched: no argument fits it. What it says
    by regular expressions is the function's to check: ``pattern``, ``patternProperties`` and, beside these,
    ``additionalProperties`` and ``unevaluatedProperties``.

    Other limits are given by :meth:`stratagem.tools.tool.Tool.replace`.

    Raises:
        ConfigurationError: the schema is none, or not one of an object.
    """
    try:
        schema = encodable({key: each for key, each in schema.items() if each is not None})
        whole = Checked(schema)
        properties, required, more = _merged(schema, schema)
    except ValueError as error:
        raise ConfigurationError(f"Tool {name!r}: its schema is none: {error}.") from None
    except RecursionError:
        raise ConfigurationError(f"Tool {name!r}: its schema never ends.") from None
    kinds = resolved(schema, schema).get("type", "object")
    if "object" not in ([kinds] if isinstance(kinds, str) else kinds):
        raise ConfigurationError(f"Tool {name!r}: its schema is one of {kinds!r}, not of an object.")
    names = written(properties)
    parameters = {
        **{key: each for key, each in schema.items() if key not in _MERGED},
        "type": "object",
        "properties": {names[key]: each for key, each in properties.items()},
        "required": [names[key] for key in properties if key in required],
        "additionalProperties": more,
    }
    own = {each: key for key, each in names.items()}
    return _SchemaTool(
        written([name])[name],
        encodable(description or name),
        parameters,
        changed(function, lambda given: {own.get(key, key): each for key, each in given.items()}),
        timeout,
        0,
        None,
        None,
        0.0,
        effect,
        max_bytes,
        "skip",
        tuple(secrets),
        {names[key]: whole.part(each) for key, each in properties.items()},  # type: ignore[misc]
        _Anything(),  # type: ignore[arg-type]
        own=own,
        together=whole,
    )


def _merged(schema: Any, root: Mapping[str, Any]) -> tuple[dict[str, Any], set[str], Any]:
    """The properties of an object by all parts of its schema, the required ones, and the schema of others."""
    plain = resolved(schema, root)
    properties = {key: each for key, each in plain.get("properties", {}).items() if each is not False}
    required = set(plain.get("required", ()))
    more = plain.get("additionalProperties", False)
    more = True if more == {} or (not more and plain.get("patternProperties")) else more
    for key in ("allOf", "anyOf", "oneOf"):
        parts = [_merged(each, root) for each in plain.get(key, ())]
        found: dict[str, list[Any]] = {}
        for part, needed, others in parts:
            for name, each in part.items():
                found.setdefault(name, []).append(each)
            required |= needed if key == "allOf" else set()
            more = more or others
        if key != "allOf" and parts:
            required |= set.intersection(*(needed for _, needed, _ in parts))
        for name, options in found.items():
            distinct = [each for i, each in enumerate(options) if each not in options[:i]]
            several = {"allOf" if key == "allOf" else "anyOf": distinct}
            properties.setdefault(name, distinct[0] if len(distinct) == 1 else several)
    return {**properties, **{name: {} for name in sorted(required) if name not in properties}}, required, more
