"""What a signature may say beyond types."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import jsonschema
import pytest
from pydantic import Field, SecretStr

from stratagem.tools.tool import Failed, Value, tool


@pytest.mark.parametrize("threaded", [True, False])
def test_fields_of_pydantic_may_be_defaults(threaded: bool) -> None:
    def several(
        x: int = Field(gt=0),
        y: int = Field(default=3, le=9, description="How many."),
        z: list[int] = Field(default_factory=list),  # noqa: B008
        key: SecretStr = Field(default=SecretStr("hunter2")),  # noqa: B008
    ) -> list[Any]:
        """Gives what it was given."""
        z.append(x)
        return [x, y, z, key.get_secret_value()]

    @functools.wraps(several)
    async def in_loop(**arguments: Any) -> Any:
        return several(**arguments)

    made = tool(several) if threaded else tool(in_loop)
    properties = made.parameters["properties"]
    assert made.parameters["required"] == ["x"]
    assert (properties["y"]["default"], properties["y"]["description"]) == (3, "How many.")
    jsonschema.validate({"x": 1, "y": 9, "z": [1]}, made.parameters)
    for _ in range(2):  # each call has a list of its own
        assert asyncio.run(made(x=1)) == Value([1, 3, [1], "***"])
    assert asyncio.run(made(x=2, y=9, z=[5])) == Value([2, 9, [5, 2], "***"])
    for wrong in ({"x": 0}, {"x": 1, "y": 10}, {"y": 1}):
        outcome = asyncio.run(made(**wrong))
        assert isinstance(outcome, Failed)
        assert outcome.why == "arguments"
