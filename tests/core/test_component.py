"""Components load from and dump to plain data; what is wrong is named with its key and what is allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
import yaml
from pydantic import Field

from stratagem.cli import main
from stratagem.core.component import parameter
from stratagem.core.errors import ConfigurationError, UnknownKindError
from stratagem.core.protocols import Strategy, Verifier
from stratagem.core.run import Run
from stratagem.core.task import Answer, Task
from stratagem.core.trace import CompletionArrived, JsonLines, Proposed, Trace, emit, tracing


class Tuned(Strategy):
    """Tuned by hand.

    More words.
    """

    kind: ClassVar[str] = "test_tuned"

    n: int = parameter(4, "Samples.", ge=1, le=64, search=(1, 64))
    mode: Literal["fast", "slow"] = parameter("fast", "How.")
    weights: tuple[Annotated[float, Field(ge=0)], ...] = ()
    verifier: Verifier | None = None

    async def __call__(self, task: Task, run: Run) -> Answer:
        return Answer(text="")


def test_kind_alone_mapping_and_hyphens() -> None:
    assert Strategy.load("test_tuned") == Tuned()
    assert Strategy.load("test-tuned") == Tuned()
    assert Strategy.load({"kind": "test_tuned", "n": 8}) == Tuned(n=8)
    assert Strategy.named("best-of-n").kind == "best_of_n"
    assert Tuned.summary() == "Tuned by hand."
    assert "test_tuned" in Strategy.kinds()
    assert "test_tuned" not in Verifier.kinds()


def test_a_dump_holds_all_of_it_nested_parts_too() -> None:
    part = Tuned(n=2, weights=(0.5, 1.0), verifier=Verifier.load({"kind": "all", "parts": ["exact", "math"]}))
    data = part.dump()
    assert data["kind"] == "test_tuned"
    assert [p["kind"] for p in data["verifier"]["parts"]] == ["exact", "math"]
    assert Strategy.load(json.loads(json.dumps(data))) == part


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    part = Tuned(n=3, mode="slow", verifier=Verifier.load("exact"))
    path.write_text((json.dumps if suffix == ".json" else yaml.safe_dump)(part.dump()), encoding="utf-8")
    assert Strategy.load(path) == Strategy.load(str(path)) == part


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"kind": "test_tuned", "m": 1}, r"unknown key 'm'; allowed are mode, n, verifier, weights"),
        ({"kind": "test_tuned", "n": 0}, r"n = 0: input should be greater than or equal to 1"),
        ({"kind": "test_tuned", "n": "many"}, r"n = 'many': input should be a valid integer"),
        ({"kind": "test_tuned", "mode": "lazy"}, r"mode = 'lazy': input should be 'fast' or 'slow'"),
        ({"kind": "test_tuned", "weights": [1, -2]}, r"weights\.1 = -2"),
        ({"kind": "test_tuned", "n": 0, "mode": 3}, r"n = 0.*; mode = 3"),
        ({"kind": "test_tuned", "verifier": {"kind": "exact", "refrence": 1}}, r"unknown key 'refrence'"),
        ({"kind": "test_tuned", "n": True}, r"n = True: input should be a number, not true or false"),
        ({"kind": "test_tuned", "weights": [1, False]}, r"weights = .*: input should be a number"),
        ({"kind": "test_tuned", "verifier": "nope"}, r"wrong\.json: verifier: Unknown verifier 'nope'"),
        ({"kind": "nope"}, r"wrong\.json: Unknown strategy 'nope'"),
        (
            {"kind": "test_tuned", "verifier": {"kind": "all", "parts": ["math", {"kind": "exact", "m": 1}]}},
            r"wrong\.json: verifier\.parts\.1: exact: unknown key 'm'",
        ),
        (
            {"kind": "test_tuned", "verifier": {"kind": "any", "parts": ["math", "all of them"]}},
            r"wrong\.json: verifier\.parts\.1: Unknown verifier 'all of them'",
        ),
        (
            {"kind": "test_tuned", "verifier": {"kind": "weighted", "parts": ["math"], "weights": [1, 2]}},
            r"wrong\.json: verifier: weighted: 1 parts need as many weights, not 2\.",
        ),
        ({"n": 3}, r"a mapping with a key 'kind'"),
        ([1, 2], r"not \[1, 2\]"),
        (None, r"not None"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, data: object, said: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=said):
        Strategy.load(path)


def test_an_unknown_kind_lists_the_known() -> None:
    with pytest.raises(UnknownKindError, match=r"Unknown strategy 'best_of_m'.*best_of_n.*test_tuned"):
        Strategy.load("best_of_m")
    with pytest.raises(UnknownKindError, match="Unknown verifier 'maths'"):
        Strategy.load({"kind": "best_of_n", "verifier": "maths"})


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.yaml", b"kind: test_tuned\nn: [1\n", r"a\.yaml:3: not YAML"),
        ("a.yaml", b"kind: test_tuned\nn: \x02\n", r"a\.yaml:\d+: not YAML"),
        ("a.json", b'{"kind": "test_tuned",\n "n": }', r"a\.json:2: not JSON"),
        ("a.yaml", b"kind: caf\xe9\n", r"a\.yaml is not UTF-8 text \(byte 9\)"),
        ("a.yaml", b"kind: test_tuned\nn: 3\nn: 5\n", r"a\.yaml:3: not YAML: the key 'n' is there twice"),
        (
            "a.yaml",
            b"kind: test_tuned\nverifier: {kind: exact, kind: math}\n",
            r"a\.yaml:2: .*'kind' is there twice",
        ),
        ("a.json", b'{"kind": "test_tuned", "n": 3, "n": 5}', r"a\.json: the key 'n' is there twice"),
        ("a.yaml", b"", r"not None"),
        ("a.yaml", b"1: 2\nkind: test_tuned\n", r"key '1'|1 = "),
    ],
)
def test_broken_files_are_named_with_the_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=said):
        Strategy.load(path)


PLUGINS = """\
[stratagem.strategies]
test_missing = no_such_module:Thing
test_raises = stratagem_test_raises:Thing
test_misplaced = stratagem.verifiers.exact:Exact
"""


def test_what_cannot_be_imported_or_is_of_another_family_hides_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = tmp_path / "plugins-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: plugins\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(PLUGINS)
    (tmp_path / "stratagem_test_raises.py").write_text("raise RuntimeError('not today')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert {"best_of_n", "test_tuned"} <= set(Strategy.kinds())
    assert {"test_missing", "test_raises", "test_misplaced"}.isdisjoint(Strategy.kinds())
    why = {kind: str(error) for kind, error in Strategy.unusable().items()}
    assert "No module named 'no_such_module'" in why["test_missing"]
    assert "not today" in why["test_raises"]
    assert (
        why["test_misplaced"]
        == "Entry point 'test_misplaced' = stratagem.verifiers.exact:Exact is no strategy."
    )
    assert Verifier.unusable() == {}
    with pytest.raises(ConfigurationError, match="is no strategy"):
        Strategy.load("test_misplaced")
    monkeypatch.setattr("sys.argv", ["stratagem", "strategies"])
    assert main() == 0
    listed = capsys.readouterr()
    assert "best_of_n" in listed.out
    assert listed.err.count("skipped: ") == 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Cannot read .*none\.yaml: No such file"):
        Strategy.load(str(tmp_path / "none.yaml"))


def test_a_trace_is_written_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    lines = JsonLines(path)
    trace = Trace("r1", listeners=[lines])
    emit(Proposed("lost", None))  # outside of a run: nobody listens
    with tracing(trace):
        emit(CompletionArrived(1, 0, "d\u00e9j\u00e0 \ud83d", "stop", 2))
    trace.append(Proposed("4", 0.5))
    written = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines.close()
    assert [line["type"] for line in written] == ["completion", "proposed"]
    assert written[0]["text"] == "d\u00e9j\u00e0 \ud83d"
    assert [(line["number"], line["run_id"]) for line in written] == [(0, "r1"), (1, "r1")]
    assert trace.of(Proposed) == [Proposed("4", 0.5)]
