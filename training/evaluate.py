"""Measure a checkpoint on problems it has never seen: accuracy, votes, best-of-n by its judges, calibration.

python training/evaluate.py training/out/final/last.pt --split test --problems 300 --samples 16
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from data import Encoder
from rounds import restart_targets, step_ends
from sampler import log_probabilities, sample, yes_probabilities
from train import load_model

from stratagem.bench.gym import Document, Grade, Message, Probe, Problem, skill
from stratagem.bench.statistics import area_under_curve, expected_calibration_error, paired_difference
from stratagem.core.prompts import ANSWER_ONLY, RESTART_QUESTION, STEP_BY_STEP, STEP_QUESTION

Scorer = Callable[[Sequence[float], float], float]
SCORERS: dict[str, Scorer] = {
    "min": lambda steps, restart: min(steps, default=0.0),
    "product": lambda steps, restart: math.prod(steps) if steps else 0.0,
    "mean": lambda steps, restart: statistics.fmean(steps) if steps else 0.0,
    "last": lambda steps, restart: steps[-1] if steps else 0.0,
    "restart": lambda steps, restart: restart,
    "product*restart": lambda steps, restart: (math.prod(steps) if steps else 0.0) * restart,
    "min*restart": lambda steps, restart: min(steps, default=0.0) * restart,
}


def main(arguments: argparse.Namespace) -> dict[str, object]:
    model, encoder = load_model(arguments.checkpoint), Encoder(arguments.tokenizer)
    task = skill(arguments.skill)
    problems = [
        task.problem(arguments.split, index)
        for index in range(arguments.first, arguments.first + arguments.problems)
    ]
    n = arguments.samples
    questions = [f"{problem.question}\n{STEP_BY_STEP}" for problem in problems]
    texts = sample(model, encoder, questions, n, arguments.temperature, 7, arguments.rows)
    grades = [[task.grade(p, text) for text in group] for p, group in zip(problems, texts, strict=True)]
    greedy = sample(model, encoder, questions, 1, 1e-4, 7, arguments.rows)
    direct = sample(
        model, encoder, [f"{p.question}\n{ANSWER_ONLY}" for p in problems], 1, 1e-4, 7, arguments.rows
    )
    sure = iter(log_probabilities(model, encoder, questions, texts))
    likelihood = [math.exp(next(sure)) for group in texts for _ in group]
    documents = [
        _probed(problem.question, text, grade)
        for problem, group, marks in zip(problems, texts, grades, strict=True)
        for text, grade in zip(group, marks, strict=True)
    ]
    scores = yes_probabilities(model, encoder, documents)
    right = [grade.correct for marks in grades for grade in marks]
    first = [statistics.fmean(grade.correct for grade in marks) for marks in grades]
    majority = [_majority(marks, problem.answer) for problem, marks in zip(problems, grades, strict=True)]
    ends = [all(grade.right) for marks in grades for grade in marks]
    report: dict[str, object] = {
        "split": arguments.split,
        "problems": len(problems),
        "temperature": arguments.temperature,
        "samples": n,
        "pass@1": statistics.fmean(first),
        "greedy": statistics.fmean(
            task.grade(p, t[0]).correct for p, t in zip(problems, greedy, strict=True)
        ),
        "direct": statistics.fmean(
            task.grade(p, t[0]).correct for p, t in zip(problems, direct, strict=True)
        ),
        f"pass@{n}": statistics.fmean(any(grade.correct for grade in marks) for marks in grades),
        f"majority@{n}": statistics.fmean(majority),
        "majority gain": _gain(majority, first),
        "right answer by wrong steps": statistics.fmean(
            r and not e for r, e in zip(right, ends, strict=True)
        ),
    }
    ranked = {
        name: [scorer(score[:-1], 1 - score[-1]) for score in scores] for name, scorer in SCORERS.items()
    }
    for name, values in {**ranked, "likelihood": likelihood}.items():
        best, vote, within = [], [], []
        for index, (problem, marks) in enumerate(zip(problems, grades, strict=True)):
            window = slice(index * n, index * n + n)
            scored, good = values[window], right[window]
            best.append(float(good[max(range(n), key=scored.__getitem__)]))
            vote.append(_majority(marks, problem.answer, scored))
            within.append(area_under_curve(scored, good))
        within = [value for value in within if not math.isnan(value)]
        report[f"best-of-{n} by {name}"] = {
            "accuracy": statistics.fmean(best),
            "gain": _gain(best, first),
            "weighted vote": statistics.fmean(vote),
            "auc": area_under_curve(values, right),
            "auc within a problem": statistics.fmean(within) if within else math.nan,
        }
    step_scores = [value for score in scores for value in score[:-1]]
    step_labels = [label for marks in grades for grade in marks for label in grade.right]
    report["step judge"] = {
        "auc": area_under_curve(step_scores, step_labels),
        "ece": expected_calibration_error(step_scores, list(map(float, step_labels))),
        "right before wrong": _same_prefix(grades, scores),
    }
    restart = [1 - score[-1] for score in scores]
    tie = [1 - better for marks in grades for better in restart_targets([grade.correct for grade in marks])]
    report["restart judge"] = {
        "auc": area_under_curve(restart, right),
        "ece": expected_calibration_error(restart, tie),
    }
    solved = [float(any(grade.correct for grade in marks)) for marks in grades]
    report["by family and steps"] = _grouped(problems, first)
    report[f"pass@{n} by family and steps"] = _grouped(problems, solved)
    return report


def _grouped(problems: Sequence[Problem], values: Sequence[float]) -> dict[str, float]:
    """Means by what a problem is about and by how many steps it has."""
    groups: dict[str, list[float]] = defaultdict(list)
    for problem, value in zip(problems, values, strict=True):
        groups[str(problem.meta["family"])].append(value)
        groups[str(problem.meta["steps"])].append(value)
    return {key: round(statistics.fmean(found), 3) for key, found in groups.items()}


def _gain(values: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean difference over problems."""
    found = paired_difference(values, base)
    return found.low, found.high


def _same_prefix(grades: Sequence[Sequence[Grade]], scores: Sequence[Sequence[float]]) -> float:
    """How often a right step is scored above a wrong one after the same lines; ties count half.

    Only the first wrong line of a solution counts: what follows it cannot be right.
    """
    wins: list[float] = []
    number = 0
    for marks in grades:
        after: dict[tuple[str, ...], dict[str, tuple[float, bool]]] = defaultdict(dict)
        for grade in marks:
            score = scores[number]
            number += 1
            for place, (line, right) in enumerate(zip(grade.lines, grade.right, strict=True)):
                after[grade.lines[:place]][line] = (score[place], right)
                if not right:
                    break
        for steps in after.values():
            good = [value for value, right in steps.values() if right]
            bad = [value for value, right in steps.values() if not right]
            wins += [(a > b) + 0.5 * (a == b) for a in good for b in bad]
    return statistics.fmean(wins) if wins else math.nan


def _probed(question: str, text: str, grade: Grade) -> Document:
    ends = step_ends(text, grade.lines)
    probes = [*(Probe(end, STEP_QUESTION, 1.0) for end in ends), Probe(len(text), RESTART_QUESTION, 0.0)]
    return Document((Message("user", question), Message("assistant", text)), tuple(probes))


def _majority(marks: Sequence[Grade], answer: str, weights: Sequence[float] | None = None) -> float:
    """Whether the answer with most votes (or weight) is right: the expected value, ties broken at random."""
    votes: dict[str, float] = defaultdict(float)
    for grade, weight in zip(marks, weights or [1.0] * len(marks), strict=True):
        if grade.answer is not None:
            votes[grade.answer] += weight
    if not votes:
        return 0.0
    top = [value for value, weight in votes.items() if weight == max(votes.values())]
    return (answer in top) / len(top)


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("checkpoint", type=Path)
    p.add_argument("--skill", default="words")
    p.add_argument("--split", default="test", choices=("train", "dev", "test", "hard"))
    p.add_argument("--first", type=int, default=0)
    p.add_argument("--problems", type=int, default=300)
    p.add_argument("--samples", type=int, default=16)
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--rows", type=int, default=256)
    p.add_argument("--tokenizer", type=Path, default=here.parent / "backends/embedded/mini/tokenizer.json")
    sys.stdout.write(json.dumps(main(p.parse_args()), indent=1) + "\n")
