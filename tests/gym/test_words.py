"""The generator against independent recomputation, and the grader against broken solutions."""

from __future__ import annotations

import itertools
import random
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from stratagem.bench.gym import SPLITS, Problem, Split, Step, seeded, skill, skills
from stratagem.bench.gym.registry import register
from stratagem.bench.gym.words import Words
from stratagem.bench.gym.words.corrupt import corrupt, wrong_steps
from stratagem.core.prompts import STEP_QUESTION

WORDS = skill("words")
EXPRESSION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


def made(split: Split, count: int, first: int = 0) -> list[Problem]:
    return [WORDS.problem(split, index) for index in range(first, first + count)]


@pytest.mark.parametrize("split", SPLITS)
def test_gold_solutions_are_fully_right(split: Split) -> None:
    for problem in made(split, 500):
        grade = WORDS.grade(problem, problem.solution)
        assert grade.correct
        assert all(grade.right)
        assert len(grade.right) == len(problem.steps) + 1


@pytest.mark.parametrize("split", SPLITS)
def test_answers_follow_from_the_question_by_the_steps(split: Split) -> None:
    """Each operand stands in the question or is the value of a step it needs; each sum is right."""
    for problem in made(split, 500):
        stated = {int(number) for number in re.findall(r"\d+", problem.question)}
        stated |= {2, 3, 4, 5}  # twice, a third, a friend
        values: list[int] = []
        for step in problem.steps:
            found = EXPRESSION.search(step.text)
            assert found
            a, op, b, value = int(found[1]), found[2], int(found[3]), int(found[4])
            assert value == {"+": a + b, "-": a - b, "*": a * b, "/": a // max(b, 1)}[op]
            assert op != "/" or a % b == 0
            assert 1 <= value <= 999
            assert {a, b} <= stated | {values[need] for need in step.needs}
            assert all(values[need] in (a, b) for need in step.needs)
            values.append(value)
        assert problem.answer == str(values[-1])
        assert problem.needs == (len(problem.steps) - 1,)


def test_hard_problems_are_longer_than_any_in_training() -> None:
    assert max(len(problem.steps) for problem in made("train", 1000)) == 5
    assert min(len(problem.steps) for problem in made("hard", 300)) == 6


def test_splits_share_no_question() -> None:
    questions = {split: {problem.question for problem in made(split, 5000)} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not questions[one] & questions[other]
    trained = {
        document.messages[0].content.split("\n")[0]
        for document in itertools.islice(WORDS.documents(random.Random(0)), 5000)
    }
    assert not trained & (questions["test"] | questions["dev"] | questions["hard"])


def test_a_problem_depends_on_skill_split_and_index_alone() -> None:
    code = "from stratagem.bench.gym import skill; print(repr(skill('words').problem('test', 41)))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.strip() == repr(WORDS.problem("test", 41))
    assert WORDS.problem("test", 41) == WORDS.problem("test", 41)
    assert WORDS.problem("test", 41) != WORDS.problem("test", 42)


def test_every_family_is_drawn() -> None:
    assert {problem.meta["family"] for problem in made("test", 500)} == {
        "relations", "ages", "story", "shopping", "production", "travel", "places",
    }  # fmt: skip


def test_either_order_of_a_sum_is_right_but_not_of_a_difference() -> None:
    seen = set()
    for problem in made("train", 200):
        for index, step in enumerate(problem.steps):
            found = EXPRESSION.search(step.text)
            assert found
            a, op, b, value = found.groups()
            if a == b:
                continue
            lines = [other.text for other in problem.steps]
            lines[index] = EXPRESSION.sub(f"{b} {op} {a} = {value}", lines[index])
            assert WORDS.grade(problem, "\n".join(lines)).right[index] == (op in "+*")
            seen.add(op)
    assert seen == set("+-*/")


def test_a_wrong_value_is_wrong_and_so_is_what_builds_on_it() -> None:
    for problem in made("train", 300):
        for index, step in enumerate(problem.steps):
            found = EXPRESSION.search(step.text)
            assert found
            lines = [other.text for other in problem.steps]
            lines[index] = EXPRESSION.sub(
                f"{found[1]} {found[2]} {found[3]} = {int(found[4]) + 1}", step.text
            )
            right = WORDS.grade(problem, "\n".join(lines)).right
            assert right[:index] == (True,) * index
            assert not right[index]
            for later in range(index + 1, len(lines)):
                if index in problem.steps[later].needs:
                    assert not right[later]


def test_a_step_left_out_is_wrong_where_it_was_needed() -> None:
    for problem in made("train", 300):
        for gap in range(len(problem.steps)):
            lines = [step.text for index, step in enumerate(problem.steps) if index != gap]
            right = WORDS.grade(problem, "\n".join([*lines, f"The answer is {problem.answer}."])).right
            user = next(
                (i for i in range(gap + 1, len(problem.steps)) if gap in problem.steps[i].needs), None
            )
            first_wrong = right.index(False)
            assert first_wrong == (len(lines) if user is None else user - 1)


def test_an_early_answer_is_wrong_even_if_it_is_the_right_number() -> None:
    problem = next(problem for problem in made("test", 50) if len(problem.steps) >= 4)
    grade = WORDS.grade(problem, f"{problem.steps[0].text}\nThe answer is {problem.answer}.")
    assert grade.correct
    assert grade.right == (True, False)


def test_text_that_is_no_solution() -> None:
    problem = WORDS.problem("test", 0)
    assert WORDS.grade(problem, "") == WORDS.grade(problem, "\n \n")
    grade = WORDS.grade(problem, "The answer is 12.5.\nI don't know {}")
    assert (grade.correct, grade.answer, grade.right) == (False, None, (False, False))


def test_true_steps_that_the_answer_does_not_need_are_right() -> None:
    problem = WORDS.problem("test", 0)
    count = len(problem.steps)
    extras = (Step("Zoe has 1 + 2 = 3 hats."), Step("Zoe has 3 + 4 = 7 hats.", (count,)))
    problem = replace(problem, extras=extras)
    grade = WORDS.grade(problem, f"{extras[0].text}\n{extras[1].text}\n{problem.solution}")
    assert grade.correct
    assert all(grade.right)
    assert WORDS.grade(problem, f"{extras[1].text}\n{extras[0].text}").right == (False, True)


def test_corruptions_are_graded_wrong_from_the_broken_step_on() -> None:
    rng = seeded("test corruptions")
    wrong_at = set()
    for problem in made("train", 1000):
        text = corrupt(problem, rng)
        gold = problem.solution.split("\n")
        right = WORDS.grade(problem, text).right
        same = next(i for i, (a, b) in enumerate(zip(text.split("\n"), gold, strict=False)) if a != b)
        assert all(right[:same])
        assert False in right
        wrong_at.add(right.index(False))
    assert wrong_at >= {0, 1, 2, 3, 4}


def test_documents_teach_solutions_and_judge_steps_by_contrast() -> None:
    documents = list(itertools.islice(WORDS.documents(random.Random(1)), 2000))
    judged = [document for document in documents if document.probes]
    assert 0.2 < len(judged) / len(documents) < 0.85
    for document in documents:
        text = document.messages[-1].content
        assert document.messages[-1].loss or document.probes
        for probe in document.probes:
            assert probe.question == STEP_QUESTION
            assert probe.instead or probe.at == len(text) or text[probe.at] == "\n"
        if document.messages[-1].loss and document.probes:
            assert sum(probe.yes for probe in document.probes) == len(document.probes) / 2
            assert all(bool(probe.instead) == (probe.yes == 0) for probe in document.probes)
            assert all("\n" not in probe.instead for probe in document.probes)


def test_wrong_steps_are_wrong_where_they_stand() -> None:
    rng = seeded("test wrong steps")
    kept = total = 0
    for problem in made("train", 500):
        lines = problem.solution.split("\n")
        wrong = wrong_steps(problem, rng)
        assert len(wrong) == len(lines)
        for index, line in enumerate(wrong):
            right = WORDS.grade(problem, "\n".join([*lines[:index], line])).right
            assert all(right[:-1])
            total += 1
            kept += not right[-1]
    assert kept / total > 0.9


def test_the_registry_is_open_and_names_are_unique() -> None:
    assert "words" in skills()
    with pytest.raises(ValueError, match="words"):
        register(Words)
    with pytest.raises(KeyError, match=r"no skill named 'nothing'; there are: .*words"):
        skill("nothing")
    easy = Words(
        name="easy words",
        steps={"train": {2: 1}, "dev": {2: 1}, "test": {2: 1}, "hard": {3: 1}},
        distractors=0,
    )
    assert {len(easy.problem("test", index).steps) for index in range(50)} == {2}
