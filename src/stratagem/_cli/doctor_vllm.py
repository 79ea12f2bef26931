"""What ``stratagem doctor`` says of a vLLM server: how it is, what it has counted, and what to set otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import stratagem as sg
from stratagem._cli.checks import Check
from stratagem._cli.console import count, percent
from stratagem.backends.openai import OpenAIBackend
from stratagem.backends.vllm.metrics import Snapshot
from stratagem.backends.vllm.profiles import OWN
from stratagem.core.backend import Capabilities
from stratagem.core.errors import ProtocolError, RejectedError

_SECTION = "vLLM server"
_PROFILE = "stratagem vllm serve MODEL --profile agent"
_LARGEST_BLOCK = 32  # tokens; a question of two sentences has as many
_LEAST_CONTEXT = 1024  # tokens; an answer may have 512, and a judge reads it with the question before it
_LEAST_SEQUENCES = 8  # of full length in the KV cache
_SENTENCE = "Ana has 3 apples and Ben has 4 more apples than Ana. "
_ONE = 1e-6  # a top-p that leaves one token
_NEAR = 0.7  # log-probabilities that differ by less are no proof: half as likely
_TOP = 20  # log-probabilities that a judge asks for


async def served(llm: OpenAIBackend, can: Capabilities) -> list[Check]:
    """The checks of a vLLM server; none for any other. Asks it for a few tokens.

    Raises BackendError.
    """
    try:
        told = await llm.counts()
    except ProtocolError as error:
        return [_advice("metrics", error.message, error.remedy)]
    checks: list[Check] = []
    for now in told.values():
        shown = await llm.configuration()
        checks += [_load(now), *_cache(now, can), _speculation(now, shown)]
        checks.append(await _told_of_the_cache(llm, can, now))
        if now.speculation is not None:
            checks.append(await _samples(llm, now))
        checks += [await _seeds(llm, now), await _judges(llm), _priorities(shown)]
    return checks


def _ok(name: str, detail: str) -> Check:
    return Check(_SECTION, name, "ok", detail)


def _advice(name: str, detail: str, remedy: str) -> Check:
    return Check(_SECTION, name, "advice", detail, remedy)


def _load(now: Snapshot) -> Check:
    waits = (
        f", median {now.first_token.quantile(0.5):.2g} s to the first token" if now.first_token.count else ""
    )
    running, waiting = count(round(now.running), "sequence"), f"{now.waiting:.0f} waiting"
    return _ok(
        "load", f"{running} running, {waiting}; {now.generation_tokens:,.0f} tokens decoded so far{waits}"
    )


def _cache(now: Snapshot, can: Capabilities) -> list[Check]:
    used = f"{percent(now.kv_usage)} in use, type {now.cache.get('cache_dtype', 'unknown')}"
    size = "" if now.kv_tokens is None else f" of {now.kv_tokens:,} tokens"
    checks = [_ok("KV cache", used + size)]
    if now.kv_tokens is not None and can.context is not None:
        fit = now.kv_tokens // can.context
        if fit < _LEAST_SEQUENCES:
            held = f"{used}{size}, room for {count(fit, 'sequence')} of full length"
            more = "Give it more memory (on a CPU --kv-cache-memory-bytes), or lower --max-model-len."
            checks = [_advice("KV cache", held, more)]
    if now.preemptions:
        lost = f"{count(round(now.preemptions), 'sequence')} put off for want of room, and computed anew"
        checks.append(_advice("preemptions", lost, "Lower --max-num-seqs, or give the KV cache more memory."))
    if can.context is not None and can.context < _LEAST_CONTEXT:
        short = f"{can.context:,} tokens: little room for a question, its answer and a judge's question"
        checks.append(_advice("context", short, f"Start it with --max-model-len {_LEAST_CONTEXT} or more."))
    checks.append(_prefix(now))
    return checks


def _prefix(now: Snapshot) -> Check:
    if now.prefix_caching is False:
        off = "off: every sample and every judgement computes its whole prompt"
        return _advice("prefix cache", off, "Start it with --enable-prefix-caching.")
    rate = "nothing asked yet"
    if now.prefix_queries:
        rate = f"had {percent(now.prefix_hit_rate)} of {now.prefix_queries:,.0f} prompt tokens"
    if now.block_size is not None and now.block_size > _LARGEST_BLOCK:
        large = f"{rate}; blocks of {now.block_size} tokens, of which short prompts share none"
        return _advice("prefix cache", large, "Start it with --block-size 16, on a CPU 32.")
    return _ok(
        "prefix cache", rate + ("" if now.block_size is None else f", blocks of {now.block_size} tokens")
    )


def _speculation(now: Snapshot, shown: Mapping[str, Any] | None) -> Check:
    if now.speculation is None:
        return _ok("speculation", "off")
    how = (shown or {}).get("speculative_config") or {}
    ours = {name: method for method, name in OWN.items()}
    method = ours.get(str(how.get("model")), how.get("method", "on"))
    if math.isnan(now.acceptance_length):
        return _ok("speculation", f"{method}, nothing guessed yet")
    rate, length = percent(now.speculation.acceptance_rate), now.acceptance_length
    return _ok("speculation", f"{method}, acceptance length {length:.2f} tokens, {rate} of guesses right")


async def _told_of_the_cache(llm: OpenAIBackend, can: Capabilities, now: Snapshot) -> Check:
    """Asks the same prompt twice: the second time it comes from the cache, and the answer should say so."""
    name = "cached tokens"
    if now.prefix_caching is False:
        return Check(_SECTION, name, "missing", "none")
    least = 2 * (now.block_size or _LARGEST_BLOCK)
    text = _SENTENCE * math.ceil(least / len(_SENTENCE.split()))
    request = sg.Request((sg.Message("user", text),), max_tokens=1, temperature=0.0)
    if can.context is not None and await llm.count_tokens(request.messages) >= can.context:
        return Check(_SECTION, name, "missing", "not looked at: the context holds less than two blocks")
    await llm.generate(request)
    usage = (await llm.generate(request)).usage
    if usage.cached_tokens:
        return _ok(name, "told with each answer")
    silent = "no answer says what came from the prefix cache, so that no cost of a run does"
    return _advice(name, silent, "Start it with --enable-prompt-tokens-details.")


async def _seeds(llm: OpenAIBackend, now: Snapshot) -> Check:
    request = sg.Request((sg.Message("user", _SENTENCE),), n=4, max_tokens=16, temperature=1.0, seed=7)
    texts = [[c.text for c in (await llm.generate(request)).completions] for _ in range(2)]
    if texts[0] == texts[1] and now.speculation is None:
        return _ok("seeds", "repeat their samples")
    if now.speculation is None:
        return _advice(
            "seeds", "do not repeat their samples: no run can be repeated", f"Start it by: {_PROFILE}"
        )
    broken = "do not repeat their samples while the server guesses ahead; greedy text holds"
    return _advice("seeds", broken, f"Where runs must repeat: {_PROFILE}, or leave out --speculative-config.")


async def _samples(llm: OpenAIBackend, now: Snapshot) -> Check:
    """Draws from the likeliest token alone: under speculation some builds of vLLM do not keep to it."""
    asked = sg.Message("user", _SENTENCE * 4 + "Say all of that again.")
    request = sg.Request((asked,), n=8, max_tokens=48, temperature=1.0, top_p=_ONE, logprobs=2)
    found = await llm.generate(request)
    [later] = (await llm.counts()).values()
    speculation = later.since(now).speculation
    if speculation is None or not speculation.drafts:
        return Check(_SECTION, "samples", "missing", "not looked at: nothing was guessed ahead of them")
    # Two tokens may be as likely to within rounding.
    tokens = [token for completion in found.completions for token in completion.tokens if token.top]
    strays = (t.logprob < max(likely for _, likely in t.top) - _NEAR for t in tokens)
    if not any(strays):
        return _ok("samples", "keep to temperature and top-p while the server guesses ahead")
    wrong = (
        "do not keep to temperature and top-p while the server guesses ahead: it samples from something else"
    )
    remedy = (
        "Install Stratagem in the environment that vLLM runs in, whose plug-in puts it right (VLLM_PLUGINS must "
        "not leave it out), or leave out --speculative-config."
    )
    return Check(_SECTION, "samples", "broken", wrong, remedy)


async def _judges(llm: OpenAIBackend) -> Check:
    request = sg.Request((sg.Message("user", _SENTENCE),), max_tokens=1, temperature=0.0, logprobs=_TOP)
    try:
        await llm.generate(request)
    except RejectedError as error:
        return Check(_SECTION, "judges", "broken", error.message, f"Start it with --max-logprobs {_TOP}.")
    return _ok("judges", f"read the {_TOP} likeliest tokens")


def _priorities(configuration: Mapping[str, Any] | None) -> Check:
    if configuration is None:
        unknown = (
            "not told: vLLM shows its scheduling under VLLM_SERVER_DEV_MODE=1 only; profile agent has it on"
        )
        return Check(_SECTION, "priorities", "missing", unknown)
    if configuration.get("scheduler_config", {}).get("policy") == "priority":
        return _ok("priorities", "on")
    off = "off: whatever is urgent waits behind what came before it"
    return _advice("priorities", off, "Start it with --scheduling-policy priority.")
