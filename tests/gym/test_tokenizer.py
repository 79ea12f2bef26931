"""The shipped tokenizer and its chat template."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from stratagem.bench.gym import skill

MINI = Path(__file__).resolve().parents[2] / "backends/embedded/mini"
TOKENIZER = Tokenizer.from_file(str(MINI / "tokenizer.json"))
SPECIAL = ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


@given(st.text())
def test_any_text_round_trips(text: str) -> None:
    assert TOKENIZER.decode(ids(text), skip_special_tokens=False) == text


@given(st.text(), st.text())
def test_text_up_to_a_newline_is_a_prefix_in_tokens(head: str, tail: str) -> None:
    whole = ids(f"{head}\n{tail}")
    assert whole == [*ids(head), *ids("\n"), *ids(tail)]


def test_fixed_tokens() -> None:
    assert [TOKENIZER.token_to_id(token) for token in SPECIAL] == [0, 1, 2, 3, 4]
    assert TOKENIZER.get_vocab_size() == 2048
    for word in ("yes", "no", "\n", *"0123456789"):
        assert len(ids(word)) == 1
    assert TOKENIZER.encode("a 1234").tokens[-4:] == list("1234")
    assert ids("<|assistant|>yes") == [3, *ids("yes")]


def test_a_step_is_short() -> None:
    problems = [skill("words").problem("test", index) for index in range(100)]
    lengths = [len(ids(step.text)) for problem in problems for step in problem.steps]
    assert sum(lengths) / len(lengths) < 15


def test_chat_template_is_the_fixed_format() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINI)
    chat = [{"role": "user", "content": "Hi 12"}, {"role": "assistant", "content": "Yes.\n"}]
    made = tokenizer.apply_chat_template
    assert made(chat, tokenize=False) == "<|user|>Hi 12<|end|><|assistant|>Yes.\n<|end|>"
    assert made(chat[:1], tokenize=False, add_generation_prompt=True) == "<|user|>Hi 12<|end|><|assistant|>"
    assert (
        made(chat, tokenize=False, continue_final_message=True) == "<|user|>Hi 12<|end|><|assistant|>Yes.\n"
    )
    system = [{"role": "system", "content": "Be brief."}, *chat[:1]]
    assert made(system, tokenize=False) == "<|system|>Be brief.<|end|><|user|>Hi 12<|end|>"
    assert tokenizer("Ben has 12 + 7 = 19 apples.")["input_ids"] == ids("Ben has 12 + 7 = 19 apples.")
    assert tokenizer.eos_token_id == 4
