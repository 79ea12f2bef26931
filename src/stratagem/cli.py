"""The command ``stratagem``. ``python -m stratagem.cli`` is the same."""

from __future__ import annotations

import sys

from stratagem._cli.app import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
