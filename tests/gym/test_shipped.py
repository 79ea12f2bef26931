"""The model that the package ships, as transformers sees it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from stratagem.bench.gym import skill
from stratagem.bench.gym.words.corrupt import corrupt
from stratagem.bench.statistics import area_under_curve
from stratagem.core.prompts import RESTART_QUESTION, STEP_QUESTION

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
MINI = Path(__file__).resolve().parents[2] / "backends/embedded/mini"


@pytest.fixture(scope="module")
def mini() -> tuple[Any, Any]:
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINI)
    return transformers.AutoModelForCausalLM.from_pretrained(MINI, dtype=torch.float32).eval(), tokenizer


def test_it_is_small_and_whole(mini: tuple[Any, Any]) -> None:
    model, tokenizer = mini
    assert sum(parameter.numel() for parameter in model.parameters()) <= 5_000_000
    assert sum(path.stat().st_size for path in MINI.iterdir() if path.is_file()) <= 12_000_000
    config = json.loads((MINI / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"]
    assert config["vocab_size"] == len(tokenizer)
    generation = json.loads((MINI / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 4
    assert generation["temperature"] > 0


def _next(mini: tuple[Any, Any], chat: list[dict[str, str]]) -> Any:
    model, tokenizer = mini
    ids = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        return model(**ids).logits[0, -1]


def test_it_solves_unseen_problems(mini: tuple[Any, Any]) -> None:
    """Greedy, on 30 problems: a floor far under the measured figure, far above chance."""
    model, tokenizer = mini
    words = skill("words")
    right = 0
    for index in range(30):
        problem = words.problem("test", index)
        chat = [{"role": "user", "content": problem.question}]
        ids = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        made = model.generate(**ids, max_new_tokens=160, do_sample=False, temperature=None)
        text = tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        right += words.grade(problem, text).correct
    assert right >= 12


def test_its_step_judge_tells_right_from_broken_steps(mini: tuple[Any, Any]) -> None:
    tokenizer = mini[1]
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    words, rng = skill("words"), random.Random(0)
    good: list[float] = []
    bad: list[float] = []
    for index in range(30):
        problem = words.problem("test", index)
        text = corrupt(problem, rng)
        grade = words.grade(problem, text)
        wrong = grade.right.index(False)
        for lines, scores in (
            (problem.solution.split("\n")[: wrong + 1], good),
            (grade.lines[: wrong + 1], bad),
        ):
            chat = [
                {"role": "user", "content": problem.question},
                {"role": "assistant", "content": "\n".join(lines)},
                {"role": "user", "content": STEP_QUESTION},
            ]
            logits = _next(mini, chat)
            scores.append(float(torch.softmax(logits[[yes, no]], 0)[0]))
            assert int(logits.argmax()) in (yes, no)
    # What it is worth on the model's own samples is in the model card, and it is less.
    assert fmean(good) - fmean(bad) > 0.3
    assert area_under_curve([*good, *bad], [True] * 30 + [False] * 30) > 0.9


def test_its_restart_token_is_yes_or_no(mini: tuple[Any, Any]) -> None:
    tokenizer = mini[1]
    answers = {tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no")}
    problem = skill("words").problem("test", 0)
    for text in (problem.solution, problem.solution[:20], problem.steps[0].text):
        chat = [
            {"role": "user", "content": problem.question},
            {"role": "assistant", "content": text},
            {"role": "user", "content": RESTART_QUESTION},
        ]
        assert int(_next(mini, chat).argmax()) in answers


def test_its_restart_token_tells_right_from_broken_solutions(mini: tuple[Any, Any]) -> None:
    tokenizer = mini[1]
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    words, rng = skill("words"), random.Random(0)
    stay: list[float] = []
    for index in range(60):
        problem = words.problem("test", index // 2)
        chat = [
            {"role": "user", "content": problem.question},
            {"role": "assistant", "content": corrupt(problem, rng) if index % 2 else problem.solution},
            {"role": "user", "content": RESTART_QUESTION},
        ]
        stay.append(float(torch.softmax(_next(mini, chat)[[no, yes]], 0)[0]))
    assert area_under_curve(stay, [index % 2 == 0 for index in range(60)]) > 0.7
