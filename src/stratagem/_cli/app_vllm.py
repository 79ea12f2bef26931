"""The commands of ``stratagem vllm`` and their options."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Annotated, Any

import typer

from stratagem._cli.app import OUTPUT, AsJson, Debug, finish
from stratagem.core.errors import ConfigurationError

vllm_app = typer.Typer(no_args_is_help=True, help="Serve a model with vLLM, set up for what strategies send.")

_WORKLOAD, _SERVER = "Workload", "Server"
Concurrency = Annotated[
    int,
    typer.Option(metavar="N", min=1, help="Sequences in flight at the same time.", rich_help_panel=_WORKLOAD),
]
Context = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Longest prompt and answer together, in tokens.", rich_help_panel=_WORKLOAD
    ),
]
Python = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Interpreter of an environment that has vLLM.", rich_help_panel=_SERVER
    ),
]
Repeatable = Annotated[
    bool,
    typer.Option(
        "--repeatable", help="A seed must repeat its text: no speculation.", rich_help_panel=_WORKLOAD
    ),
]
StartupTimeout = Annotated[
    float, typer.Option(metavar="SECONDS", min=1, help="Until it must answer.", rich_help_panel=_SERVER)
]
Model = Annotated[str, typer.Argument(help="A folder, or a name on the Hugging Face hub.")]


@vllm_app.command(
    "serve",
    epilog="[dim]$[/dim] stratagem vllm serve Qwen/Qwen3-8B --profile agent\n\n"
    "[dim]$[/dim] stratagem vllm serve ./model --print -- --block-size 64 --enable-lora",
)
def vllm_serve(
    model: Model,
    flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- FLAGS]", help="Flags of vllm serve, which go before the profile's own."),
    ] = None,
    profile: Annotated[
        str, typer.Option("--profile", "-p", metavar="NAME", help="See: stratagem vllm profiles.")
    ] = "agent",
    print_only: Annotated[
        bool, typer.Option("--print", help="Print the plain command and start nothing.")
    ] = False,
    host: Annotated[str, typer.Option(help="Where it listens.", rich_help_panel=_SERVER)] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, rich_help_panel=_SERVER)] = 8000,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What clients call the model. [dim](default: its own name)[/dim]",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    python: Python = None,
    startup_timeout: StartupTimeout = 1800.0,
    speculative: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="How to guess ahead: ngram, recycling, merged, ...",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    datastore: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Past runs for retrieval and merged; see: stratagem vllm datastore.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    concurrency: Concurrency = 64,
    context: Context = None,
    repeatable: Repeatable = False,
    debug: Debug = False,
) -> None:
    """Serve a model until Ctrl-C. Its address goes to standard output, its log to standard error."""

    def command() -> Coroutine[Any, Any, int]:
        from stratagem._cli.vllm import guessing, serve
        from stratagem.backends.vllm.profiles import Workload

        return serve(
            model,
            profile,
            [*guessing(speculative, datastore), *(flags or ())],
            workload=Workload(concurrency=concurrency, context=context, repeatable=repeatable),
            host=host,
            port=port,
            name=name,
            python=python,
            startup_timeout=startup_timeout,
            print_only=print_only,
        )

    finish(command, debug)


@vllm_app.command("profiles")
def vllm_profiles(
    concurrency: Concurrency = 64,
    context: Context = None,
    python: Python = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show the profiles as they are on this machine."""

    def command() -> Coroutine[Any, Any, int]:
        from stratagem._cli.vllm import profiles
        from stratagem.backends.vllm.profiles import Workload

        return profiles(Workload(concurrency=concurrency, context=context), python=python, as_json=as_json)

    finish(command, debug)


@vllm_app.command(
    "datastore",
    epilog="[dim]$[/dim] stratagem vllm datastore ./model calls.db trace.jsonl --out runs.npz\n\n"
    "[dim]$[/dim] stratagem vllm serve ./model --speculative retrieval --datastore runs.npz",
)
def vllm_datastore(
    model: Annotated[str, typer.Argument(help="Whose tokens: a folder, or a name on the Hugging Face hub.")],
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Journals, caches, traces, texts.")],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FILE", help="Where to write it.", rich_help_panel=OUTPUT)
    ] = "runs.npz",
    debug: Debug = False,
) -> None:
    """Make a datastore of past runs, out of which a server guesses by retrieval."""

    def command() -> Coroutine[Any, Any, int]:
        from stratagem._cli.vllm import datastore

        return datastore(model, files, out)

    finish(command, debug)


@vllm_app.command(
    "tune",
    epilog="[dim]$[/dim] stratagem vllm tune Qwen/Qwen3-8B --task gym:words -n 8 --latency 5 --out tuning\n\n"
    "[dim]$[/dim] stratagem vllm tune ./model --task jsonl:mine.jsonl --out tuning -- --dtype float32",
)
def vllm_tune(
    model: Model,
    flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- FLAGS]", help="Flags of vllm serve; what they say is not searched."),
    ] = None,
    profile: Annotated[
        str, typer.Option("--profile", "-p", metavar="NAME", help="What to begin with.")
    ] = "agent",
    task: Annotated[
        str,
        typer.Option(
            metavar="SPEC", help="Whose questions are asked, as for bench.", rich_help_panel=_WORKLOAD
        ),
    ] = "gym:words",
    limit: Annotated[
        int, typer.Option(metavar="N", min=1, help="The first N problems.", rich_help_panel=_WORKLOAD)
    ] = 128,
    n: Annotated[
        int, typer.Option("-n", metavar="N", min=1, help="Samples of each.", rich_help_panel=_WORKLOAD)
    ] = 8,
    max_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Of each sample.", rich_help_panel=_WORKLOAD)
    ] = 512,
    concurrency: Concurrency = 64,
    context: Context = None,
    repeatable: Repeatable = False,
    latency: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Most that 95 % of the requests may take.")
    ] = None,
    trials: Annotated[int, typer.Option(metavar="N", min=1, help="In all, also earlier ones.")] = 20,
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, help="Measurements of each; the median counts.")
    ] = 3,
    fields: Annotated[
        str | None,
        typer.Option(
            "--search", metavar="FIELD,...", help="What to search. [dim](default: all but KV types)[/dim]"
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...", help="Speculation to try. [dim](default: all that need no model)[/dim]"
        ),
    ] = None,
    out: Annotated[
        str, typer.Option(metavar="FOLDER", help="Keeps the trials; the same command goes on.")
    ] = "tuning",
    seed: Annotated[int, typer.Option(help="The same seed tries the same.")] = 0,
    python: Python = None,
    startup_timeout: StartupTimeout = 1800.0,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show the servers' logs.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Search the profile that serves a workload fastest. Interrupted, the same command goes on."""

    def command() -> Coroutine[Any, Any, int]:
        from pathlib import Path

        from stratagem._cli.tune import tune
        from stratagem._cli.vllm import tell_log
        from stratagem.backends.vllm.profiles import Workload
        from stratagem.bench.data import load

        if latency is not None and not 0 < latency < float("inf"):  # which a NaN is not either
            raise ConfigurationError(f"--latency {latency} is no bound.", remedy="Give seconds above 0.")
        named = {"fields": fields, "methods": methods}
        return tune(
            model,
            profile,
            flags or (),
            load(task, limit=limit),
            n=n,
            max_tokens=max_tokens,
            out=Path(out),
            workload=Workload(concurrency=concurrency, context=context, repeatable=repeatable),
            latency=latency,
            trials=trials,
            repeats=repeats,
            options={key: tuple(value.split(",")) for key, value in named.items() if value is not None},
            seed=seed,
            python=python,
            startup_timeout=startup_timeout,
            log=tell_log if verbose else None,
            as_json=as_json,
        )

    finish(command, debug)
