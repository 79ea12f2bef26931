"""Help, version and the list of strategies: complete, quick to start, readable in narrow terminals."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

import stratagem as sg

Cli = Callable[..., CompletedProcess[str]]
COMMANDS = ("solve", "strategies", "doctor", "bench", "demo")


def test_version(inside: Cli) -> None:
    done = inside("--version")
    assert (done.returncode, done.stdout) == (0, f"stratagem {sg.__version__}\n")


def test_help_names_every_command_and_alone_is_help(inside: Cli) -> None:
    helped, alone = inside("--help"), inside()
    assert helped.returncode == alone.returncode == 0
    assert helped.stdout.strip() == alone.stdout.strip()
    for command in COMMANDS:
        assert command in helped.stdout
    assert "stratagem solve" in inside("solve", "--help").stdout  # examples


def test_help_imports_nothing_heavy() -> None:
    """What only a run needs is not paid for by help, completion or a mistyped option."""
    heavy = ("openai", "langgraph", "sympy", "numpy", "tokenizers", "matplotlib", "yaml", "httpx")
    code = (
        "import sys\nfrom stratagem.cli import main\nsys.argv = ['stratagem', 'solve', '--help']\nmain()\n"
        f"print('loaded:', [name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "loaded: []"


def test_strategies_as_data(inside: Cli) -> None:
    data = json.loads(inside("strategies", "--json").stdout)
    for family, kinds in (("strategies", sg.Strategy.kinds()), ("verifiers", sg.Verifier.kinds())):
        listed = {entry["kind"]: entry for entry in data[family]}
        assert listed.keys() == kinds.keys()
        for kind, member in kinds.items():
            assert listed[kind]["summary"] == member.summary()
            assert [p["name"] for p in listed[kind]["parameters"]] == list(member.model_fields)
    best_of_n = next(entry for entry in data["strategies"] if entry["kind"] == "best_of_n")
    parameters = {p["name"]: p for p in best_of_n["parameters"]}
    assert parameters["n"]["default"] == 16
    assert parameters["n"]["limits"] == {"ge": 1}
    assert parameters["temperature"] == {
        "name": "temperature",
        "type": "float or none",
        "default": None,
        "required": False,
        "limits": {"ge": 0.0, "le": 2.0},
        "description": "Sampling temperature; none: the model's own default.",
    }
    assert parameters["verifier"]["default"]["kind"] == "step_judge"


def test_strategies_for_people(inside: Cli) -> None:
    text = inside("strategies").stdout
    for kind, member in (sg.Strategy.kinds() | sg.Verifier.kinds()).items():
        assert f"\n{kind}  {member.summary()}" in text
    assert "Samples. (int; ≥ 1)" in text


def test_one_of_them(inside: Cli) -> None:
    text = inside("strategies", "best-of-n", "judge").stdout
    assert "\nbest_of_n  " in text
    assert "\njudge  " in text
    assert "self_consistency" not in text
    unknown = inside("strategies", "best_of_m")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "Unknown strategy 'best_of_m'. Did you mean best_of_n?" in unknown.stderr
    assert (
        r'"\n"' in inside("strategies", "beam_search").stdout
    )  # the delimiter, which would be an empty line


@pytest.mark.parametrize(
    "arguments", [("--help",), ("solve", "--help"), ("strategies",), ("bench", "--help")]
)
def test_narrow_terminals_and_no_colour(cli: Cli, arguments: tuple[str, ...]) -> None:
    done = cli(*arguments, env={"COLUMNS": "60", "TERMINAL_WIDTH": "60", "NO_COLOR": "1"})
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 60
    assert "\x1b" not in done.stdout


def test_ascii_terminals(cli: Cli) -> None:
    done = cli("strategies", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert "best_of_n" in done.stdout


def test_a_reader_that_has_seen_enough(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start("strategies")
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert err == ""
