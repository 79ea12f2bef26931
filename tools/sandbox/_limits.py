"""What both sandboxes check alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from stratagem.core.errors import ConfigurationError


def checked(**limits: float) -> None:
    """Refuse limits that are not above 0."""
    for name, limit in limits.items():
        if not limit > 0:
            raise ConfigurationError(f"Sandbox: {name}={limit}.", remedy="It must be greater than 0.")


def as_json(inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    """The inputs as plain JSON data.

    Raises:
        ConfigurationError: one is none, or its name is no name.
    """
    for name in inputs or {}:
        if not name.isidentifier():
            raise ConfigurationError(f"The input {name!r} is no name of Python.", remedy="Rename it.")
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(inputs or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"The inputs of a program are no JSON: {error}.") from None
    return plain
