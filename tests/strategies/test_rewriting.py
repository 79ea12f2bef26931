"""Self-refine, critique-revise and debate against numbers that enumeration gives, and what they ask the engine."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import product

import pytest

import stratagem as sg
from stratagem.core.backend import Message, Request, ScoreRequest
from stratagem.core.protocols import Strategy
from stratagem.core.trace import CallStarted, CompletionArrived, Verified
from stratagem.strategies.critique_revise import CritiqueRevise
from stratagem.strategies.debate import Debate
from stratagem.strategies.self_refine import SelfRefine
from stratagem.testing.language import Distribution
from stratagem.testing.loops import run
from stratagem.testing.toy import ToyModel, jittered

Messages = tuple[Message, ...]
Says = Callable[[Messages], Distribution]
ONE, TWO, THREE = ("The answer is 1.", "The answer is 2.", "The answer is 3.")


def speaker(says: Says) -> Callable[[Messages, tuple[str, ...]], Distribution]:
    """A language of one token and the end."""
    return lambda messages, tokens: {"": 1.0} if tokens else says(messages)


def agrees(strategy: Strategy, says: Says, exact: Mapping[str | None, float], runs: int = 1000) -> None:
    async def main() -> Counter[str | None]:
        toy = ToyModel(speaker(says))
        return Counter(
            [(await sg.solve("Which?", strategy, llm=toy, seed=seed)).value for seed in range(runs)]
        )

    found = asyncio.run(main())
    assert sum(exact.values()) == pytest.approx(1)
    for value, p in exact.items():
        assert abs(found[value] / runs - p) <= 4 * math.sqrt(p * (1 - p) / runs), (
            value,
            found[value] / runs,
            p,
        )


def solve(strategy: Strategy, says: Says, **options: object) -> tuple[sg.Answer, sg.Trace, ToyModel]:
    toy, trace = ToyModel(speaker(says)), sg.Trace()
    answer = sg.solve_sync("Which?", strategy, llm=toy, trace=trace, **options)  # type: ignore[arg-type]
    assert toy.books.in_flight == 0
    return answer, trace, toy


def author(messages: Messages) -> Distribution:
    """Right (1) with 1/2; finds an error with 0.8 where there is one; a correction is right with 0.6."""
    asked = messages[-1].content
    if "No error" in asked:
        return {"No error.": 1.0} if messages[-2].content == ONE else {"It is wrong.": 0.8, "no error": 0.2}
    return {ONE: 0.6, TWO: 0.4} if "again" in asked else {ONE: 0.5, TWO: 0.5}


def test_self_refine_agrees_with_enumeration() -> None:
    right = 0.5 + 0.5 * (0.8 * 0.6 + 0.8 * 0.4 * 0.8 * 0.6)
    agrees(SelfRefine(rounds=2), author, {"1": right, "2": 1 - right})


def test_self_refine_stops_at_no_error_after_one_feedback() -> None:
    answer, trace, _ = solve(SelfRefine(), lambda m: author(m) if len(m) > 1 else {ONE: 1.0})
    assert [e.text for e in trace.of(CompletionArrived)] == [ONE, "No error."]
    assert (answer.value, answer.stopped) == ("1", "complete")


def test_the_conversation_of_self_refine_only_grows() -> None:
    asked: list[Messages] = []

    def says(messages: Messages) -> Distribution:
        if not asked or asked[-1] != messages:
            asked.append(messages)
        return {"It is wrong.": 1.0} if "No error" in messages[-1].content else {TWO: 1.0}

    solve(SelfRefine(rounds=2), says)
    whole = asked[-1]
    assert all(whole[: len(part) - 1] == part[:-1] for part in asked)
    assert [m.content for m in whole if m.role == "assistant"] == [TWO, "It is wrong.", TWO, "It is wrong."]


def test_empty_feedback_ends_it() -> None:
    answer, trace, _ = solve(SelfRefine(), lambda m: {"": 1.0} if "No error" in m[-1].content else {TWO: 1.0})
    assert len(trace.of(CallStarted)) == 2
    assert (answer.value, len(answer.candidates)) == ("2", 1)


@pytest.mark.parametrize("strategy", [SelfRefine(rounds=1), CritiqueRevise()], ids=lambda s: s.kind)
def test_a_rewritten_text_without_an_answer_does_not_replace_one(strategy: Strategy) -> None:
    def says(messages: Messages) -> Distribution:
        asked = messages[-1].content
        return {"It is wrong." if "No error" in asked else "Sorry!" if "again" in asked else TWO: 1.0}

    answer, _, _ = solve(strategy, says)
    assert answer.value == "2"
    assert [c.text for c in answer.candidates] == [TWO, "Sorry!"]


def test_stopped_by_its_budget_the_best_version_so_far_is_the_answer() -> None:
    says: Says = lambda m: {"It is wrong.": 1.0} if "No error" in m[-1].content else {TWO: 1.0}  # noqa: E731
    answer, _, _ = solve(SelfRefine(), says, budget="calls=2")
    assert (answer.value, answer.stopped) == ("2", "budget")


def test_critique_revise_agrees_with_enumeration() -> None:
    """Two principles find the error independently."""
    found = 1 - 0.2**2
    right = 0.5 + 0.5 * (found * 0.6 + found * 0.4 * found * 0.6)
    agrees(CritiqueRevise(rounds=2), author, {"1": right, "2": 1 - right})


def test_critiques_of_another_model_are_written_at_the_same_time() -> None:
    """However many principles: a draft, a critique and a revision take the steps of three completions."""

    async def main() -> None:
        async def pace(_: Request | ScoreRequest) -> None:
            await asyncio.sleep(1)

        loop = asyncio.get_running_loop()
        for many in (1, 5):
            policy = ToyModel(speaker(author), pace=pace)
            critic = ToyModel(speaker(lambda _: {"It is wrong.": 1.0}), pace=pace)
            strategy = CritiqueRevise(principles=tuple(f"Number {i}?" for i in range(many)))
            begun = loop.time()
            await sg.solve("Which?", strategy, llm=policy, judge=critic)
            assert loop.time() - begun == pytest.approx(3 * 2)  # two tokens each
            assert (policy.books.usage.calls, critic.books.usage.calls) == (2, many)

    run(main())


def test_a_draft_is_judged_while_it_is_criticised_and_the_best_is_the_answer() -> None:
    def says(messages: Messages) -> Distribution:
        asked = messages[-1].content
        return {"It is wrong." if "No error" in asked else TWO if "again" in asked else ONE: 1.0}

    strategy = CritiqueRevise(verifier=sg.Exact(reference="1"))
    answer, trace, _ = solve(strategy, says)
    assert [(c.text, c.scores) for c in answer.candidates] == [(ONE, {"exact": 1.0}), (TWO, {"exact": 0.0})]
    assert (answer.text, answer.confidence) == (ONE, 1.0)
    events = [type(record.event) for record in trace.records]
    last = len(events) - 1 - events[::-1].index(CompletionArrived)
    assert events.index(Verified) < last


@pytest.mark.parametrize("bad", [{"principles": []}, {"principles": [""]}, {"revise": ""}, {"rounds": 0}])
def test_what_cannot_be_asked_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(sg.ConfigurationError, match=next(iter(bad))):
        sg.Strategy.load({"kind": "critique_revise", **bad})


START = {ONE: 0.5, TWO: 0.3, THREE: 0.2}


def heard(messages: Messages) -> list[str]:
    return [text for text in (ONE, TWO, THREE) for _ in range(messages[-1].content.count(text))]


def agent(messages: Messages) -> Distribution:
    """Follows two others who agree with 0.9; else keeps its own answer."""
    if messages[-1].role != "user" or len(messages) == 1:
        return START
    others, own = heard(messages), messages[-2].content
    follow = 0.9 if len(set(others)) == 1 else 0.0
    return {own: 1 - follow, others[0]: follow} if others[0] != own else {own: 1.0}


def test_debate_agrees_with_enumeration() -> None:
    exact: Counter[str | None] = Counter()
    for said in product(START, repeat=3):
        states = {said: math.prod(START[s] for s in said)}
        for _ in range(2):
            after: dict[tuple[str, ...], float] = {}
            for state, p in states.items():
                talks = [
                    (Message("user", "?"), Message("assistant", own), Message("user", " ".join(others)))
                    for i, own in enumerate(state)
                    if (others := state[:i] + state[i + 1 :])
                ]
                rows = [agent(talk) for talk in talks] if len(set(state)) > 1 else [{s: 1.0} for s in state]
                for next_said in product(*rows):
                    q = math.prod(row[s] for row, s in zip(rows, next_said, strict=True))
                    after[next_said] = after.get(next_said, 0.0) + p * q
            states = after
        for state, p in states.items():
            winner = max(state, key=lambda s: (state.count(s), -state.index(s)))
            exact[winner[-2]] += p  # type: ignore[assignment]
    agrees(Debate(), agent, exact)


def test_a_debate_in_which_all_agree_is_over() -> None:
    answer, trace, _ = solve(Debate(n=4), lambda _: {ONE: 1.0})
    assert [(call.n, call.operation) for call in trace.of(CallStarted)] == [(4, "stream")]
    assert (answer.value, answer.confidence) == ("1", 1.0)


def test_in_the_last_round_who_is_not_needed_is_stopped_in_the_engine() -> None:
    """The third agent, who does not agree, would go on for 40 tokens after the two others have decided."""

    def language(messages: Messages, tokens: tuple[str, ...]) -> Distribution:
        if len(messages) == 1:
            return {"": 1.0} if tokens else {ONE: 0.5, TWO: 0.5}
        if messages[1].content == ONE or tokens[-1:] == (TWO,):
            return {"": 1.0} if tokens else {ONE: 1.0}
        return {TWO if len(tokens) == 40 else " well,": 1.0}

    async def main() -> int:
        aborted = 0
        for seed in range(20):
            toy = ToyModel(language, pace=jittered(seed))
            answer = await sg.solve("Which?", Debate(rounds=1), llm=toy, seed=seed)
            first = await sg.solve("Which?", sg.SelfConsistency(n=3), llm=ToyModel(language), seed=seed)
            drawn = [c.text for c in first.candidates]
            assert toy.books.aborted == (drawn == [ONE, ONE, TWO])
            assert toy.books.in_flight == 0
            if toy.books.aborted:
                assert (answer.value, answer.confidence) == ("1", pytest.approx(2 / 3))
                assert len(answer.candidates) == 2
            aborted += toy.books.aborted
        return aborted

    assert asyncio.run(main()) >= 1


def test_an_agent_hears_the_others_and_not_itself() -> None:
    asked: set[Messages] = set()

    def says(messages: Messages) -> Distribution:
        asked.add(messages)
        return START

    solve(Debate(rounds=1), says, seed=3)
    later = [m for m in asked if len(m) > 1]
    assert len(later) == 3
    first = Counter(m[1].content for m in later)
    for messages in later:
        assert Counter(heard(messages)) == first - Counter([messages[1].content])
