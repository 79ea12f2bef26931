"""Native calls of tools on a real vLLM server: its parser, its chat template, a model that makes calls.

The model is a small one that has learned two turns by heart: those that a script plays on the simulated server.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import stratagem as sg
from stratagem.backends.vllm.server import VLLMServer
from stratagem.testing.server import SimCompletion, SimRequest, SimSettings, SimulatedServer
from vllm_kit import FLAGS, MINI, in_thread

pytestmark = pytest.mark.vllm

TURNS = (
    'I look.\n<tool_call>{"name": "size", "arguments": {"of": "pen"}}</tool_call>\n'
    '<tool_call>{"name": "note", "arguments": {"text": "a \\"b\\"", "tags": ["x", "y"]}}</tool_call>',
    "The answer is 3.",
)
# As Hermes models have it: the tools first, calls in the assistant's turn, results in turns of their own.
TEMPLATE = """\
{%- if tools -%}<|system|>{%- for t in tools -%}{{ t.function.name }} {% endfor -%}<|end|>{%- endif -%}
{%- for m in messages -%}<|{{ m.role }}|>{{ m.content or '' }}
{%- for c in m.tool_calls or [] -%}{{ '\\n<tool_call>{"name": "' + c.function.name + '", "arguments": ' }}
{{- c.function.arguments | tojson + '}</tool_call>' }}{%- endfor -%}<|end|>{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""


def tools() -> list[sg.Tool]:
    @sg.tool(effect="read_only")
    async def size(of: str) -> int:
        """Length of a word."""
        return len(of)

    @sg.tool(effect="read_only")
    async def note(text: str, tags: list[str]) -> dict[str, Any]:
        """Note a text."""
        return {"text": text, "tags": tags}

    return [size, note]


async def answered(url: str, model: str) -> sg.Answer:
    llm = sg.connect(url, model=model)
    try:
        strategy = sg.DivideThenAggregate(format="native", temperature=0.0, max_tokens=200)
        return await sg.solve("How long is pen?", strategy, llm=llm, tools=tools())
    finally:
        await llm.aclose()


async def scripted() -> tuple[sg.Answer, list[SimRequest]]:
    """The answer that the script leads to, and what was asked."""
    seen: list[SimRequest] = []

    def play(request: SimRequest) -> list[SimCompletion]:
        seen.append(request)
        return [SimCompletion(TURNS[sum(m["role"] == "assistant" for m in request.messages)])]

    async with SimulatedServer(SimSettings(model="m"), responder=play) as server:
        return await answered(server.url, "m"), seen


def learned(folder: Path, asked: Sequence[SimRequest]) -> Path:
    """A model that says the turns after what was asked, in bytes that transformers and vLLM load."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    for name in ("tokenizer.json", "generation_config.json"):
        shutil.copy(MINI / name, folder)
    told = json.loads((MINI / "tokenizer_config.json").read_text()) | {"chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for request, turn in zip(asked, TURNS, strict=True):
        messages = [dict(message) for message in request.messages]
        for message in messages:  # as vLLM gives them to a template
            for call in message.get("tool_calls") or ():
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        prompt = tokenizer.apply_chat_template(
            messages, tools=request.body["tools"], add_generation_prompt=True, tokenize=False
        )
        begun = tokenizer.encode(prompt, add_special_tokens=False)
        said = tokenizer.encode(turn + "<|end|>", add_special_tokens=False)
        rows.append((begun + said, len(begun)))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=1024, bos_token_id=None, eos_token_id=4, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loss = torch.tensor(float("inf"))
    for _ in range(300):
        losses = []
        for ids, start in rows:
            labels = torch.tensor([[-100] * start + ids[start:]])
            losses.append(model(input_ids=torch.tensor([ids]), labels=labels).loss)
        loss = torch.stack(losses).sum()
        if loss.item() < 0.01:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[VLLMServer, sg.Answer]]:
    script, asked = asyncio.run(scripted())
    folder = learned(tmp_path_factory.mktemp("caller"), asked)
    flags = [*FLAGS, "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    with in_thread(VLLMServer(folder, flags, name="caller", startup_timeout=1800)) as server:
        yield server, script


def test_a_real_parser_gives_what_the_simulated_one_does(caller: tuple[VLLMServer, sg.Answer]) -> None:
    server, script = caller
    answer = asyncio.run(answered(server.url, server.name))
    assert [(c.tool, c.result) for c in script.calls] == [
        ("size", 3),
        ("note", {"text": 'a "b"', "tags": ["x", "y"]}),
    ]
    assert [(c.tool, c.result, c.error) for c in answer.calls] == [
        (c.tool, c.result, c.error) for c in script.calls
    ]
    assert (answer.value, answer.basis, answer.stopped) == ("3", script.basis, "complete")
    assert answer.usage.calls == 2
    assert not answer.usage.uncertain_tokens
