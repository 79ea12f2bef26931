"""Stratagem: inference-time strategies for language models.

>>> import stratagem as sg
>>> answer = sg.solve_sync("Ana has 3 apples. Ben has 4 more apples than Ana. How many apples has Ben?")

Everything here is imported on first use, so that ``import stratagem`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "stratagem.api": ("solve", "solve_all", "solve_sync"),
    "stratagem.core.connect": ("connect",),
    "stratagem.backends.vllm.connect": ("connect_vllm",),
    "stratagem.core.asking": ("Sampling",),
    "stratagem.core.backend": ("Backend", "Constraint", "Message", "Request"),
    "stratagem.core.budget": ("Budget", "Ledger"),
    "stratagem.core.calling": ("Called",),
    "stratagem.core.component": ("parameter",),
    "stratagem.core.errors": (
        "BackendError",
        "BudgetExhausted",
        "ConfigurationError",
        "StratagemError",
        "VerifierError",
    ),
    "stratagem.core.execute": ("execute",),
    "stratagem.core.protocols": ("Strategy", "Verdict", "Verifier"),
    "stratagem.core.run": ("Run",),
    "stratagem.core.task": ("Answer", "Candidate", "Task"),
    "stratagem.core.trace": ("JsonLines", "Trace"),
    "stratagem.core.usage": ("Usage",),
    "stratagem.strategies.adaptive_best_of_n": ("AdaptiveBestOfN",),
    "stratagem.strategies.allocation": ("Allocation",),
    "stratagem.strategies.auto": ("Auto", "Measured"),
    "stratagem.strategies.beam_search": ("BeamSearch",),
    "stratagem.strategies.best_first": ("BestFirst",),
    "stratagem.strategies.best_of_n": ("BestOfN",),
    "stratagem.strategies.chain_of_thought": ("ChainOfThought",),
    "stratagem.strategies.critique_revise": ("CritiqueRevise",),
    "stratagem.strategies.debate": ("Debate",),
    "stratagem.strategies.deep_confidence": ("DeepConfidence",),
    "stratagem.strategies.dfsdt": ("DFSDT",),
    "stratagem.strategies.direct": ("Direct",),
    "stratagem.strategies.dta": ("DivideThenAggregate",),
    "stratagem.strategies.dvts": ("DVTS",),
    "stratagem.strategies.dynamic_prompting": ("DynamicPrompting",),
    "stratagem.strategies.early_stopping_consistency": ("EarlyStoppingConsistency",),
    "stratagem.strategies.mcts": ("MCTS",),
    "stratagem.strategies.parallel_tempering": ("ParallelTempering",),
    "stratagem.strategies.particle_filtering": ("ParticleFiltering",),
    "stratagem.strategies.particle_gibbs": ("ParticleGibbs",),
    "stratagem.strategies.pruned_best_of_n": ("PrunedBestOfN",),
    "stratagem.strategies.react": ("ReAct",),
    "stratagem.strategies.rpc": ("RPC",),
    "stratagem.strategies.self_certainty": ("SelfCertainty",),
    "stratagem.strategies.self_consistency": ("SelfConsistency",),
    "stratagem.strategies.self_refine": ("SelfRefine",),
    "stratagem.strategies.sequential": ("SequentialCalling",),
    "stratagem.strategies.step_best_of_n": ("StepBestOfN",),
    "stratagem.strategies.tournament": ("Tournament",),
    "stratagem.strategies.weighted_vote": ("WeightedVote",),
    "stratagem.tools.tool": ("Tool", "tool"),
    "stratagem.tools.toolbox": ("Toolbox",),
    "stratagem.verifiers.choice": ("Choice",),
    "stratagem.verifiers.exact": ("Exact",),
    "stratagem.verifiers.judge": ("Judge",),
    "stratagem.verifiers.math": ("Math",),
    "stratagem.verifiers.restart": ("Restart",),
    "stratagem.verifiers.reward_model": ("RewardModel",),
    "stratagem.verifiers.schema": ("Schema",),
    "stratagem.verifiers.step_judge": ("StepJudge",),
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}
_SHELVES = ("backends", "bench", "graphs", "strategies", "testing", "tools", "verifiers")

__all__ = ["__version__", *_WHERE]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _SHELVES:
        return import_module(f"stratagem.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'stratagem' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE, *_SHELVES})


if TYPE_CHECKING:
    from stratagem.api import solve as solve
    from stratagem.api import solve_all as solve_all
    from stratagem.api import solve_sync as solve_sync
    from stratagem.backends.vllm.connect import connect_vllm as connect_vllm
    from stratagem.core.asking import Sampling as Sampling
    from stratagem.core.backend import Backend as Backend
    from stratagem.core.backend import Constraint as Constraint
    from stratagem.core.backend import Message as Message
    from stratagem.core.backend import Request as Request
    from stratagem.core.budget import Budget as Budget
    from stratagem.core.budget import Ledger as Ledger
    from stratagem.core.calling import Called as Called
    from stratagem.core.component import parameter as parameter
    from stratagem.core.connect import connect as connect
    from stratagem.core.errors import BackendError as BackendError
    from stratagem.core.errors import BudgetExhausted as BudgetExhausted
    from stratagem.core.errors import ConfigurationError as ConfigurationError
    from stratagem.core.errors import StratagemError as StratagemError
    from stratagem.core.errors import VerifierError as VerifierError
    from stratagem.core.execute import execute as execute
    from stratagem.core.protocols import Strategy as Strategy
    from stratagem.core.protocols import Verdict as Verdict
    from stratagem.core.protocols import Verifier as Verifier
    from stratagem.core.run import Run as Run
    from stratagem.core.task import Answer as Answer
    from stratagem.core.task import Candidate as Candidate
    from stratagem.core.task import Task as Task
    from stratagem.core.trace import JsonLines as JsonLines
    from stratagem.core.trace import Trace as Trace
    from stratagem.core.usage import Usage as Usage
    from stratagem.strategies.adaptive_best_of_n import AdaptiveBestOfN as AdaptiveBestOfN
    from stratagem.strategies.allocation import Allocation as Allocation
    from stratagem.strategies.auto import Auto as Auto
    from stratagem.strategies.auto import Measured as Measured
    from stratagem.strategies.beam_search import BeamSearch as BeamSearch
    from stratagem.strategies.best_first import BestFirst as BestFirst
    from stratagem.strategies.best_of_n import BestOfN as BestOfN
    from stratagem.strategies.chain_of_thought import ChainOfThought as ChainOfThought
    from stratagem.strategies.critique_revise import CritiqueRevise as CritiqueRevise
    from stratagem.strategies.debate import Debate as Debate
    from stratagem.strategies.deep_confidence import DeepConfidence as DeepConfidence
    from stratagem.strategies.dfsdt import DFSDT as DFSDT
    from stratagem.strategies.direct import Direct as Direct
    from stratagem.strategies.dta import DivideThenAggregate as DivideThenAggregate
    from stratagem.strategies.dvts import DVTS as DVTS
    from stratagem.strategies.dynamic_prompting import DynamicPrompting as DynamicPrompting
    from stratagem.strategies.early_stopping_consistency import (
        EarlyStoppingConsistency as EarlyStoppingConsistency,
    )
    from stratagem.strategies.mcts import MCTS as MCTS
    from stratagem.strategies.parallel_tempering import ParallelTempering as ParallelTempering
    from stratagem.strategies.particle_filtering import ParticleFiltering as ParticleFiltering
    from stratagem.strategies.particle_gibbs import ParticleGibbs as ParticleGibbs
    from stratagem.strategies.pruned_best_of_n import PrunedBestOfN as PrunedBestOfN
    from stratagem.strategies.react import ReAct as ReAct
    from stratagem.strategies.rpc import RPC as RPC
    from stratagem.strategies.self_certainty import SelfCertainty as SelfCertainty
    from stratagem.strategies.self_consistency import SelfConsistency as SelfConsistency
    from stratagem.strategies.self_refine import SelfRefine as SelfRefine
    from stratagem.strategies.sequential import SequentialCalling as SequentialCalling
    from stratagem.strategies.step_best_of_n import StepBestOfN as StepBestOfN
    from stratagem.strategies.tournament import Tournament as Tournament
    from stratagem.strategies.weighted_vote import WeightedVote as WeightedVote
    from stratagem.tools.tool import Tool as Tool
    from stratagem.tools.tool import tool as tool
    from stratagem.tools.toolbox import Toolbox as Toolbox
    from stratagem.verifiers.choice import Choice as Choice
    from stratagem.verifiers.exact import Exact as Exact
    from stratagem.verifiers.judge import Judge as Judge
    from stratagem.verifiers.math import Math as Math
    from stratagem.verifiers.restart import Restart as Restart
    from stratagem.verifiers.reward_model import RewardModel as RewardModel
    from stratagem.verifiers.schema import Schema as Schema
    from stratagem.verifiers.step_judge import StepJudge as StepJudge
