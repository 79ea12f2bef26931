"""The command ``stratagem``. ``python -m stratagem.cli`` is the same."""

from __future__ import annotations

import sys

from stratagem._cli.app import app, main
from stratagem._cli.app_vllm import vllm_app

__all__ = ["main"]

app.add_typer(vllm_app, name="vllm")

if __name__ == "__main__":
    sys.exit(main())
