"""Files that several parts read or hold in the same way."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from stratagem.core.errors import ConfigurationError, StoreError


def lock(file: int, folder: Path, writer: str) -> None:
    """Hold an open file for this process, until it is closed by whatever end of it.

    On Windows nothing is held.

    Raises:
        StoreError: another process holds it; ``writer`` names what that is, as "bench".
    """
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StoreError(
            f"Another {writer} is writing to {folder}.", remedy="Wait for it, or use another folder."
        ) from None


def json_object(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ConfigurationError: it cannot be read or holds something else; with this remedy.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"Cannot read {path}: {error.strerror}.", remedy=remedy) from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON: {error}.", remedy=remedy) from error
    if not isinstance(data, dict):
        raise ConfigurationError(f"{path} holds no JSON object.", remedy=remedy)
    return data
