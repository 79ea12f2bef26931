"""Train the tokenizer: byte-level BPE with every digit, newline and arithmetic sign a token of its own.

    python training/tokenizer.py --out backends/embedded/mini

Only the frequencies of the text matter. Most of it comes from the gym; docstrings, JSON and source of the
standard library give later skills (tool plans, code) tokens to begin with.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from stratagem.bench.gym import seeded, skills
from stratagem.core.prompts import RESTART_QUESTION, STEP_QUESTION

SPECIAL = ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
VOCABULARY = 2048
SPLIT = r"\n| [-+*/=] |\d| ?\p{L}+| ?[^\s\p{L}\d]+|[^\S\n]+(?!\S)|[^\S\n]+"
MODULES = (
    "argparse",
    "ast",
    "asyncio.tasks",
    "collections",
    "csv",
    "dataclasses",
    "email.message",
    "json",
    "random",
    "statistics",
    "textwrap",
    "typing",
)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def gym_text(documents: int) -> Iterator[str]:
    """Text of every skill's training documents, its probes too."""
    for name, skill in skills().items():
        for document in itertools.islice(skill.documents(seeded("tokenizer", name)), documents):
            yield from (message.content for message in document.messages)
        yield from [STEP_QUESTION, RESTART_QUESTION, "yes", "no"] * (documents // 4)


def library_text() -> Iterator[str]:
    """English, Python and JSON from the standard library."""
    for name in MODULES:
        source = Path(import_module(name).__file__ or "").read_text(encoding="utf-8")
        yield source
        yield json.dumps({"name": name, "arguments": source.split()[:400]})


def train() -> Tokenizer:
    """The tokenizer, the same on every run."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.chain(gym_text(20_000), library_text()), trainer)
    return tokenizer


def save(tokenizer: Tokenizer, out: Path, positions: int) -> None:
    """Write tokenizer.json and tokenizer_config.json (with the chat template)."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": positions,
        "pad_token": "<|pad|>",
        "eos_token": "<|end|>",
        "additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>"],
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "add_prefix_space": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--positions", type=int, default=1024)
    arguments = parser.parse_args()
    save(train(), arguments.out, arguments.positions)
    sys.stdout.write(f"{arguments.out / 'tokenizer.json'}\n")
