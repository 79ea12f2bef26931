"""Sample solutions and score probes with the torch model, many rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from data import ASSISTANT, END, PAD, USER, Encoder, collate
from model import Cache, Decoder
from torch import Tensor

from stratagem.bench.gym import Document


def prompt_ids(encoder: Encoder, question: str) -> list[int]:
    return [USER, *encoder.tokenizer.encode(question, add_special_tokens=False).ids, END, ASSISTANT]


def _keep(cache: Cache, rows: Tensor) -> Cache:
    return [(k[rows], v[rows]) for k, v in cache]


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
    generator = torch.Generator().manual_seed(seed)
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
    hidden, cache = model(ids, positions, mask)
    repeat = torch.arange(len(prompts), device=place).repeat_interleave(n)
    cache, seen, state = _keep(cache, repeat), real[repeat], hidden[repeat, -1]
    position = positions[repeat, -1:]
    alive = torch.arange(len(repeat), device=place)
    out: list[list[int]] = [[] for _ in range(len(repeat))]
    for count in range(most):
        logits = model.logits(state).float() / temperature
        token = torch.multinomial(torch.softmax(logits, -1).cpu(), 1, generator=generator).to(place)
        going = (token[:, 0] != END).cpu()
        for row, one in zip(alive.tolist(), token[:, 0].tolist(), strict=True):
            if one != END:
                out[row].append(one)
        if not going.any() or count == most - 1:
            break
        if not going.all():
            kept = going.nonzero()[:, 0].to(place)
            alive, token, position, seen = alive[kept], token[kept], position[kept], seen[kept]
            cache = _keep(cache, kept)
        position = position + 1
        seen = torch.cat((seen, torch.ones_like(seen[:, :1])), 1)
        hidden, cache = model(token, position, seen[:, None, None, :], cache)
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
        hidden, _ = model(batch.ids, batch.positions, batch.mask)
        logits = model.logits(hidden.flatten(0, 1)[batch.where])[:, [encoder.yes, encoder.no]].float()
        values = iter(logits.softmax(-1)[:, 0].tolist())
        for index in group:
            result[index] = [next(values) for _ in rows[index].learn]
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
