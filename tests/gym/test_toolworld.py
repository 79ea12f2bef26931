"""Worlds of tools: gold plans against what the tools really give, the grader, and what training sees."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from collections import Counter

import pytest

import stratagem as sg
from stratagem.bench.gym import SPLITS, Document, Problem, Split, skill
from stratagem.bench.gym.toolworld import ToolWorld
from stratagem.core.prompts import DIVIDE, ONE_CALL, REACT
from stratagem.testing.language import END, Distribution, Language
from stratagem.testing.toy import ToyModel
from stratagem.tools.dag import Call
from stratagem.tools.notation import parse, signature
from stratagem.tools.patterns import pattern
from stratagem.tools.toolbox import read_only

WORLD = ToolWorld()
assert skill("toolworld") == WORLD


def made(split: Split, count: int) -> list[Problem]:
    return [WORLD.problem(split, index) for index in range(count)]


def speaker(plan: str, last: str, heard: list[tuple[sg.Message, ...]]) -> Language:
    """Says the plan, then the last line."""

    def says(messages: tuple[sg.Message, ...], tokens: tuple[str, ...]) -> Distribution:
        heard.append(messages)
        return {END: 1.0} if tokens else {plan if len(messages) == 2 else last: 1.0}

    return says


@pytest.mark.parametrize("split", SPLITS)
def test_gold_plans_are_right_and_give_the_answer(split: Split) -> None:
    """Made by the dataflow executor, with the problem's own functions as tools."""

    async def main() -> None:
        for problem in made(split, 60):
            plan = "\n".join(step.text for step in problem.steps)
            last = f"The answer is {problem.answer}."

            heard: list[tuple[sg.Message, ...]] = []
            tools = read_only(WORLD.functions(problem))
            answer = await sg.solve(
                problem.question,
                sg.DivideThenAggregate(),
                llm=ToyModel(speaker(plan, last, heard)),
                tools=tools,
            )
            assert heard[0][0].content == "\n".join([DIVIDE, *WORLD.world(problem).signatures()])
            assert all(call.ok for call in answer.calls)
            assert str(answer.calls[problem.needs[0]].result) == problem.answer == answer.value
            grade = WORLD.grade(problem, problem.solution)
            assert grade.correct
            assert all(grade.right)

    asyncio.run(main())


def test_signatures_and_lines_are_those_of_the_plan_notation() -> None:
    for problem in made("test", 50):
        tools = read_only(WORLD.functions(problem)).tools
        assert list(map(signature, tools.values())) == WORLD.world(problem).signatures()
        one = re.compile(pattern(tools.values()))
        for step in problem.steps:
            assert one.fullmatch(step.text)
            call = parse(step.text, tools)
            assert isinstance(call, Call)
            assert [ord(need) - ord("a") for need in call.needs] == sorted(
                set(step.needs), key=step.needs.index
            )


def test_a_call_is_right_whatever_it_is_called_and_in_whatever_order() -> None:
    for problem in made("dev", 100):
        texts = [step.text for step in problem.steps]
        renamed = [re.sub(r"\b([a-p])\b(?![\"\w])", r"r\1", text) for text in texts]
        renamed[:2] = renamed[1::-1] if not problem.steps[1:2] or not problem.steps[1].needs else renamed[:2]
        grade = WORLD.grade(problem, "\n".join([*renamed, f"The answer is {problem.answer}."]))
        assert all(grade.right), (renamed, grade)


def test_wrong_calls_and_answers_without_their_calls_are_wrong() -> None:
    for problem in made("dev", 100):
        first = problem.steps[0].text
        wrong = re.sub(r'"(\w+)"', '"x\\1"', first) if '"' in first else first.replace("(", "(9")
        assert not WORLD.grade(problem, wrong).right[0]
        alone = WORLD.grade(problem, f"The answer is {problem.answer}.")
        assert alone.correct
        assert alone.right == (False,)
        assert not WORLD.grade(problem, problem.solution.replace(problem.answer + ".", "0.5.")).correct


def test_splits_share_no_question_and_training_sees_none_of_them() -> None:
    questions = {split: {problem.question for problem in made(split, 1000)} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not questions[one] & questions[other]
    seen = {each.messages[1].content for each in documents(2000)}
    assert not seen & (questions["test"] | questions["dev"] | questions["hard"])


def documents(count: int) -> list[Document]:
    return list(itertools.islice(WORLD.documents(random.Random(3)), count))


def test_every_family_is_drawn_and_hard_problems_have_more_calls() -> None:
    assert set(Counter(p.meta["family"] for p in made("test", 300))) == {
        "basket", "compare", "worth", "calendar", "journey", "people", "choice",
    }  # fmt: skip
    assert min(len(p.steps) for p in made("hard", 100) if p.meta["family"] != "choice") >= 5


def test_training_talks_look_like_those_of_the_strategies() -> None:
    """Line by line: the model writes calls (or a thought and an action) and reads what became of them."""
    heads: Counter[str] = Counter()
    for document in documents(400):
        [system, _, *turns, last] = document.messages
        head = next(kind for kind in (DIVIDE, ONE_CALL, REACT) if system.content.startswith(kind))
        heads[head] += 1
        assert not system.loss
        assert last.content.startswith("The answer is ")
        assert last.loss
        for said, read in zip(turns[::2], turns[1::2], strict=True):
            assert (said.role, said.loss, read.role, read.loss) == ("assistant", True, "user", False)
            lines, told = said.content.split("\n"), read.content.split("\n")
            if head == REACT:
                assert [line.partition(":")[0] for line in lines] == ["Thought", "Action"]
                assert re.fullmatch(r"Observation: (failed: .+|\".+\"|-?\d+)", read.content)
                continue
            assert len(lines) == len(told)
            assert head == DIVIDE or len(lines) == 1
            for line, result in zip(lines, told, strict=True):
                name = line.partition(" = ")[0]
                assert re.fullmatch(rf"{name} (= (\".+\"|-?\d+)|failed: .+|skipped)", result)
    assert min(heads[DIVIDE], heads[ONE_CALL], heads[REACT]) > 20


def test_a_world_depends_on_its_seed_and_its_tools_say_what_they_do_not_know() -> None:
    problem = WORLD.problem("test", 0)
    one, two = WORLD.world(problem), WORLD.world(problem)
    assert [one.call("price", "pens"), one.call("city", "Ann")] == [
        two.call("price", "pens"),
        two.call("city", "Ann"),
    ]
    for kind, arguments in (
        ("price", ["moons"]),
        ("city", ["Nobody"]),
        ("convert", [1, "kilos", "feet"]),
        ("days", ["x", "2027-01-01"]),
    ):
        with pytest.raises(LookupError, match="there is no"):
            one.call(kind, *arguments)
