"""A simulated OpenAI-compatible server: real HTTP, a settable time model, faults, and exact books.

    async with SimulatedServer(SimSettings(per_token=0.01)) as server:
        client = AsyncOpenAI(base_url=server.url, api_key="none")
        ...
        assert server.totals().in_flight == 0

It speaks `/v1/chat/completions`, `/v1/completions` and `/v1/models`, and, as vLLM does, `/version`,
`/tokenize`, prompt log-probabilities, structured outputs and continuous usage; `flavour="openai"` takes
vLLM's part away. With `reward=True` it serves a reward model by `/classify` and `/pooling` instead.
`SimulatedProcess` runs the same in a process of its own (`python -m
stratagem.testing.server`), which a test can kill and whose CPU a benchmark does not share; its books are at
`GET /sim/totals` and `GET /sim/records`.
"""

import argparse
import asyncio
import json
import signal
import sys
import urllib.request
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from stratagem.testing._server.app import SimulatedServer
from stratagem.testing._server.journal import NAMED_FAULTS, Fault, FaultHook, FaultSchedule, Record, Totals
from stratagem.testing._server.settings import SimSettings
from stratagem.testing._server.text import Responder, SimCompletion, SimRequest, ToyResponder, tokenize

__all__ = [
    "NAMED_FAULTS",
    "Fault",
    "FaultHook",
    "FaultSchedule",
    "Record",
    "Responder",
    "SimCompletion",
    "SimRequest",
    "SimSettings",
    "SimulatedProcess",
    "SimulatedServer",
    "Totals",
    "ToyResponder",
    "main",
    "tokenize",
]


class SimulatedProcess:
    """The simulated server in a process of its own, for the time of an `async with` block.

    It ends with the block, on `kill`, and when this process dies (its standard input closes).
    """

    def __init__(self, settings: SimSettings | None = None) -> None:
        self._settings = settings or SimSettings()
        self.url = ""

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "stratagem.testing.server",
            "--attached",
            *_arguments(self._settings),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.url = (await self._process.stdout.readline()).decode().strip()
        if not self.url:
            raise RuntimeError(f"the simulated server ended at once with code {await self._process.wait()}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.communicate()

    async def kill(self) -> None:
        """Kills the process (SIGKILL) and waits for its end."""
        self._process.kill()
        await self._process.wait()

    async def totals(self) -> Totals:
        """The server's books as they stand now."""
        return Totals(**await asyncio.to_thread(self._get, "/sim/totals"))

    async def records(self) -> list[dict[str, Any]]:
        """The fields of each `Record`."""
        found: list[dict[str, Any]] = await asyncio.to_thread(self._get, "/sim/records")
        return found

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url.removesuffix("/v1") + path, timeout=30) as answer:
            return json.load(answer)


def _arguments(settings: SimSettings) -> list[str]:
    changed = settings.model_dump(exclude_defaults=True)
    faults = changed.pop("faults", {})
    pairs = [f"--{name.replace('_', '-')}={value}" for name, value in changed.items()]
    return [*pairs, *(f"--fault={name}={rate}" for name, rate in faults.items())]


def _parse(arguments: list[str] | None) -> tuple[SimSettings, bool]:
    parser = argparse.ArgumentParser(prog="python -m stratagem.testing.server", description=__doc__)
    for name, field in SimSettings.model_fields.items():
        if name != "faults":
            about = f"{field.description or ''} (default: {field.default})".strip()
            parser.add_argument(f"--{name.replace('_', '-')}", dest=name, help=about.replace("%", "%%"))
    parser.add_argument(
        "--fault", action="append", default=[], metavar="NAME=RATE", help=f"of {', '.join(NAMED_FAULTS)}"
    )
    parser.add_argument("--attached", action="store_true", help="end when standard input closes")
    given = vars(parser.parse_args(arguments))
    attached = given.pop("attached")
    faults = dict(pair.partition("=")[::2] for pair in given.pop("fault"))
    values = {name: value for name, value in given.items() if value is not None}
    try:
        settings = SimSettings.model_validate({**values, "faults": faults})
        FaultSchedule(settings.fault_seed, settings.faults)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        parser.error(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")
    except ValueError as error:
        parser.error(str(error))
    return settings, attached


async def _serve(settings: SimSettings, attached: bool) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if attached:
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        waiting = loop.create_task(reader.read())
        waiting.add_done_callback(lambda _: stop.set())
    async with SimulatedServer(settings) as server:
        print(server.url, flush=True)
        await stop.wait()


def main(arguments: list[str] | None = None) -> None:
    """Serves until SIGINT or SIGTERM; prints the base URL first."""
    asyncio.run(_serve(*_parse(arguments)))


if __name__ == "__main__":
    main()
