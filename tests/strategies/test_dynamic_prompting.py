"""Dynamic prompting: which prompt is chosen, and what the others cost."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import replace
from itertools import permutations

import pytest

import stratagem as sg
from stratagem.core.backend import Message
from stratagem.core.errors import UnsupportedError
from stratagem.strategies.dynamic_prompting import DynamicPrompting
from stratagem.testing.language import Distribution
from stratagem.testing.toy import CAPABLE, ToyModel, jittered

PROMPTS = ("Say it plainly.", "Think twice.", "Guess.")
FIRST = {
    "Say it plainly.": {"Well, ": 0.9, "Oh, ": 0.1},
    "Think twice.": {"Hm, ": 0.7, "Er, ": 0.3},
    "Guess.": {"Eh, ": 0.5, "Ah, ": 0.5},
}


def language(messages: tuple[Message, ...], tokens: tuple[str, ...]) -> Distribution:
    """A first word by the prompt, twenty that are certain, and the number of the prompt as the answer."""
    prompt = messages[-1].content.splitlines()[-1]
    if not tokens:
        return FIRST[prompt]
    if len(tokens) <= 20:
        return {"so ": 1.0}
    return {"": 1.0} if tokens[-1].endswith(".") else {f"the answer is {PROMPTS.index(prompt) + 1}.": 1.0}


def asked(*prompts: str, probe: int = 4) -> DynamicPrompting:
    return DynamicPrompting(instruction=prompts[0], alternatives=prompts[1:], probe=probe)


def test_the_choice_agrees_with_enumeration() -> None:
    """By the first word alone; the rest of the probe is certain under each."""
    exact: Counter[str] = Counter()
    for plain, p in FIRST[PROMPTS[0]].items():
        for twice, q in FIRST[PROMPTS[1]].items():
            for guess, r in FIRST[PROMPTS[2]].items():
                said = (plain, twice, guess)
                scores = [FIRST[prompt][word] for prompt, word in zip(PROMPTS, said, strict=True)]
                exact[str(scores.index(max(scores)) + 1)] += p * q * r  # type: ignore[assignment]
    runs = 600

    async def main() -> Counter[str | None]:
        toy = ToyModel(language)
        strategy = asked(*PROMPTS)
        return Counter(
            [(await sg.solve("Which?", strategy, llm=toy, seed=seed)).value for seed in range(runs)]
        )

    found = asyncio.run(main())
    for value, p in exact.items():
        assert abs(found[value] / runs - p) <= 4 * math.sqrt(p * (1 - p) / runs) + 1e-12, (value, found)


def test_the_order_of_the_prompts_changes_nothing() -> None:
    for seed in range(6):
        got = {
            sg.solve_sync("Which?", asked(*order), llm=ToyModel(language), seed=seed).text
            for order in permutations(PROMPTS)
        }
        assert len(got) == 1


def test_the_answer_is_the_one_that_its_prompt_alone_gives() -> None:
    for seed in range(6):
        chosen = sg.solve_sync("Which?", asked(*PROMPTS), llm=ToyModel(language), seed=seed)
        prompt = chosen.candidates[0].prompt[-1].content.splitlines()[-1]
        alone = sg.ChainOfThought(instruction=prompt)
        assert chosen.text == sg.solve_sync("Which?", alone, llm=ToyModel(language), seed=seed).text
        single = sg.solve_sync("Which?", asked(prompt), llm=ToyModel(language), seed=seed)
        assert single.text == chosen.text
        first = FIRST[prompt][chosen.text.partition(" ")[0] + " "]
        assert chosen.candidates[0].scores["dynamic_prompting"] == pytest.approx(math.log(first) / 4)


def test_beaten_prompts_are_stopped_in_the_engine_at_the_end_of_the_probe() -> None:
    for seed in range(6):
        toy = ToyModel(language)
        answer = sg.solve_sync("Which?", asked(*PROMPTS), llm=toy, seed=seed)
        assert (toy.books.aborted, toy.books.in_flight) == (2, 0)
        whole = answer.candidates[0].token_count
        assert whole + 2 * 4 <= toy.books.usage.completion_tokens <= whole + 2 * 4 + 2
        assert answer.usage == toy.books.usage


def test_no_order_of_arrival_decides() -> None:
    for seed in range(6):
        got = {
            sg.solve_sync("Which?", asked(*PROMPTS), llm=ToyModel(language, pace=jittered(p)), seed=seed).text
            for p in range(5)
        }
        assert len(got) == 1


def test_equal_prompts_are_refused() -> None:
    with pytest.raises(sg.ConfigurationError, match="to differ"):
        sg.Strategy.load({"kind": "dynamic_prompting", "instruction": "Go.", "alternatives": ["Go."]})


def test_a_model_without_log_probabilities_is_refused_before_it_is_asked() -> None:
    model = ToyModel(language, capabilities=replace(CAPABLE, logprobs=-1))
    with pytest.raises(UnsupportedError, match="by which dynamic_prompting"):
        sg.solve_sync("Which?", asked(*PROMPTS), llm=model)
    assert model.books.usage.calls == 0
