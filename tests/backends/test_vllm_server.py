"""The server as a child process, with a stand-in for vLLM: what its log and its listener may do to each other."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

import stratagem as sg
from stratagem.backends.vllm.server import VLLMServer

STAND_IN = f"""#!{sys.executable}
import http.server, sys, threading

said = threading.Event()

class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/done":
            said.wait()
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

port = int(sys.argv[sys.argv.index("--port") + 1])
server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Answers)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("Application startup complete.", flush=True)
for number in range(20_000):
    print("a line of the log", number)
sys.stdout.flush()
said.set()
threading.Event().wait()
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter that plays vLLM whatever it is told to run."""
    made = tmp_path / "python"
    made.write_text(STAND_IN)
    made.chmod(0o755)
    return made


def test_a_listener_that_fails_does_not_stop_the_server(python: Path) -> None:
    heard: list[str] = []

    def log(line: str) -> None:
        heard.append(line)
        if "a line of the log" in line:
            raise BrokenPipeError

    async def main() -> None:
        async with VLLMServer("org/model", python=python, log=log) as server:
            # It has got rid of more than a pipe holds.
            await asyncio.to_thread(
                lambda: urlopen(server.url.removesuffix("/v1") + "/done", timeout=60).close()
            )

    asyncio.run(main())
    assert len([line for line in heard if "a line of the log" in line]) == 1


def starts(model: str | Path, python: Path) -> str:
    """What clients call it."""

    async def main() -> str:
        async with VLLMServer(model, python=python) as server:
            return server.name

    return asyncio.run(main())


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "S3"])
def test_a_model_in_a_store_is_vllms_to_fetch(python: Path, scheme: str) -> None:
    assert starts(f"{scheme}://bucket/models/one", python) == f"{scheme}://bucket/models/one"


@pytest.mark.parametrize("file", ["config.json", "params.json"])
def test_a_folder_with_a_config_is_a_model(python: Path, tmp_path: Path, file: str) -> None:
    """In the format of Hugging Face's, or of Mistral's."""
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(sg.ConfigurationError, match=r"no model folder.*config.json"):
        starts(folder, python)
    (folder / file).write_text("{}")
    assert starts(folder, python) == "model"
