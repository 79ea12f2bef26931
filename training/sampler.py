"""Sample solutions and score probes with the torch model, many rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from data import ASSISTANT, END, PAD, USER, Encoder, collate
from model import Cache, Decoder
from torch import Tensor

from stratagem.bench.gym import Document, Message


def prompt_ids(encoder: Encoder, question: str) -> list[int]:
    return [USER, *encoder.tokenizer.encode(question, add_special_tokens=False).ids, END, ASSISTANT]


def _keep(cache: Cache, rows: Tensor, room: int = 0) -> Cache:
    """The rows of a cache, with room for more tokens."""
    pad = (0, 0, 0, room)
    return [(F.pad(k, pad)[rows], F.pad(v, pad)[rows]) for k, v in cache]


@torch.inference_mode()
def sample(
    model: Decoder,
    encoder: Encoder,
    questions: Sequence[str],
    n: int,
    temperature: float,
    seed: int,
    rows: int = 256,
    most: int = 200,
) -> list[list[str]]:
    """`n` texts for each question, of at most `most` tokens each (a longer one is cut).

    `rows` sequences run at a time, prompts of like length together.
    """
    generator = torch.Generator(model.embed_tokens.weight.device).manual_seed(seed)
    prompts = [prompt_ids(encoder, question) for question in questions]
    order = sorted(range(len(questions)), key=lambda index: len(prompts[index]))
    texts: list[list[str]] = [[] for _ in questions]
    group = max(1, rows // n)
    for start in range(0, len(order), group):
        chosen = order[start : start + group]
        made = _group(model, [prompts[index] for index in chosen], n, temperature, generator, most)
        for index, ids in zip(chosen, made, strict=True):
            texts[index] = [encoder.tokenizer.decode(one, skip_special_tokens=False) for one in ids]
    return texts


def _group(
    model: Decoder,
    prompts: list[list[int]],
    n: int,
    temperature: float,
    generator: torch.Generator,
    most: int,
) -> list[list[list[int]]]:
    place = model.embed_tokens.weight.device
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts], device=place)
    real = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts], device=place)
    positions = (real.cumsum(1) - 1).clamp(min=0)
    causal = torch.ones(width, width, dtype=torch.bool, device=place).tril()
    # A padding row must see something, or its softmax is nan.
    mask = (causal & real[:, None, :] | torch.eye(width, dtype=torch.bool, device=place))[:, None]
    hidden, cache, _ = model(ids, positions, mask)
    repeat = torch.arange(len(prompts), device=place).repeat_interleave(n)
    cache, seen, state = _keep(cache, repeat, most), real[repeat], hidden[repeat, -1]
    position = positions[repeat, -1:]
    rows = list(range(len(repeat)))
    done: set[int] = set()
    out: list[list[int]] = [[] for _ in rows]
    for count in range(most):
        logits = model.logits(state).float() / temperature
        token = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator)
        for row, one in zip(rows, token[:, 0].tolist(), strict=True):
            if one == END:
                done.add(row)
            elif row not in done:
                out[row].append(one)
        going = [index for index, row in enumerate(rows) if row not in done]
        if not going or count == most - 1:
            break
        if len(going) < 0.8 * len(rows):
            # Copying the cache costs as much as some steps: drop finished rows many at a time.
            kept = torch.tensor(going, device=place)
            rows = [rows[index] for index in going]
            token, position, seen, cache = token[kept], position[kept], seen[kept], _keep(cache, kept)
        position = position + 1
        seen = torch.cat((seen, torch.ones_like(seen[:, :1])), 1)
        hidden, cache, _ = model(token, position, seen[:, None, None, :], cache)
        state = hidden[:, -1]
    return [out[index * n : (index + 1) * n] for index in range(len(prompts))]


@torch.inference_mode()
def yes_probabilities(
    model: Decoder, encoder: Encoder, documents: Sequence[Document], tokens: int = 16384
) -> list[list[float]]:
    """For each document, P(yes) / (P(yes) + P(no)) at each of its probes."""
    rows = [encoder.row(document) for document in documents]
    result: list[list[float]] = [[] for _ in rows]
    for group in _groups([len(row.ids) for row in rows], tokens):
        batch = collate([rows[index] for index in group]).to(model.embed_tokens.weight.device)
        hidden, *_ = model(batch.ids, batch.positions, batch.mask)
        logits = model.logits(hidden.flatten(0, 1)[batch.where])[:, [encoder.yes, encoder.no]].float()
        values = iter(logits.softmax(-1)[:, 0].tolist())
        for index in group:
            result[index] = [next(values) for _ in rows[index].learn]
    return result


@torch.inference_mode()
def log_probabilities(
    model: Decoder,
    encoder: Encoder,
    questions: Sequence[str],
    texts: Sequence[Sequence[str]],
    tokens: int = 16384,
) -> list[float]:
    """log P(text and its end | question) of each text of each question."""
    chats = [
        Document((Message("user", question), Message("assistant", text, loss=True)))
        for question, group in zip(questions, texts, strict=True)
        for text in group
    ]
    rows = [encoder.row(chat) for chat in chats]
    result = [0.0] * len(rows)
    for group in _groups([len(row.ids) for row in rows], tokens):
        batch = collate([rows[index] for index in group]).to(model.embed_tokens.weight.device)
        hidden, *_ = model(batch.ids, batch.positions, batch.mask)
        logs = model.logits(hidden.flatten(0, 1)[batch.where]).float().log_softmax(-1)
        values = iter(logs.gather(1, batch.target[:, None])[:, 0].tolist())
        for index in group:
            result[index] = sum(next(values) for _ in rows[index].learn)
    return result


def _groups(lengths: list[int], tokens: int) -> Iterator[list[int]]:
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and lengths[index] * (len(group) + 1) > tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group
