"""What `stratagem doctor` says of real servers: one set up well, one badly, one for something else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator

import pytest

from stratagem.backends.vllm.hardware import Hardware
from stratagem.backends.vllm.server import VLLMServer
from stratagem.cli import main
from vllm_kit import FLAGS, serving

pytestmark = pytest.mark.vllm
BADLY = [
    *("--dtype", "float32", "--max-model-len", "512", "--kv-cache-memory-bytes", str(2**23)),
    *("--block-size", "128", "--scheduling-policy", "fcfs", "--max-logprobs", "5"),
    "--no-enable-prompt-tokens-details",
    *("--speculative-config", '{"method":"ngram","num_speculative_tokens":4,"prompt_lookup_min":1}'),
]
Said = dict[str, dict[str, str]]


@pytest.fixture
def doctor(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Exit code and standard output."""

    def ask(server: VLLMServer, *options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["stratagem", "doctor", "--base-url", server.url, *options])
        capfd.readouterr()
        return main(), capfd.readouterr().out

    return ask


@pytest.fixture(scope="module")
def badly() -> Iterator[VLLMServer]:
    """Started as one should not, without the plug-in; and shows its configuration."""
    environment = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_PLUGINS": "none"}
    with serving("latency", BADLY, environment=environment) as started:
        yield started


def said(out: str) -> Said:
    """The checks of the server by name."""
    return {check["name"]: check for check in json.loads(out) if check["section"] == "vLLM server"}


def test_a_server_that_is_set_up_well(server: VLLMServer, doctor: Callable[..., tuple[int, str]]) -> None:
    code, out = doctor(server, "--json")
    assert code == 0
    found = said(out)
    assert {check["status"] for check in found.values()} == {"ok", "missing"}
    assert [name for name, check in found.items() if check["status"] == "missing"] == ["priorities"]
    assert "0 sequences running, 0 waiting" in found["load"]["detail"]
    assert "type auto of" in found["KV cache"]["detail"]
    assert "blocks of 32 tokens" in found["prefix cache"]["detail"]
    assert found["speculation"]["detail"] == "off"
    assert found["seeds"]["detail"] == "repeat their samples"
    version = next(check["detail"] for check in json.loads(out) if check["name"] == "name")
    assert "vLLM 0." in version


def test_a_server_that_is_set_up_badly(badly: VLLMServer, doctor: Callable[..., tuple[int, str]]) -> None:
    code, out = doctor(badly, "--json")
    assert code == 1  # judges cannot work there
    found = said(out)
    remedies = {name: check["remedy"] for name, check in found.items() if check["status"] != "ok"}
    assert "--block-size" in remedies["prefix cache"]
    assert "--enable-prompt-tokens-details" in remedies["cached tokens"]
    assert "--speculative-config" in remedies["seeds"]
    assert "--max-model-len" in remedies["context"]
    assert "--kv-cache-memory-bytes" in remedies["KV cache"]
    assert "--scheduling-policy priority" in remedies["priorities"]
    assert "--max-logprobs 20" in remedies["judges"]
    assert found["judges"]["status"] == "broken"
    if Hardware.detect().device == "cpu":
        assert found["samples"]["status"] == "broken"
        assert "VLLM_PLUGINS" in remedies["samples"]
    assert found["speculation"]["detail"].startswith("ngram")


def test_the_acceptance_length_and_the_verdict_are_shown(
    badly: VLLMServer, doctor: Callable[..., tuple[int, str]]
) -> None:
    """Of what the test before has asked, if nothing else."""
    _, out = doctor(badly)
    assert "ngram, " in out
    broken = 2 if Hardware.detect().device == "cpu" else 1
    assert f"{broken} broken. 6 things could be set better (!)." in out


def test_a_server_that_guesses_and_samples_right(doctor: Callable[..., tuple[int, str]]) -> None:
    how = '{"method":"merged","num_speculative_tokens":4}'
    environment = {"VLLM_SERVER_DEV_MODE": "1"}
    with serving("latency", [*FLAGS, "--speculative-config", how], environment=environment) as started:
        code, out = doctor(started, "--json")
    assert code == 0
    assert said(out)["samples"]["status"] == "ok"
    assert said(out)["speculation"]["detail"].startswith("merged, ")
    assert {check["status"] for check in json.loads(out) if check["name"] == "scoring"} == {"ok"}


def test_without_a_prefix_cache(eight_bits: VLLMServer, doctor: Callable[..., tuple[int, str]]) -> None:
    code, out = doctor(eight_bits, "--json")
    assert code == 0
    off = said(out)["prefix cache"]
    assert (off["status"], off["remedy"]) == ("advice", "Start it with --enable-prefix-caching.")
    assert "fp8" in said(out)["KV cache"]["detail"]
