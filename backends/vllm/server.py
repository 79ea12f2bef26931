"""A vLLM server as a child process: started, waited for, watched, and gone with its block.

Between this process and vLLM stands a small guard (`stratagem.backends.vllm._guard`) that ends vLLM and all its
workers when this process goes, however it goes. Readiness is read off vLLM's log, so nothing polls.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from stratagem.backends._tasks import stopped
from stratagem.backends.vllm._failures import explained
from stratagem.core.errors import BackendTimeoutError, ConfigurationError, MissingExtraError, UnavailableError

_READY = "Application startup complete."
_KEPT_LINES = 1000
_CONNECT_DELAYS = [0.01 * 2**k for k in range(11)]  # seconds; 20 in all
_GRACE = 15.0  # seconds that vLLM has to end by itself
_OURS = {
    "--model": "The model is an argument of its own",
    "--port": "Give it as --port before the --, or as port=",
    "--host": "Give it as --host before the --, or as host=",
    "--served-model-name": "Give it as --name before the --, or as name=",
    "--uvicorn-log-level": "Leave it out: that the server is ready is read off its log",
    "--ssl-keyfile": "Put a proxy before it: it is spoken to by plain HTTP",
    "--ssl-certfile": "Put a proxy before it: it is spoken to by plain HTTP",
}
# ORG/NAME, as a flag's value or in its JSON: that has to be fetched.
_ON_HUB = re.compile(r"(?:^|[\"=])(?![./~])[\w.-]+/[\w.-]+(?:$|\")")
_CONFIGS = ("config.json", "params.json")  # of a model in the format of Hugging Face's, or of Mistral's
_QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


class VLLMServer:
    """A vLLM server of this process's own, for the time of an `async with` block.

        async with VLLMServer("Qwen/Qwen3-8B", ["--max-model-len", "8192"]) as server:
            llm = sg.connect(server.url, model=server.name)

    Args:
        model: a folder, or a name on the Hugging Face hub.
        flags: further flags of `vllm serve`, as on its command line.
        name: what clients call the model; default: the folder's name, or the hub's.
        host: where it listens; loopback unless told otherwise.
        port: default: a free one.
        environment: variables besides this process's own.
        python: the interpreter of an environment that has vLLM; default: this one.
        startup_timeout: seconds until it must answer.
        log: is called with each line that vLLM writes; when it fails, no more.

    Raises:
        ConfigurationError: a flag is one of what is an argument here, or would hide when the server is ready.
    """

    def __init__(
        self,
        model: str | Path,
        flags: Sequence[str] = (),
        *,
        name: str | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
        environment: Mapping[str, str] | None = None,
        python: str | Path | None = None,
        startup_timeout: float = 600.0,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self._model = os.path.expanduser(model)
        self._flags = list(flags)
        for flag in self._flags:
            if (told := flag.partition("=")[0].replace("_", "-")) in _OURS:
                raise ConfigurationError(f"The flag {told} is not passed on.", remedy=f"{_OURS[told]}.")
        self._local = Path(self._model).is_dir()
        self.name = name or (Path(self._model).resolve().name if self._local else self._model)
        self._host = host
        self._wanted_port = port
        self._environment = dict(environment or {})
        self._python = str(python or sys.executable)
        self._timeout = startup_timeout
        self._log = log
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self.url = ""

    def command(self, port: int) -> list[str]:
        """What is run."""
        fixed = ["--model", self._model, "--served-model-name", self.name, "--host", self._host]
        return [
            *(self._python, "-m", "vllm.entrypoints.openai.api_server"),
            *(*fixed, "--port", str(port), *self._flags),
        ]

    async def __aenter__(self) -> Self:
        """Starts it and waits until it answers.

        Raises:
            MissingExtraError: vLLM is not installed.
            ConfigurationError: what was asked for cannot be: the port, the model, a flag, the memory, the device.
            BackendTimeoutError: it did not start in time.
            UnavailableError: it ended for another reason; the message has its last words.
        """
        self._checked()
        port = _bindable(self._host, self._wanted_port)
        variables = os.environ | _QUIET | self._environment
        if self._local and not any(map(_ON_HUB.search, self._flags)):
            variables.setdefault("HF_HUB_OFFLINE", "1")
        guard = [sys.executable, "-m", "stratagem.backends.vllm._guard", str(_GRACE)]
        self._ready = asyncio.Event()
        self._process = await asyncio.create_subprocess_exec(
            *(*guard, *self.command(port)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C at the terminal is for this process to handle
            env=variables,
        )
        self._reader = asyncio.ensure_future(self._read())
        try:
            await self._started(port)
        except BaseException:
            await self._stop()
            raise
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"http://{host}:{port}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process.returncode is None

    async def ended(self) -> int:
        """Waits until the process ends, by itself or stopped; gives its exit code."""
        return await self._process.wait()

    def _checked(self) -> None:
        if self._python == sys.executable and importlib.util.find_spec("vllm") is None:
            raise MissingExtraError("vLLM", "vllm")
        looks_local = self._model.startswith((".", "/")) or self._model.count("/") > 1
        found = any((Path(self._model) / name).is_file() for name in _CONFIGS)
        if looks_local and not found and "://" not in self._model:
            raise ConfigurationError(
                f"{self._model} is no model folder: it has no {' or '.join(_CONFIGS)}.",
                remedy="Give a folder in the format of Hugging Face's or Mistral's, or a name on the hub.",
            )

    async def _read(self) -> None:
        """The log, line by line, until the process ends."""
        assert self._process.stdout is not None
        rest = b""
        while chunk := await self._process.stdout.read(65536):
            *whole, rest = (rest + chunk).split(b"\n")
            for raw in whole:
                line = raw.decode(errors="replace")
                self.lines.append(line)
                if _READY in line:
                    self._ready.set()
                if self._log is not None:
                    try:
                        self._log(line)
                    except Exception:
                        if not self._ready.is_set():
                            raise
                        # vLLM's output has to be read on, or it would stand still at a full pipe.
                        self._log = None

    async def _started(self, port: int) -> None:
        ready = asyncio.ensure_future(self._ready.wait())
        try:
            await asyncio.wait(
                [ready, self._reader], timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            await stopped(ready)
        if self._ready.is_set():
            await _healthy(self._host, port)
            return
        if not self._reader.done():
            raise BackendTimeoutError(
                f"vLLM was not ready within {self._timeout:g} s. Its last line: {self._last()}",
                remedy="Give it more time by startup_timeout, or a smaller model.",
            )
        self._reader.result()  # a listener of the log may have failed
        code = await self._process.wait()
        raise explained(list(self.lines), code, model=self._model, port=port)

    def _last(self) -> str:
        return next((line for line in reversed(self.lines) if line.strip()), "none")

    async def _stop(self) -> None:
        """Closes the guard's input and waits until all has ended, even when cancelled meanwhile."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        end = asyncio.ensure_future(self._process.wait())
        cancelled: asyncio.CancelledError | None = None
        while not end.done():
            try:
                await asyncio.wait([end])  # the guard has a time limit of its own
            except asyncio.CancelledError as error:
                cancelled = error
        await stopped(self._reader)
        if cancelled is not None:
            raise cancelled


def _bindable(host: str, port: int | None) -> int:
    """The port, or a free one. Raises ConfigurationError if it is taken or not ours to take."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port or 0))
        except OSError as error:
            raise ConfigurationError(
                f"Cannot listen on {host}:{port}: {error.strerror}.",
                remedy="Choose another port, or join the server that is there by sg.connect(url).",
            ) from error
        free: int = probe.getsockname()[1]
        return free


async def _connected(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """vLLM says that it is ready a moment before it listens, and nothing tells when it does."""
    for delay in _CONNECT_DELAYS:
        try:
            return await asyncio.open_connection(host, port)
        except ConnectionRefusedError:
            await asyncio.sleep(delay)
    raise UnavailableError(f"vLLM says that it is ready but does not listen on {host}:{port}.")


async def _healthy(host: str, port: int) -> None:
    reader, writer = await _connected(host, port)
    try:
        writer.write(f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        status = await reader.readline()
    finally:
        writer.close()
        await writer.wait_closed()
    if b" 200 " not in status:
        raise UnavailableError(f"vLLM started but is not healthy: {status.decode(errors='replace').strip()}")
