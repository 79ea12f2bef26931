"""``stratagem vllm``: start a server by a profile, and show the profiles."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from stratagem._cli.console import ACCENT, DIM, STRONG, safe, say_error, show, stderr, write_line
from stratagem.backends.vllm._checks import checked
from stratagem.backends.vllm.hardware import Hardware, Installed
from stratagem.backends.vllm.plan import Plan, plan
from stratagem.backends.vllm.profiles import DATASTORE, PROFILES, Method, Profile, Speculative, Workload
from stratagem.backends.vllm.profiles import profile as named
from stratagem.backends.vllm.server import VLLMServer
from stratagem.backends.vllm.speculative.datastore import Datastore
from stratagem.backends.vllm.speculative.past import collected
from stratagem.core.errors import ConfigurationError, UnavailableError

_NEED_MODEL = ("draft_model", "medusa", "eagle", "eagle3", "custom_class")
_READ_PAST = ("retrieval", "merged")


async def serve(
    model: str,
    profile: str,
    flags: Sequence[str],
    *,
    workload: Workload,
    host: str,
    port: int,
    name: str | None,
    python: str | None,
    startup_timeout: float,
    print_only: bool,
) -> int:
    """Serve a model until the server ends or Ctrl-C; with ``print_only`` say the command that would."""
    planned = plan(profile, flags, workload=workload, python=python, run=not print_only)
    if workload.repeatable and planned.profile.speculative is not None:
        raise ConfigurationError(
            "--repeatable means no speculation, and a method of it is named.", remedy="Leave out one of them."
        )
    for note in planned.notes:
        say_error(note, label="note")
    server = VLLMServer(
        model,
        planned.arguments,
        name=name,
        host=host,
        port=port,
        python=python,
        startup_timeout=startup_timeout,
        log=tell_log,
    )
    if print_only:
        fixed = ["--host", host, "--port", str(port), "--served-model-name", server.name]
        write_line(planned.command(model, fixed))
        return 0
    async with server:
        stderr().print(Text.assemble(("ready: ", f"{STRONG} {ACCENT}"), f"{server.name}, profile {profile}"))
        write_line(server.url)
        code = await server.ended()
    raise UnavailableError(f"vLLM ended by itself with exit code {code}.", remedy="Its log above says why.")


def guessing(method: str | None, datastore: str | None) -> list[str]:
    """The flags of vLLM that stand for a speculative method and a file of past runs.

    Raises:
        ConfigurationError: there is no such method, or no such file.
    """
    flags: list[str] = []
    if method is not None:
        known = get_args(Method)
        if method not in known:
            raise ConfigurationError(
                f"There is no speculative method {method!r}.", remedy=f"Known are: {', '.join(known)}."
            )
        if method in _NEED_MODEL:
            config = json.dumps({"method": method, "model": "MODEL", "num_speculative_tokens": 4})
            raise ConfigurationError(
                f"The method {method} needs a model of its own.",
                remedy=f"Give -- --speculative-config '{config}'.",
            )
        flags += ["--speculative-config", json.dumps(Speculative.model_validate({"method": method}).config())]
    if datastore is not None:
        if not Path(datastore).is_file():
            raise ConfigurationError(
                f"There is no file {datastore}.", remedy="Make it with: stratagem vllm datastore"
            )
        if method not in _READ_PAST:
            raise ConfigurationError(
                "--datastore is for the methods retrieval and merged.", remedy="Name one by --speculative."
            )
        Datastore.load(datastore)  # what is none is said here, and not by the server
        flags += ["--additional-config", json.dumps({DATASTORE: datastore})]
    return flags


async def datastore(model: str, files: Sequence[str], out: str) -> int:
    """Write a datastore of what is in these files; gives the exit code."""
    made = await asyncio.to_thread(collected, model, files)
    made.save(out)
    write_line(f"{out}: {made.sequences} sequences, {len(made.tokens) - made.sequences} tokens")
    return 0


def tell_log(line: str) -> None:
    """A line of a server's log, on standard error."""
    sys.stderr.write(safe(line) + "\n")
    sys.stderr.flush()


async def profiles(workload: Workload, *, python: str | None, as_json: bool) -> int:
    """Print every profile as it is on this machine; gives the exit code."""
    installed = Installed.find(python)
    hardware = Hardware.detect(installed.device if installed is not None else None)
    made = {name: named(name, hardware, workload) for name in PROFILES}
    if as_json:
        data = {
            "hardware": hardware.model_dump(mode="json"),
            "vllm": None if installed is None else installed.model_dump(mode="json"),
            "profiles": {
                name: each.model_dump(mode="json", exclude_none=True) for name, each in made.items()
            },
        }
        write_line(json.dumps(data, ensure_ascii=False, indent=2))
        return 0
    where = f"{hardware.name or hardware.device}, {hardware.free:.0f} of {hardware.memory:.0f} GiB free"
    has = "vLLM is not installed here" if installed is None else f"vLLM {installed.version}"
    parts: list[RenderableType] = [Text(f"{where}; {has}", style=DIM)]
    for name, each in made.items():
        summary = (PROFILES[name].__doc__ or "").partition("\n")[0]
        parts += [Text(), Text.assemble((name, f"{STRONG} {ACCENT}"), "  ", summary)]
        parts.append(Padding(_table(each), (0, 0, 0, 2)))
        refused = _refused(Plan(each, (), hardware, installed))
        parts += [Padding(Text(refused, style="red"), (0, 0, 0, 2))] if refused else []
    footer = "Print one as a command: stratagem vllm serve MODEL --profile agent --print"
    show(*parts, Text(), Text(footer, style=DIM))
    return 0


def _refused(planned: Plan) -> str:
    try:
        checked(planned.profile, planned.hardware, planned.installed)
    except ConfigurationError as error:
        return str(error)
    return ""


def _table(each: Profile) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(max_width=34, overflow="fold")
    table.add_column(style=DIM, overflow="fold")
    for name, field in Profile.model_fields.items():
        value = getattr(each, name)
        if value is None or value == ():
            continue
        shown = str(value).lower()
        if name == "speculative":
            shown = value.method + ("" if value.depth is None else f", {value.depth} tokens")
        table.add_row(name, shown, field.description or "")
    return table
