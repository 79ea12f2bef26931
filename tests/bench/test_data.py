"""Data with known answers: what is read, and what is said of files that cannot be."""

import json
import os
from pathlib import Path

import pytest

from stratagem.bench.data import GYM_LIMIT, load
from stratagem.bench.gym import skill
from stratagem.core.errors import ConfigurationError, DataError


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def shared(name: str) -> Path:
    folder = os.environ.get("STRATAGEM_DATA")
    near = [Path(folder)] if folder else [p / "shared" / "data" for p in Path(__file__).resolve().parents]
    found = next((p / "math_word" / name for p in near if (p / "math_word" / name).exists()), None)
    if found is None:
        pytest.skip("the shared data is not here")
    return found


def test_gym_problems_are_those_of_the_skill() -> None:
    problems = load("gym:words", limit=5)
    expected = [skill("words").problem("test", i) for i in range(5)]
    assert [(p.id, p.task.question, p.gold) for p in problems] == [
        (p.id, p.question, p.answer) for p in expected
    ]
    assert problems.spec == "gym:words/test"
    assert all(p.task.id == p.id for p in problems)
    assert len({p.id for p in load("gym:words")}) == GYM_LIMIT


def test_a_split_is_named_in_the_spec_or_beside_it() -> None:
    assert load("gym:words/hard", limit=3) == load("gym:words", limit=3, split="hard")
    assert load("gym:words/hard", limit=3) != load("gym:words", limit=3)
    with pytest.raises(ConfigurationError, match="differ"):
        load("gym:words/hard", split="dev")
    with pytest.raises(ConfigurationError, match=r"no split 'easy'.*train, dev, test, hard"):
        load("gym:words/easy")


def test_gsm8k_answers_are_the_numbers_after_the_hashes() -> None:
    path = shared("gsm8k.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    problems = load(f"gsm8k:{path}")
    assert len(problems) == len(rows) == 200
    assert [p.gold for p in problems] == [r["answer"].split("#### ")[1].replace(",", "") for r in rows]
    assert len(load(f"gsm8k:{path}", limit=7)) == 7


def test_a_json_array_is_read_as_its_elements(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} + 1?", "answer": n + 1} for n in range(3)]
    (lines := tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (array := tmp_path / "b" / "a.jsonl").parent.mkdir()
    array.write_text(json.dumps(rows, indent=2))
    assert load(f"jsonl:{array}") == load(f"jsonl:{lines}")
    assert len(load(f"jsonl:{array}")) == 3


def test_svamp_joins_body_and_question_and_writes_whole_numbers_as_such() -> None:
    problems = load(f"svamp:{shared('svamp.jsonl')}")
    assert len(problems) == 150
    first = problems[0]
    assert first.id == "chal-27"
    assert "did not participate. How many students participated" in first.task.question
    assert first.gold == "488"


def test_own_files_need_question_and_answer_only(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "mine.jsonl",
        "\ufeff",
        {"question": "1 + 1?", "answer": 2},
        "\n",
        {"question": "Half of one?", "answer": 0.5, "id": "half", "note": "kept out"},
        {"question": "Two thirds?", "answer": " \\frac23 "},
    )
    problems = load(f"jsonl:{path}")
    assert [(p.id, p.gold) for p in problems] == [
        ("mine/1", "2"),
        ("half", "0.5"),
        ("mine/4", "\\frac23"),
    ]
    assert problems.spec == "jsonl:mine.jsonl"  # the same wherever the file lies


BROKEN = {
    "not JSON": '{"question": "a", \n',
    "a JSON object is expected, not list": "[1]\n",
    "no key 'answer'; there are 'question'": '{"question": "a"}\n',
    "'question' is not a text": '{"question": "  ", "answer": 1}\n',
    "'answer' is neither": '{"question": "a", "answer": NaN}\n',
    "'answer' is neither a text nor": '{"question": "a", "answer": true}\n',
    "id 'good/1' is that of line 1 too": '{"question": "a", "answer": 1, "id": "good/1"}\n',
    "half a character": '{"question": "\\ud83d", "answer": 1}\n',
    "not JSON that can be read": "[" * 100_000 + "\n",
}


@pytest.mark.parametrize("why", BROKEN)
def test_a_broken_line_is_named_with_what_is_wrong(tmp_path: Path, why: str) -> None:
    good = {"question": "a", "answer": 1}
    path = lines(tmp_path / "good.jsonl", good, BROKEN[why], good)
    with pytest.raises(DataError) as caught:
        load(f"jsonl:{path}")
    assert f"{path}:2: " in str(caught.value)
    assert why in str(caught.value)
    assert "--skip-broken" in str(caught.value)
    problems = load(f"jsonl:{path}", skip_broken=True)
    assert [p.id for p in problems] == ["good/1", "good/3"]
    assert len(problems.skipped) == 1
    assert problems.skipped[0].startswith("good.jsonl:2: ")


def test_text_that_is_not_utf8_is_a_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"question": "a", "answer": 1}\n{"question": "caf\xe9", "answer": 1}\n')
    with pytest.raises(DataError, match=r"latin.jsonl:2: not UTF-8 text \(byte 18 of the line\)"):
        load(f"jsonl:{path}")
    assert len(load(f"jsonl:{path}", skip_broken=True)) == 1


def test_all_broken_lines_are_counted_and_none_usable_is_an_error(tmp_path: Path) -> None:
    path = lines(tmp_path / "bad.jsonl", *["oops\n"] * 12)
    for skip in (False, True):
        with pytest.raises(DataError, match=r"bad.jsonl:1: .*11 more broken lines: 2, 3, .*, \.\.\."):
            load(f"jsonl:{path}", skip_broken=skip)


def test_lines_after_the_limit_do_not_matter(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", {"question": "a", "answer": 1}, "oops\n")
    assert len(load(f"jsonl:{path}", limit=1)) == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gsm9k:x", r"Unknown data 'gsm9k:x'.*gym:SKILL.*gsm8k:FILE, svamp:FILE, jsonl:FILE"),
        ("words", "Unknown data 'words'"),
        ("jsonl:", "Unknown data 'jsonl:'"),
        ("gym:chess", "No gym skill 'chess'.*words"),
        ("jsonl:/no/such/file", "Cannot read /no/such/file: No such file"),
    ],
)
def test_a_spec_that_cannot_be_used_names_what_can(spec: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load(spec)


def test_limits_and_splits_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="limit = 0"):
        load("gym:words", limit=0)
    with pytest.raises(ConfigurationError, match="has no splits"):
        load("jsonl:x.jsonl", split="test")
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match="holds no problem"):
        load(f"jsonl:{tmp_path / 'empty.jsonl'}")
