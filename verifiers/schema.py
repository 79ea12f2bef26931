"""Structured answers: JSON that a schema accepts (JSON Schema, through the jsonschema library)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import field_validator

from stratagem.core.component import parameter
from stratagem.core.protocols import Verdict, Verifier
from stratagem.core.run import Run
from stratagem.core.task import Candidate, Task


class Schema(Verifier):
    """1 if the answer is JSON that the schema accepts, else 0 with the first reason."""

    kind: ClassVar[str] = "schema"

    accepts: dict[str, Any] | None = parameter(None, "JSON schema; none: that of the task.")

    @field_validator("accepts")
    @classmethod
    def _is_schema(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None:
            from jsonschema import SchemaError
            from jsonschema.validators import validator_for

            try:
                validator_for(value).check_schema(value)
            except SchemaError as error:
                raise ValueError(f"is no JSON schema: {error.message}") from None
        return value

    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        schema = self.accepts if self.accepts is not None else task.answer_schema
        if schema is None:
            return [Verdict(None, "neither the verifier nor the task has a schema")] * len(candidates)
        validator = _validator(schema)
        return [_judged(c.answer or c.text, validator) for c in candidates]

    def equivalent(self, a: str, b: str) -> bool:
        first, second = _parsed(a), _parsed(b)
        if isinstance(first, _Broken) or isinstance(second, _Broken):
            return a.strip() == b.strip()
        return bool(first == second)


class _Broken(str):
    """Why a text is no JSON."""


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return _Broken(f"not JSON: {error}")


def _validator(schema: dict[str, Any]) -> Any:
    from jsonschema.validators import validator_for
    from referencing import Registry

    # A registry of our own, though empty, keeps it from fetching a remote $ref.
    return validator_for(schema)(schema, registry=Registry())


def _judged(text: str, validator: Any) -> Verdict:
    value = _parsed(text)
    if isinstance(value, _Broken):
        return Verdict(0.0, value)
    for error in validator.iter_errors(value):
        return Verdict(0.0, f"{error.json_path}: {error.message}")
    return Verdict(1.0)
