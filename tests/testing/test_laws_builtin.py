"""The strategies and verifiers that come with the package keep the laws."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from stratagem.core.backend import Message
from stratagem.core.component import Component
from stratagem.core.protocols import Strategy, Verifier
from stratagem.testing import laws
from stratagem.testing.language import END, Distribution
from stratagem.testing.toy import CAPABLE, ToyModel
from stratagem.tools.tool import tool
from stratagem.tools.toolbox import Toolbox


def shipped(family: type[Component]) -> dict[str, type[Component]]:
    """The members that come with the package, without those of other tests."""
    return {kind: m for kind, m in family.kinds().items() if m.__module__.startswith("stratagem.")}


AGENTS = ("dta", "sequential", "react", "dfsdt")  # they call tools
SMALL: dict[str, dict[str, Any]] = {
    "debate": {"n": 4},
    "step_best_of_n": {"n": 3},
    "particle_filtering": {"n": 5},
    "particle_gibbs": {"n": 3, "iterations": 2},
    "parallel_tempering": {"n": 2, "iterations": 3, "temperatures": [1, 2]},
    "beam_search": {"beams": 2, "width": 2},
    "dvts": {"trees": 3, "width": 2},
    "mcts": {"simulations": 4, "width": 2, "parallel": 2},
    "best_first": {"width": 2, "expansions": 6, "parallel": 3},
}
STRATEGIES: list[dict[str, Any]] = [
    *(
        {"kind": k} | SMALL.get(k, {"n": 6} if "n" in m.model_fields else {})
        for k, m in shipped(Strategy).items()
        if k not in AGENTS
    ),
    {"kind": "beam_search", "beams": 2, "width": 3, "aggregate": "last"},
    {"kind": "dvts", "trees": 3, "width": 2, "aggregate": "product", "verifier": "restart"},
    {"kind": "mcts", "simulations": 6, "width": 3, "parallel": 4, "rule": "uct"},
    {"kind": "best_first", "width": 2, "expansions": 2, "parallel": 2, "aggregate": "mean"},
    {
        "kind": "particle_filtering",
        "n": 6,
        "together": 2,
        "ess": 0.8,
        "resampling": "residual",
        "answer": "best",
    },
    {
        "kind": "particle_filtering",
        "n": 4,
        "ess": 1.0,
        "recount": True,
        "answer": "sample",
        "equality": "math",
    },
    {"kind": "self_consistency", "n": 6, "equality": "math"},
    {"kind": "weighted_vote", "n": 6, "by": "probability"},
    {"kind": "weighted_vote", "n": 6, "by": "verifier", "verifier": "judge"},
    {"kind": "best_of_n", "n": 5, "verifier": "restart"},
    {"kind": "adaptive_best_of_n", "n": 6, "tau": 0.85, "parallel": 3},
    {"kind": "early_stopping_consistency", "n": 8, "ahead": 3, "posterior": "dirichlet", "equality": "math"},
    {"kind": "pruned_best_of_n", "n": 6, "every": 1, "margin": 0.2},
    {"kind": "pruned_best_of_n", "n": 6, "unit": "token", "checkpoints": (1, 2), "explore": 0.3},
    {"kind": "rpc", "n": 8, "equality": "math"},
    {"kind": "deep_confidence", "n": 8, "warmup": 3, "window": 2, "keep": 0.3, "parallel": 2},
    {"kind": "deep_confidence", "n": 8, "warmup": 3, "window": 2, "ahead": True, "consensus": 2.0},
    {"kind": "deep_confidence", "n": 6, "warmup": 2, "window": 2, "measure": "tail", "equality": "math"},
    {"kind": "critique_revise", "rounds": 2, "verifier": "judge"},
    {"kind": "debate", "n": 3, "equality": "math"},
    {"kind": "dynamic_prompting", "probe": 2},
    {"kind": "tournament", "n": 4, "matches": "all"},
    {"kind": "best_of_n", "n": 4, "verifier": {"kind": "all", "parts": ["judge", "step_judge"]}},
]
NEEDED: dict[str, dict[str, Any]] = {
    "all": {"parts": ["judge", "exact"]},
    "any": {"parts": ["judge", "restart"]},
    "weighted": {"parts": ["judge", "step_judge"], "weights": [1, 2]},
}


def _id(data: dict[str, Any]) -> str:
    return "-".join(str(value) for value in data.values())


def planner(messages: tuple[Message, ...], tokens: tuple[str, ...]) -> Distribution:
    """Calls a tool or two, sometimes a wrong one, and then says what it saw, sometimes at once."""
    text = "".join(tokens)
    if text.endswith((")", ".")):
        return {END: 1.0}
    if text.endswith("is "):
        return {"3.": 0.6, "4.": 0.4}
    if text:
        return {'size("pen")': 0.5, 'size("lamp")': 0.4, "size(7)": 0.1}
    seen = sum(message.role == "assistant" for message in messages)
    writes = "Thought: I look.\nAction: " if "Thought" in messages[0].content else f"a{seen} = "
    return {writes: 0.2, "The answer is ": 0.8} if seen else {writes: 0.9, "The answer is ": 0.1}


def toolbox() -> Toolbox:
    @tool(effect="read_only")
    async def size(of: str) -> int:
        """Length of a word."""
        await asyncio.sleep(0.02)
        return len(of)

    return Toolbox([size], permits=3)


@pytest.mark.parametrize("kind", AGENTS)
def test_agent(kind: str) -> None:
    """At a temperature, so that seeds tell; on a talk that may go on for three turns."""
    laws.strategy(
        lambda: Strategy.load({"kind": kind, "temperature": 1.0, "rounds": 3}),
        model=partial(ToyModel, planner),
        tools=toolbox(),
        cases=60,
    )


@pytest.mark.parametrize("data", STRATEGIES, ids=_id)
def test_strategy(data: dict[str, Any]) -> None:
    greedy_first = data["kind"] == "adaptive_best_of_n"  # and that sample is a good one here
    laws.strategy(lambda: Strategy.load(data), cases=60, deterministic=greedy_first)


@pytest.mark.parametrize("kind", list(shipped(Verifier)))
def test_verifier(kind: str) -> None:
    model = partial(ToyModel, capabilities=replace(CAPABLE, reward=kind == "reward_model"))
    laws.verifier(lambda: Verifier.load({"kind": kind, **NEEDED.get(kind, {})}), model=model)


def test_equalities() -> None:
    pairs = [("1/2", "0.5"), ("50%", "0.5")]
    laws.verifier(lambda: Verifier.load("math"), same=pairs, different=[("2", "3")])
    laws.verifier(lambda: Verifier.load("exact"), same=[("Yes.", "yes")], different=pairs)
