"""Every profile starts a real server that answers; its flags are vLLM's; nothing of it outlives its parent."""

from __future__ import annotations

import ast
import asyncio
import gc
import inspect
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

import stratagem as sg
from stratagem.backends.vllm.profiles import OWN, PROFILES, KVType, Method, Profile, Speculative
from stratagem.backends.vllm.server import VLLMServer
from vllm_kit import MINI, asked, gone_afterwards

pytestmark = pytest.mark.vllm
SMALL = ["--max-model-len", "1024", "--kv-cache-memory-bytes", str(2**28), "--dtype", "float32"]
PAGE = Path(__file__).resolve().parents[2] / "docs/vllm.md"
PARSER = """
import json
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
actions = make_arg_parser(FlexibleArgumentParser())._actions
print(json.dumps({name: [str(c) for c in a.choices or ()] for a in actions for name in a.option_strings}))
"""


def test_every_flag_and_choice_is_vllms_own() -> None:
    done = subprocess.run([sys.executable, "-c", PARSER], capture_output=True, text=True, check=True)
    known: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    made = Profile(
        dtype="auto",
        max_model_len="auto",
        block_size=32,
        kv_cache_dtype="auto",
        kv_cache_gib=1,
        gpu_memory_utilization=0.5,
        max_num_batched_tokens=1,
        max_num_seqs=1,
        scheduling_policy="fcfs",
        speculative=Speculative(),
        enforce_eager=False,
        logits_processors=("a:B",),
        additional_config={"a": 1},
    )
    flags = {word for word in made.arguments() if word.startswith("--")}
    assert len(flags) == len(Profile.model_fields)
    assert flags <= known.keys()
    assert set(get_args(KVType)) <= set(known["--kv-cache-dtype"])
    assert set(get_args(Method)) - OWN.keys() <= set(known["--spec-method"])


@pytest.mark.parametrize("name", [name for name in PROFILES if name not in ("agent", "latency")])
def test_a_server_of_ones_own(name: str, server: VLLMServer) -> None:
    """`agent` is the one of the other tests, `latency` that of the command line."""

    async def main() -> None:
        joined = sg.connect(server.url, model=server.name)
        expected = (await joined.generate(asked())).completions[0].text
        await joined.aclose()
        async with sg.connect_vllm(MINI, name, SMALL) as llm:
            able = await llm.capabilities()
            assert (able.model, able.context) == ("mini", 1024)
            [completion] = (await llm.generate(asked())).completions
        assert completion.finish == "stop"
        if name != "long-context":  # whose KV cache has 8 bits
            assert completion.text == expected

    asyncio.run(main())


@pytest.fixture
def served(server: VLLMServer) -> Iterator[Any]:
    """`served(*options)` starts the command, beside the server of the other tests."""
    del server  # its start and that of the command must not be timed together
    running: list[subprocess.Popen[str]] = []

    def start(*options: str, stderr: Any = subprocess.PIPE) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "stratagem.cli", "vllm", "serve", str(MINI), "--port", "28741", *options],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_served_from_the_command_line_and_killed(served: Any, server: VLLMServer, tmp_path: Path) -> None:
    """Greedy text is the same with guesses; a parent killed with SIGKILL leaves no process of vLLM behind."""
    log = tmp_path / "log"
    with log.open("w") as written:
        process = served("--profile", "latency", "--name", "other", "--", *SMALL, stderr=written)
    assert process.stdout.readline() == "http://127.0.0.1:28741/v1\n", log.read_text()[-2000:]
    assert "num_speculative_tokens" in log.read_text()

    async def main() -> None:
        told = []
        for url, model in ((server.url, server.name), ("http://127.0.0.1:28741/v1", "other")):
            llm = sg.connect(url, model=model)
            told.append((await llm.generate(asked(max_tokens=200))).completions[0].text)
            await llm.aclose()
        assert told[0] == told[1]

    asyncio.run(main())
    with gone_afterwards(process.pid, least=3):  # the guard, the server, its engine
        process.send_signal(signal.SIGKILL)


def test_ctrl_c_while_it_starts(served: Any) -> None:
    process = served("--", *SMALL)
    assert process.stderr.readline()  # vLLM's first words: guard and server are there
    with gone_afterwards(process.pid, least=2):
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in log.partition("error: ")[2]


def test_a_server_that_ends_by_itself_is_told(served: Any) -> None:
    process = served("--", *SMALL, "--no-such-flag")
    out, log = process.communicate(timeout=600)
    assert (process.returncode, out) == (2, "")
    assert log.splitlines()[-1].startswith("error: This vLLM knows no flag --no-such-flag")


def test_more_memory_than_there_is_is_one_error() -> None:
    async def main() -> None:
        flags = ["--kv-cache-memory-bytes", str(2**50), "--enforce-eager"]
        with pytest.raises(sg.ConfigurationError, match=r"not enough memory for .*mini.*GiB.* Lower"):
            async with VLLMServer(MINI, flags, startup_timeout=1800):
                pass
        with pytest.raises(sg.ConfigurationError, match=r"kv_cache_gib=1e\+06.*GiB free"):
            async with sg.connect_vllm(MINI, "agent", ["--kv-cache-memory-bytes", str(10**6 * 2**30)]):
                pass

    asyncio.run(main())


# What vLLM warns of and leaves unclosed where it runs in this process.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_page_says_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks that need vLLM, with the shipped model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python vllm\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert blocks

    async def main() -> None:
        names: dict[str, Any] = {"model": MINI}
        for source in blocks:
            code = compile(source, str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            result = eval(code, names)  # noqa: S307 - our own page
            if inspect.isawaitable(result):
                await result
        assert names["answer"].value

    asyncio.run(main())
    gc.collect()
