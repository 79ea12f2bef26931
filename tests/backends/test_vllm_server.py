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


# What vLLM 0.32 writes with a target in /models/mini and no way to the hub, and for an encoder.
NO_TOKENIZER = """
'[Errno -2] Name or service not known' thrown while requesting HEAD https://huggingface.co/models/mini/resolve/main/a
(APIServer pid=1) ERROR 11-28 04:26:12 [repo_utils.py:124] Error parsing config for nobody/tokens: We couldn't
OSError: We couldn't connect to 'https://huggingface.co' to load the files
"""
NO_DRAFT = """
pydantic_core._pydantic_core.ValidationError: 1 validation error for SpeculativeConfig
  Value error, Invalid repository ID or local directory specified: 'nobody/draft'.
"""
NO_FILES = """
'[Errno -2] Name or service not known' thrown while requesting GET https://huggingface.co/api/models/nobody/files/tree/main
huggingface_hub.errors.LocalEntryNotFoundError: An error happened while trying to locate the file on the Hub
"""
NO_WORD = "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder"
ENCODER = """
(EngineCore pid=1) ERROR 11-28 04:26:12 [core.py:1] Traceback (most recent call last):
(EngineCore pid=1) AssertionError: HybridKVCacheCoordinator requires at least one cacheable group.
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.
"""


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (NO_TOKENIZER, r"finds no model 'nobody/tokens'.*Give a folder"),
        (NO_DRAFT, r"finds no model 'nobody/draft'.*Give a folder"),
        (NO_FILES, r"finds no model 'nobody/files'.*Give a folder"),
        (NO_WORD, r"finds no model 'org/model'.*Give a folder"),
        (ENCODER, r"cannot share prefixes.*--no-enable-prefix-caching"),
    ],
    ids=["tokenizer", "draft", "files", "no word", "encoder"],
)
def test_why_it_ended_is_read_off_its_log(tmp_path: Path, log: str, words: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nprint({log!r})\nraise SystemExit(1)\n")
    python.chmod(0o755)
    with pytest.raises(sg.ConfigurationError, match=words):
        starts("org/model", python)


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
