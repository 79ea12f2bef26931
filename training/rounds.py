"""A round of on-policy data: the model's own solutions, each step judged by the gym, with restart labels.

    python training/rounds.py training/out/base/last.pt --problems 4000 --out training/out/round1.jsonl

The restart target of a solution y is P(no) = P(r(y) >= r(y')) for a fresh sample y', r being 1 for a right
answer: 1 if y is right, else the share of the problem's other samples that are wrong too (Manvi et al., 2024,
arXiv 2410.02725). Partial solutions have the target of the solution that they became.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from data import Encoder, shared
from sampler import sample
from train import load_model

from stratagem.bench.gym import (
    Document,
    Grade,
    Mark,
    Message,
    Probe,
    Problem,
    Skill,
    Split,
    answer_line,
    seeded,
    skills,
)
from stratagem.core.prompts import RESTART_QUESTION, STEP_BY_STEP, STEP_QUESTION


def asked(problem: Problem, rng: random.Random) -> str:
    """The question, with or without the suffix that asks for steps."""
    return problem.question if rng.random() < 0.5 else f"{problem.question}\n{STEP_BY_STEP}"


def step_ends(text: str, lines: Iterable[str]) -> list[int]:
    """Where each line ends in the text, in characters."""
    ends, start = [], 0
    for line in lines:
        start = text.index(line, start) + len(line)
        ends.append(start)
    return ends


def restart_targets(rewards: Sequence[bool]) -> list[float]:
    """P(yes, a restart would do better) for each sample of one problem, from its other samples."""
    others = max(1, len(rewards) - 1)
    return [0.0 if right else (sum(rewards) - right) / others for right in rewards]


def document(
    skill: Skill, problem: Problem, question: str, text: str, grade: Grade, better: float, rng: random.Random
) -> Document:
    """The solution with a step judge after each line up to the first wrong one, restart probes and marks.

    Restart is asked at the end of each line and of the text, and at one place within a line.
    """
    ends = step_ends(text, grade.lines)
    probes: list[Probe] = []
    marks: list[Mark] = []
    start = 0
    for index, (end, right) in enumerate(zip(ends, grade.right, strict=True)):
        probes.append(Probe(end, STEP_QUESTION, float(right)))
        if not right:
            line = grade.lines[index]
            start = end - len(line)
            same = max(
                (shared(line, other) for other in _instead(skill, problem, grade.lines[:index])), default=0
            )
            marks += [Mark(start, start + same, True), Mark(start + same, end, False)]
            break
        marks.append(Mark(start, end, True))
        start = end
    cuts = {len(text), *ends, rng.randrange(len(text)) if text else 0}
    probes += [Probe(cut, RESTART_QUESTION, better) for cut in sorted(cuts)]
    return Document((Message("user", question), Message("assistant", text)), tuple(probes), tuple(marks))


def _instead(skill: Skill, problem: Problem, before: Sequence[str]) -> list[str]:
    """The lines that would be right after these."""
    lines = [*(step.text for step in (*problem.steps, *problem.extras)), answer_line(problem.answer)]
    return [line for line in lines if skill.grade(problem, "\n".join([*before, line])).right[-1]]


def contrast(problem: Problem, question: str, grades: Sequence[Grade], rng: random.Random) -> Document | None:
    """The true solution with, at each line, the right step and a wrong one that the model wrote in its place.

    None if the model made no mistake after any part of the true solution. Where it made none, the line has no
    probe: as many "yes" as "no" at every place.
    """
    truth = problem.solution.split("\n")
    wrong: list[list[str]] = [[] for _ in truth]
    for grade in grades:
        place = grade.right.index(False) if False in grade.right else len(grade.right)
        if place < min(len(truth), len(grade.lines)) and list(grade.lines[:place]) == truth[:place]:
            wrong[place].append(grade.lines[place])
    probes: list[Probe] = []
    start = 0
    for line, choices in zip(truth, wrong, strict=True):
        end = start + len(line)
        if choices:
            probes += [
                Probe(end, STEP_QUESTION, 1.0),
                Probe(start, STEP_QUESTION, 0.0, rng.choice(choices)),
            ]
        start = end + 1
    if not probes:
        return None
    return Document(
        (Message("user", question), Message("assistant", problem.solution, loss=True)), tuple(probes)
    )


def write_documents(path: Path, documents: Iterable[Document]) -> None:
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        for one in documents:
            file.write(json.dumps(asdict(one), ensure_ascii=False) + "\n")
    part.replace(path)


def read_documents(paths: Iterable[Path]) -> list[Document]:
    """The documents of files that this module wrote."""
    found: list[Document] = []
    for path in paths:
        with path.open(encoding="utf-8") as file:
            for line in file:
                raw = json.loads(line)
                messages = tuple(Message(**message) for message in raw["messages"])
                probes = tuple(Probe(**probe) for probe in raw["probes"])
                found.append(Document(messages, probes, tuple(Mark(**mark) for mark in raw["marks"])))
    return found


def main(arguments: argparse.Namespace) -> None:
    model, encoder = load_model(arguments.checkpoint), Encoder(arguments.tokenizer)
    rng = seeded("rounds", arguments.first)
    documents: list[Document] = []
    rights = total = 0
    began = time.monotonic()
    split: Split = "train"
    for name in arguments.skills:
        skill = skills()[name]
        for start in range(arguments.first, arguments.first + arguments.problems, 256):
            count = min(256, arguments.first + arguments.problems - start)
            problems = [skill.problem(split, index) for index in range(start, start + count)]
            questions = [asked(problem, rng) for problem in problems]
            texts = sample(
                model, encoder, questions, arguments.samples, arguments.temperature, start, arguments.rows
            )
            for problem, group in zip(problems, texts, strict=True):
                grades = [skill.grade(problem, text) for text in group]
                better = restart_targets([grade.correct for grade in grades])
                rights += sum(grade.correct for grade in grades)
                total += len(grades)
                made = [
                    document(skill, problem, asked(problem, rng), text, grade, target, rng)
                    for text, grade, target in zip(group, grades, better, strict=True)
                    if text.strip()
                ]
                documents += rng.sample(made, min(len(made), arguments.kept))
                found = contrast(problem, asked(problem, rng), grades, rng)
                documents += [found] if found else []
            sys.stdout.write(
                f"{total} samples, right {rights / total:.3f}, {time.monotonic() - began:.0f} s\n"
            )
            sys.stdout.flush()
    rng.shuffle(documents)
    write_documents(arguments.out, documents)


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("checkpoint", type=Path)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument(
        "--skills",
        nargs="+",
        default=["words"],
        help="those whose problems are asked and answered in one turn",
    )
    p.add_argument("--problems", type=int, default=4000, help="problems of each skill")
    p.add_argument(
        "--first", type=int, default=0, help="index of the first problem; rounds should not overlap"
    )
    p.add_argument("--samples", type=int, default=8, help="solutions of each problem")
    p.add_argument("--kept", type=int, default=1, help="solutions of each problem kept as they are")
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--rows", type=int, default=256, help="sequences sampled at a time")
    p.add_argument("--tokenizer", type=Path, default=here.parent / "backends/embedded/mini/tokenizer.json")
    main(p.parse_args())
