"""Values checked by JSON schemas of others, but for what these say by regular expressions.

A pattern and the value that it is to fit may both come from a server, in another dialect than Python's, and Python
may take more than a lifetime over them. So they are the server's own to check.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any, Final

import attrs
from jsonschema import Draft7Validator, Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.protocols import Validator
from jsonschema.validators import extend, validator_for
from referencing import Registry

from stratagem.tools._schemas import size

_MOST_PARTS: Final = 10_000
_MOST_STEPS: Final = 100_000  # of one check; some schemas double them with each level of the value

_left: ContextVar[list[int] | None] = ContextVar("stratagem_steps_left", default=None)


class _TooLong(Exception):
    """A check that takes more steps than it may."""


class Checked:
    """Checks a value, as a :class:`pydantic.TypeAdapter` does. What takes too long is left to the schema's owner.

    Raises:
        ValueError: the schema is none, or stands for too much.
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
        error = _wrong(self._validator, value)
        if error is not None:
            place = ".".join(map(str, error.absolute_path))
            raise ValueError(f"{place}: {error.message}" if place else error.message)
        return value


def _wrong(validator: Validator, value: Any) -> ValidationError | None:
    token = _left.set([_MOST_STEPS])
    try:
        wrong: ValidationError | None = best_match(validator.iter_errors(value))
    except _TooLong:
        return None
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        # Of the library's part in Rust, where the stack ends there; it is no Exception, and cannot be imported.
        raise RecursionError("it is nested too deeply") from None
    finally:
        _left.reset(token)
    return wrong


def _evolve(validator: Any, **changes: Any) -> Any:
    """For a part of the value or of the schema. The library's own would go over to the draft that a part names."""
    left = _left.get()
    if left is not None:
        left[0] -= 1
        if left[0] < 0:
            raise _TooLong
    return attrs.evolve(validator, **changes)


def _validator(schema: Mapping[str, Any]) -> Validator:
    if size(schema, schema) > _MOST_PARTS:
        raise ValueError(f"it stands for more than {_MOST_PARTS} parts")
    named = {"$schema": draft} if isinstance(draft := schema.get("$schema"), str) else {}
    drafts = [validator_for(named, default=Draft202012Validator)]
    if not named:
        drafts.append(Draft7Validator)  # which servers mean more often than they say
    wrong = ""
    for draft in drafts:
        error = _wrong(draft(draft.META_SCHEMA), schema)
        if error is None:
            # A registry of our own, though empty, keeps it from fetching a remote $ref.
            return _without_patterns(draft, "patternProperties" in str(schema))(schema, registry=Registry())
        wrong = wrong or error.message
    raise ValueError(wrong)


@functools.cache
def _without_patterns(draft: type[Validator], keys_by_pattern: bool) -> type[Validator]:
    """A draft's validator that fits what only the owner of the schema can check."""
    additional = draft.VALIDATORS["additionalProperties"]

    def others(validator: Any, of_others: Any, value: Any, schema: Any) -> Iterable[ValidationError]:
        return () if "patternProperties" in schema else additional(validator, of_others, value, schema) or ()

    own: dict[str, Any] = {
        "pattern": _unchecked,
        "patternProperties": _unchecked,
        "additionalProperties": others,
    }
    if keys_by_pattern:  # anywhere: to learn what is left over the library would look into all that applies
        own["unevaluatedProperties"] = _unchecked
    result: Any = extend(draft, own)  # type: ignore[no-untyped-call]
    result.evolve = _evolve
    return result  # type: ignore[no-any-return]


def _unchecked(*_: Any) -> Iterable[ValidationError]:
    return ()
