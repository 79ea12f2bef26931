"""What a user gets wrong is told in one line that names it and says what to do; exit code 2."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from stratagem.testing.server import SimSettings, SimulatedServer

Cli = Callable[..., CompletedProcess[str]]
ASK = ("solve", "What is 2 + 3?")


def assert_told(done: CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("solve", ""), ("question is empty", "stratagem solve")),
        (("solve", " \n"), ("question is empty",)),
        (("solve", b"caf\xe9?"), ("not UTF-8", "byte 3", "iconv")),
        ((*ASK, "-s", "magic"), ("Unknown strategy 'magic'", "best_of_n", "self_consistency")),
        ((*ASK, "--set", "m=3"), ("unknown key 'm'", "allowed are", "temperature")),
        ((*ASK, "--set", "n"), ("'n' is not KEY=VALUE", "--set n=16")),
        ((*ASK, "--set", "n=many"), ("n = 'many'", "valid integer")),
        ((*ASK, "--set", "n=0"), ("n = '0'", "greater than or equal to 1")),
        ((*ASK, "--set", "equality={kind"), ("not YAML",)),
        ((*ASK, "--set", "n.kind=3"), ("no part 'n'",)),
        ((*ASK, "-s", "best_of_n", "--set", "verifier=oracle"), ("Unknown verifier 'oracle'", "step_judge")),
        ((*ASK, "-s", "best_of_n", "-c", "x.yaml"), ("--strategy and --config", "one of them")),
        ((*ASK, "--config", "/tmp"), ("--config '/tmp' is no file", ".yaml", "--strategy")),
        ((*ASK, "--config", "best_of_n"), ("--config 'best_of_n' is no file", ".json", "--strategy")),
        ((*ASK, "--set", "equality={kind: exact, kind: math}"), ("name each key once",)),
        ((*ASK, "--budget", ","), ("The budget is empty", "tokens, calls, seconds, money")),
        ((*ASK, "--config", "no-such.yaml"), ("Cannot read no-such.yaml", "No such file")),
        ((*ASK, "--budget", "token=3"), ("Unknown budget key 'token'", "tokens, calls, seconds, money")),
        ((*ASK, "--budget", "tokens=x"), ("tokens='x'", "tokens=20000")),
        ((*ASK, "--budget", "seconds=-1"), ("seconds='-1'", "greater than or equal to 0")),
        ((*ASK, "--base-url", "localhost:8000"), ("localhost:8000", "http://localhost:8000/v1")),
        ((*ASK, "--api-key-env", "NO_SUCH_KEY"), ("NO_SUCH_KEY is not set", "export NO_SUCH_KEY")),
        ((*ASK, "--api-key-env", "PATH"), ("shipped model takes no API key", "--base-url")),
        ((*ASK, "--budget", "money=0"), ("no prices", "money", "Limit tokens", "--price-in")),
        ((*ASK, "--price-in", "1"), ("shipped model costs no money", "--base-url")),
        ((*ASK, "--run-id", "a"), ("--run-id needs --store",)),
        ((*ASK, "--role", "judge"), ("--role 'judge' is not ROLE=URL", "judge=http")),
        ((*ASK, "--role", "judge=localhost:1"), ("localhost:1", "http://localhost:8000/v1")),
        ((*ASK, "--role", "policy=http://a/v1"), ("--role policy is what --base-url",)),
        ((*ASK, "--role", "a=http://a/v1", "--role", "a=http://b/v1"), ("--role a stands twice",)),
        ((*ASK, "--no-such-option"), ("--no-such-option", "stratagem solve --help")),
        (("resolve",), ("resolve", "stratagem --help")),
        (("bench", "gym:words", "--out", "x"), ("--strategies", "--help")),
        (("bench", "gym:nothing", "--strategies", "direct", "--out", "x"), ("No gym skill", "words")),
        (("bench", "words", "--strategies", "direct", "--out", "x"), ("Unknown data 'words'", "gym:SKILL")),
        (("bench", "gsm8k:no.jsonl", "--strategies", "direct", "--out", "x"), ("Cannot read no.jsonl",)),
        (("bench", "gym:words", "--strategies", "direct,direct", "--out", "x"), ("'direct' twice", "label")),
        (("bench", "gym:words", "--strategies", " ,", "--out", "x"), ("--strategies is empty",)),
        (
            ("bench", "gym:words", "--strategies", "direct", "--set", "n=3", "--out", "x"),
            ("names none of direct", "--set direct.n=16"),
        ),
        (
            ("bench", "gym:words", "--strategies", "direct", "--limit", "0", "--out", "x"),
            ("limit = 0", "at least one"),
        ),
    ],
)
def test_bad_arguments(inside: Cli, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_told(inside(*arguments), *words)


def test_a_bench_whose_budget_admits_no_call(inside: Cli, tmp_path: Path) -> None:
    told = ("bench", "gym:words", "--strategies", "chain_of_thought", "--limit", "2")
    done = inside(*told, "--out", str(tmp_path / "none"), "--budget", "tokens=3")
    assert_told(done, "No run of 'chain_of_thought'", "tokens=3, 0 spent", "Raise --budget")
    done = inside(*told, "--out", str(tmp_path / "some"), "--budget", "tokens=70", "--json")
    assert done.returncode == 0, done.stderr
    assert "of 2 runs cut short by the budget" in done.stderr
    done = inside(*told, "--out", str(tmp_path / "all"), "--budget", "tokens=300", "--json")
    assert (done.returncode, done.stderr) == (0, "")  # 512 tokens did not fit, but none was needed


def test_bad_standard_input(cli: Cli) -> None:
    assert_told(cli("solve", "-"), "empty (standard input)")
    assert_told(cli("solve", "-", stdin="Où ?".encode("latin-1")), "Standard input", "not UTF-8")


def test_bad_files(inside: Cli, tmp_path: Path) -> None:
    broken, latin = tmp_path / "broken.yaml", tmp_path / "latin.yaml"
    broken.write_text("kind: best_of_n\nn: [1\n")
    latin.write_bytes("kind: direct\ninstruction: Réponds\n".encode("latin-1"))
    assert_told(inside(*ASK, "--config", str(broken)), "broken.yaml:3", "not YAML")
    assert_told(inside(*ASK, "--config", str(latin)), "latin.yaml", "not UTF-8")
    assert_told(inside(*ASK, "--trace", str(tmp_path / "no" / "t.jsonl")), "Cannot write the trace")

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "What is 1 + 1?", "answer": "2"}\n{"question": \n')
    asked = ("bench", f"jsonl:{rows}", "--strategies", "direct", "--out", str(tmp_path / "out"))
    assert_told(inside(*asked), "rows.jsonl:2", "--skip-broken")
    assert not (tmp_path / "out").exists()


def test_no_server_there(inside: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    assert_told(inside(*ASK, "--base-url", address), address)
    assert_told(
        inside(
            "bench",
            "gym:words",
            "--strategies",
            "direct",
            "--limit",
            "2",
            "--out",
            "x",
            "--base-url",
            address,
        ),
        address,
    )


def test_what_the_server_refuses(cli: Cli, tmp_path: Path) -> None:
    async def main() -> None:
        async with SimulatedServer(SimSettings(max_model_len=200, api_key="right")) as server:

            async def told(*arguments: str, words: tuple[str, ...], key: str = "right") -> None:
                done = await asyncio.to_thread(
                    cli, *arguments, "--base-url", server.url, "--api-key-env", "KEY", env={"KEY": key}
                )
                assert_told(done, *words)
                assert key not in done.stderr

            await told(*ASK, "--model", "gpt-17", words=("gpt-17", server.settings.model))
            await told(*ASK, words=("does not accept the API key", "--api-key-env"), key="wrong-key")
            await told("solve", "why? " * 400, words=("tokens",))
            price = ("--price-in", "1000000", "--price-out", "1000000")
            await told(*ASK, "--budget", "money=3", *price, words=("money=3, 0 spent", "Raise --budget"))
            await told(*ASK, "--budget", "money=3", words=("no prices", "--price-out"))
            await told(
                *ASK, "--budget", "tokens=3", words=("budget is exhausted", "tokens=3", "Raise --budget")
            )
            assert server.totals().in_flight == 0

    asyncio.run(main())


def test_debug_shows_where(inside: Cli) -> None:
    done = inside(*ASK, "--set", "m=3", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
