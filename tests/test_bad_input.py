"""What the Python API says to what it cannot use: one error that names it, before anything is spent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest

import stratagem as sg
from stratagem.testing.toy import CAPABLE, ToyModel


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"question": None}, ("The question is NoneType", "sg.Task")),
        ({"question": 5}, ("The question is int",)),
        ({"question": " "}, ("question is empty",)),
        ({"budget": 100}, ("budget=100", "tokens=20000")),
        ({"budget": {"token": 100}}, ("'token'", "tokens, calls, seconds, money")),
        ({"budget": {"tokens": -1}}, ("tokens=-1",)),
        ({"llm": "gpt-4"}, ("'policy' is str", "sg.connect(")),
        ({"models": {"judge": 3}}, ("'judge' is int",)),
        ({"models": {"jugde": ToyModel()}}, ("'jugde'", "'judge'")),
        ({"models": {"polcy": ToyModel()}}, ("'polcy'", "'policy'")),
        ({"strategy": sg.BestOfN}, ("BestOfN is a class", "BestOfN()")),
        ({"strategy": "best_of_m"}, ("'best_of_m'", "Did you mean best_of_n?")),
    ],
)
def test_solve(arguments: dict[str, Any], words: tuple[str, ...]) -> None:
    toy = ToyModel()
    given = {"question": "Which?", "strategy": "direct", "llm": toy} | arguments
    with pytest.raises(sg.ConfigurationError) as caught:
        asyncio.run(sg.solve(**given))
    for word in words:
        assert word in str(caught.value)
    assert not toy.books.usage.calls


def test_a_budget_by_name() -> None:
    answer = asyncio.run(sg.solve("Which?", "direct", llm=ToyModel(), budget={"tokens": 5000, "seconds": 9}))
    assert answer.stopped == "complete"


def test_further_roles_are_welcome() -> None:
    models = {"reward-safety": ToyModel(), "judge2": ToyModel(), "critic": ToyModel()}
    assert asyncio.run(sg.solve("Which?", "direct", llm=ToyModel(), models=models)).text


JUDGED = ("restart", "step_judge", "judge", {"kind": "all", "parts": ["math", "judge"]}, "reward_model")


@pytest.mark.parametrize("verifier", JUDGED, ids=lambda v: v if isinstance(v, str) else "all")
@pytest.mark.parametrize(
    "kind",
    [
        {"kind": "best_of_n", "n": 3},
        {"kind": "adaptive_best_of_n", "n": 3},
        {"kind": "pruned_best_of_n", "n": 4},
        {"kind": "weighted_vote", "n": 3, "by": "verifier"},
        {"kind": "critique_revise"},
        {"kind": "allocation", "n": 3},
        {"kind": "auto"},
    ],
    ids=lambda kind: kind["kind"],
)
def test_what_a_verifier_needs_is_missed_before_anything_is_spent(
    kind: dict[str, Any], verifier: Any
) -> None:
    toy = ToyModel(capabilities=replace(CAPABLE, logprobs=-1, prompt_logprobs=False))
    strategy = sg.Strategy.load(kind | {"verifier": verifier})
    missing = "reward model" if verifier == "reward_model" else "log-probabilities"
    with pytest.raises(sg.StratagemError, match=missing):
        asyncio.run(sg.solve("Which?", strategy, llm=toy))
    assert not toy.books.usage.calls


class Odd(sg.Verifier):
    """Good scores, and then none at all."""

    kind: ClassVar[str] = "odd_in_tests"
    asked: ClassVar[list[str]] = []

    async def __call__(
        self, task: sg.Task, candidates: Sequence[sg.Candidate], run: sg.Run
    ) -> list[sg.Verdict]:
        self.asked.extend(c.text for c in candidates)
        return [sg.Verdict(0.5 if len(self.asked) < 3 else float("nan")) for _ in candidates]


def test_what_a_run_had_when_it_failed_is_not_lost() -> None:
    Odd.asked.clear()
    trace = sg.Trace()
    with pytest.raises(sg.VerifierError, match="nan"):
        asyncio.run(sg.solve("Which?", sg.BestOfN(n=5, verifier=Odd()), llm=ToyModel(), trace=trace))
    assert trace.partial is not None
    assert (trace.partial.stopped, bool(trace.partial.candidates)) == ("failed", True)
    assert "nan" in trace.partial.reason
    assert trace.partial.usage.calls


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: sg.BestOfN(n=0), ("best_of_n: n = 0", "greater than or equal to 1")),
        (lambda: sg.BestOfN(m=8), ("best_of_n: unknown key 'm'", "allowed are", "verifier")),  # pyright: ignore
        (lambda: sg.PrunedBestOfN(checkpoints=()), ("pruned_best_of_n", "checkpoints, or every")),
        (lambda: sg.Judge(scale=0), ("judge: scale = 0",)),
    ],
)
def test_parts(made: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(sg.ConfigurationError) as caught:
        made()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "option",
    [
        {"permits": "3"},
        {"permits": True},
        {"permits": 0},
        {"rate": float("nan")},
        {"rate": "3"},
        {"timeout": 0},
        {"retries": 1.5},
    ],
)
def test_connect(option: dict[str, Any]) -> None:
    [name] = option
    with pytest.raises(sg.ConfigurationError, match=name):
        sg.connect("http://127.0.0.1:1/v1", **option)
