"""The command ``stratagem``. ``python -m stratagem.cli`` is the same."""

from __future__ import annotations

import sys

from stratagem._cli.app import app, main
from stratagem._cli.app_calibrate import calibrate
from stratagem._cli.app_choose import choose
from stratagem._cli.app_vllm import vllm_app

__all__ = ["main"]

app.command(
    epilog="[dim]$[/dim] stratagem calibrate gym:words/dev --limit 300 --out tau\n\n"
    '[dim]$[/dim] stratagem solve -c tau/strategy.yaml "..."'
)(calibrate)
app.command(
    epilog="[dim]$[/dim] stratagem bench gym:words/dev -s direct,self_consistency,best_of_n --out runs\n\n"
    '[dim]$[/dim] stratagem choose runs && stratagem solve -c runs/auto.yaml --budget tokens=2000 "..."'
)(choose)
app.add_typer(vllm_app, name="vllm")

if __name__ == "__main__":
    sys.exit(main())
