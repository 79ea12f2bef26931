"""``stratagem calibrate`` and its options."""

from __future__ import annotations

from collections.abc import Coroutine
from functools import partial
from typing import Annotated, Any

import typer

from stratagem._cli.app import _LIMITS, AsJson, BaseUrl, Debug, KeyEnv, Model, Roles, finish


def calibrate(
    task: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Problems to choose by, not those to report on: gym:SKILL/dev, or gsm8k:FILE, jsonl:FILE.",
        ),
    ],
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder of the results. The same one goes on.")],
    strategy: Annotated[
        str, typer.Option("--strategy", "-s", metavar="NAME", help="A name, or a strategy as YAML or JSON.")
    ] = "adaptive_best_of_n",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the strategy, as n=8. Repeatable."),
    ] = None,
    target: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share to keep of what n samples gain over one.")
    ] = 0.74,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Only the first N problems.")] = None,
    seeds: Annotated[int, typer.Option(metavar="K", min=1, help="Runs of each problem.")] = 1,
    base_url: BaseUrl = None,
    model: Model = None,
    api_key_env: KeyEnv = None,
    roles: Roles = None,
    concurrency: Annotated[
        int, typer.Option(metavar="N", min=1, help="Runs at the same time.", rich_help_panel=_LIMITS)
    ] = 16,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find the threshold at which sampling pays, and write the strategy for solve --config."""

    def command() -> Coroutine[Any, Any, int]:
        from pathlib import Path

        from stratagem._cli.calibrate import calibrate as run
        from stratagem._cli.settings import build_strategy, connect, connect_roles, using
        from stratagem.bench.data import load

        chosen = build_strategy(strategy, settings or ())
        problems = load(task, limit=limit)
        others = connect_roles(roles or (), api_key_env)
        find = partial(
            run,
            problems,
            chosen,
            others=others,
            out=Path(out),
            target=target,
            seeds=seeds,
            concurrency=concurrency,
            as_json=as_json,
        )
        return using(connect(base_url, model, api_key_env, others=others), find, others)

    finish(command, debug)
