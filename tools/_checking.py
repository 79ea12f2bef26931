"""Values checked by JSON schemas of others."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft7Validator, Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.protocols import Validator
from jsonschema.validators import extend, validator_for
from referencing import Registry

from stratagem.tools._regex import found, one_check


class Checked:
    """Checks a value, as a :class:`pydantic.TypeAdapter` does.

    Raises:
        ValueError: the schema is none.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._validator = _validator(schema)

    def part(self, schema: Any) -> Checked:
        """Checks by a part of the schema."""
        part = object.__new__(Checked)
        part._validator = self._validator.evolve(schema=schema)
        return part

    def validate_python(self, value: Any) -> Any:
        """The value.

        Raises:
            ValueError: it does not fit.
        """
        with one_check():
            error = _wrong(self._validator, value)
        if error is not None:
            place = ".".join(map(str, error.absolute_path))
            raise ValueError(f"{place}: {error.message}" if place else error.message)
        return value


def _wrong(validator: Validator, value: Any) -> ValidationError | None:
    try:
        wrong: ValidationError | None = best_match(validator.iter_errors(value))
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        # Of the library's part in Rust, where the stack ends there; it is no Exception, and cannot be imported.
        raise RecursionError("it is nested too deeply") from None
    return wrong


def _validator(schema: Mapping[str, Any]) -> Validator:
    named = {"$schema": draft} if isinstance(draft := schema.get("$schema"), str) else {}
    drafts = [validator_for(named, default=Draft202012Validator)]
    if not named:
        drafts.append(Draft7Validator)  # which servers mean more often than they say
    wrong = ""
    for draft in drafts:
        error = _wrong(draft(draft.META_SCHEMA), schema)
        if error is None:
            # A registry of our own, though empty, keeps it from fetching a remote $ref.
            return _linear(draft, _has(schema, "patternProperties"))(schema, registry=Registry())
        wrong = wrong or error.message
    raise ValueError(wrong)


def _has(schema: Any, key: str) -> bool:
    if isinstance(schema, Mapping):
        return key in schema or any(_has(each, key) for each in schema.values())
    return isinstance(schema, list) and any(_has(each, key) for each in schema)


@functools.cache
def _linear(draft: type[Validator], keys_by_pattern: bool) -> type[Validator]:
    """A draft's validator whose regular expressions take linear time, and which fits what only its owner can check.

    What is left over of keys that have a pattern (``unevaluatedProperties``) is the owner's to check, too: the
    library finds it out within.
    """
    others = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
    }
    if keys_by_pattern:
        others["unevaluatedProperties"] = _unchecked
    own = {key: each for key, each in others.items() if key in draft.VALIDATORS}
    linear: Any = extend(draft, own)  # type: ignore[no-untyped-call]
    evolve = linear.evolve

    def staying(validator: Any, **changes: Any) -> Any:
        schema = changes.get("schema")
        if isinstance(schema, Mapping) and "$schema" in schema:  # would give that draft's own validator
            changes["schema"] = {key: each for key, each in schema.items() if key != "$schema"}
        return evolve(validator, **changes)

    linear.evolve = staying
    return linear  # type: ignore[no-any-return]


def _pattern(validator: Any, pattern: str, value: Any, _: Any) -> Iterator[ValidationError]:
    if validator.is_type(value, "string") and found(pattern, value) is False:
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, patterns: Mapping[str, Any], value: Any, _: Any
) -> Iterator[ValidationError]:
    if validator.is_type(value, "object"):
        for pattern, schema in patterns.items():
            for key, part in value.items():
                if found(pattern, key):
                    yield from validator.descend(part, schema, path=key, schema_path=pattern)


def _additional_properties(
    validator: Any, others: Any, value: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if not validator.is_type(value, "object"):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for key, part in value.items():
        if key in named or any(found(each, key) is not False for each in patterns):
            continue
        if others is False:
            yield ValidationError(f"{key!r} is not one of its properties")
        else:
            yield from validator.descend(part, others, path=key)


def _unchecked(*_: Any) -> Iterator[ValidationError]:
    return iter(())
