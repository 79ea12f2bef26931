"""The commands and their options. Whatever a command needs is imported inside it, so that help is quick."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import traceback
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Annotated, Any, NoReturn

import typer

from stratagem import __version__
from stratagem.core.errors import BudgetExhausted, ConfigurationError, StratagemError

_MODEL, _LIMITS, OUTPUT = "Model", "Limits", "Output"

BaseUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="An OpenAI-compatible server, as http://localhost:8000/v1. Without it: the shipped model, in process.",
        rich_help_panel=_MODEL,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="Model on that server; without one, a model's folder.",
        rich_help_panel=_MODEL,
    ),
]
KeyEnv = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Environment variable with the API key.", rich_help_panel=_MODEL),
]
Roles = Annotated[
    list[str] | None,
    typer.Option(
        "--role",
        metavar="ROLE=URL[#MODEL]",
        help="Another server for a role: judge, or what a verifier names; reward and reward-... are reward models "
        "on vLLM's pooling endpoints. Repeatable.",
        rich_help_panel=_MODEL,
    ),
]
Limit = Annotated[
    str | None,
    typer.Option(
        "--budget",
        "-b",
        metavar="KEY=N,...",
        help="Any of tokens, calls, seconds, money, as tokens=20000,seconds=30.",
        rich_help_panel=_LIMITS,
    ),
]
PriceIn = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        min=0,
        help="Money per million tokens of prompt on that server, for --budget money=N.",
        rich_help_panel=_LIMITS,
    ),
]
PriceOut = Annotated[
    float | None,
    typer.Option(metavar="X", min=0, help="The same of answers.", rich_help_panel=_LIMITS),
]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=OUTPUT)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.", rich_help_panel=OUTPUT)]

app = typer.Typer(
    name="stratagem",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Better answers from a language model, by spending more computation on a question, at a known cost.",
    epilog="Start with:  [bold]stratagem demo[/bold]",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stratagem {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def demo(debug: Debug = False) -> None:
    """See more computation give better answers: in about a minute, on this machine, with nothing to download."""

    def command() -> Coroutine[Any, Any, int]:
        from stratagem._cli.demo import demo as run
        from stratagem._cli.settings import connect, using

        return using(connect(None, None, None), run)

    finish(command, debug)


@app.command(
    epilog='[dim]$[/dim] stratagem solve "Tina has 35 beads. Tina loses 27 beads. How many has Tina?"\n\n'
    '[dim]$[/dim] stratagem solve "..." -s best_of_n --set n=32 --budget tokens=20000,seconds=30\n\n'
    "[dim]$[/dim] stratagem solve - --base-url http://localhost:8000/v1 --json < question.txt"
)
def solve(
    question: Annotated[str, typer.Argument(help="What is asked; - reads it from standard input.")],
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy",
            "-s",
            metavar="NAME",
            help="See: stratagem strategies. [dim](default: self_consistency)[/dim]",
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", "-c", metavar="FILE", help="A strategy as YAML or JSON.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the strategy, as n=16. Repeatable."),
    ] = None,
    tools: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="What strategies that call tools may call: a tool, a list of them or a toolbox, as shop:tools.",
        ),
    ] = None,
    base_url: BaseUrl = None,
    model: Model = None,
    api_key_env: KeyEnv = None,
    roles: Roles = None,
    budget: Limit = None,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    seed: Annotated[
        int, typer.Option(help="The same seed gives the same answer.", rich_help_panel=_LIMITS)
    ] = 0,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="SQLite file that keeps what is finished, so that a killed run can go on.",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    run_id: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="The run in the store to go on with; under a larger --budget, also where that had stopped it.",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    as_json: AsJson = False,
    trace: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Append every event as a line of JSON.", rich_help_panel=OUTPUT),
    ] = None,
    debug: Debug = False,
) -> None:
    """Answer one question."""

    def command() -> Coroutine[Any, Any, int]:
        from stratagem._cli.settings import (
            build_strategy,
            config_file,
            connect,
            connect_roles,
            load_tools,
            read_question,
            using,
        )
        from stratagem._cli.solve import solve as run
        from stratagem.core.budget import Budget

        if strategy is not None and config is not None:
            raise ConfigurationError(
                "--strategy and --config exclude each other.", remedy="Give one of them."
            )
        if run_id is not None and store is None:
            raise ConfigurationError(
                "--run-id needs --store.", remedy="Name the file that the run is kept in."
            )
        source = strategy or "self_consistency" if config is None else config_file(config)
        chosen = build_strategy(source, settings or ())
        limits = None if budget is None else Budget.parse(budget)
        others = connect_roles(roles or (), api_key_env)
        answer = partial(
            run,
            read_question(question),
            chosen,
            others=others,
            tools=None if tools is None else load_tools(tools),
            budget=limits,
            seed=seed,
            store=store,
            run_id=run_id,
            as_json=as_json,
            trace_file=trace,
        )
        return using(
            connect(base_url, model, api_key_env, price_in, price_out, others=others), answer, others
        )

    finish(command, debug)


@app.command()
def strategies(
    kinds: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Only these strategies or verifiers.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List strategies and verifiers, with their parameters."""

    def command() -> Coroutine[Any, Any, int]:
        from stratagem._cli.listing import list_components

        return list_components(kinds or (), as_json=as_json)

    finish(command, debug)


@app.command(epilog="[dim]$[/dim] stratagem doctor --base-url http://localhost:8000/v1")
def doctor(
    base_url: BaseUrl = None,
    model: Model = None,
    api_key_env: KeyEnv = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check the installation and what the model's side can do. Exit code 1 when something is broken."""

    def command() -> Coroutine[Any, Any, int]:
        from stratagem._cli.doctor import doctor as run
        from stratagem._cli.settings import connect, using

        check = partial(run, embedded=base_url is None, as_json=as_json)
        return using(connect(base_url, model, api_key_env), check)

    finish(command, debug)


@app.command(
    epilog="[dim]$[/dim] stratagem bench gym:words --strategies chain_of_thought,best_of_n --limit 9 --out w\n\n"
    "[dim]$[/dim] stratagem bench gsm8k:test.jsonl --strategies few=self_consistency,many=self_consistency "
    "--set few.n=4 --set many.n=64 --out votes"
)
def bench(
    task: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="gym:SKILL, gym:SKILL/SPLIT, or gsm8k:FILE, svamp:FILE, jsonl:FILE."
        ),
    ],
    strategies: Annotated[
        str, typer.Option("--strategies", metavar="A,B,...", help="Names, or LABEL=NAME, or LABEL=FILE.yaml.")
    ],
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder of the results. The same one goes on.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="LABEL.KEY=VALUE", help="A parameter of one strategy. Repeatable."),
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Only the first N problems.")] = None,
    seeds: Annotated[int, typer.Option(metavar="K", min=1, help="Runs of each problem.")] = 1,
    base_url: BaseUrl = None,
    model: Model = None,
    api_key_env: KeyEnv = None,
    roles: Roles = None,
    budget: Limit = None,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    concurrency: Annotated[
        int, typer.Option(metavar="N", min=1, help="Runs at the same time.", rich_help_panel=_LIMITS)
    ] = 16,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Leave out broken lines.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare strategies on problems with known answers. Interrupted, the same command goes on."""

    def command() -> Coroutine[Any, Any, int]:
        from pathlib import Path

        from stratagem._cli.bench import bench as run
        from stratagem._cli.bench import build_strategies
        from stratagem._cli.settings import connect, connect_roles, using
        from stratagem.bench.data import load
        from stratagem.core.budget import Budget

        chosen = build_strategies(strategies, settings or ())
        problems = load(task, limit=limit, skip_broken=skip_broken)
        others = connect_roles(roles or (), api_key_env)
        compare = partial(
            run,
            problems,
            chosen,
            others=others,
            out=Path(out),
            seeds=seeds,
            budget=None if budget is None else Budget.parse(budget),
            concurrency=concurrency,
            as_json=as_json,
        )
        return using(
            connect(base_url, model, api_key_env, price_in, price_out, others=others), compare, others
        )

    finish(command, debug)


def finish(command: Callable[[], Coroutine[Any, Any, int]], debug: bool) -> NoReturn:
    """Run a command to its exit code; an error of ours is one line."""
    from stratagem._cli.interrupt import INTERRUPTED, run

    try:
        code = run(command())
    except asyncio.CancelledError:
        code = INTERRUPTED
    except StratagemError as error:
        if debug:
            traceback.print_exc()
        remedy = "Raise --budget." if isinstance(error, BudgetExhausted) and not error.remedy else ""
        _say(f"{error} {remedy}")
        code = 2
    raise typer.Exit(code)


def _say(message: str) -> None:
    from stratagem._cli.console import say_error

    say_error(message)


# typer has its own copy of click since 0.20 and the real one before: both have this shape.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def main() -> int:
    """Run the command line. Exit codes: 0 done, 1 something is broken, 2 an error, 130 Ctrl-C or SIGTERM."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal gets question marks, not a crash
    try:
        return int(app(prog_name="stratagem", standalone_mode=False) or 0)
    except _UsageError as error:
        _say(_usage(error))
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _usage(error: Any) -> str:
    message = str(error.format_message()).strip()
    where = error.ctx.command_path if getattr(error, "ctx", None) else "stratagem"
    return f"{message.rstrip('.')}{'' if message.endswith('?') else '.'} See: {where} --help"
