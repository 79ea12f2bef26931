"""Measure a checkpoint on problems it has never seen: accuracy, votes, best-of-n by its judges, calibration.

python training/evaluate.py training/out/final/last.pt --split test --problems 300 --samples 16
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from data import Encoder
from rounds import restart_targets, step_ends
from sampler import sample, yes_probabilities
from train import load_model

from stratagem.bench.gym import Document, Grade, Message, Probe, skill
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


def auc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Area under the ROC curve by ranks; ties count half."""
    order = sorted(range(len(scores)), key=scores.__getitem__)
    ranks = [0.0] * len(scores)
    start = 0
    while start < len(order):
        stop = start
        while stop < len(order) and scores[order[stop]] == scores[order[start]]:
            stop += 1
        for place in order[start:stop]:
            ranks[place] = (start + stop + 1) / 2
        start = stop
    good = sum(labels)
    bad = len(labels) - good
    if not good or not bad:
        return math.nan
    return (sum(rank for rank, label in zip(ranks, labels, strict=True) if label) - good * (good + 1) / 2) / (
        good * bad
    )


def ece(scores: Sequence[float], targets: Sequence[float], bins: int = 10) -> float:
    """Expected calibration error over bins of equal width."""
    groups: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for score, target in zip(scores, targets, strict=True):
        groups[min(bins - 1, int(score * bins))].append((score, target))
    return sum(abs(sum(s - t for s, t in group)) for group in groups.values()) / len(scores)


def interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    rng = random.Random(0)
    means = sorted(statistics.fmean(rng.choices(values, k=len(values))) for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws)]


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
        "majority gain": interval([m - f for m, f in zip(majority, first, strict=True)]),
        "right answer by wrong steps": statistics.fmean(
            r and not e for r, e in zip(right, ends, strict=True)
        ),
    }
    for name, scorer in SCORERS.items():
        values = [scorer(score[:-1], 1 - score[-1]) for score in scores]
        best, vote, within = [], [], []
        for index, (problem, marks) in enumerate(zip(problems, grades, strict=True)):
            window = slice(index * n, index * n + n)
            scored, good = values[window], right[window]
            best.append(float(good[max(range(n), key=scored.__getitem__)]))
            vote.append(_majority(marks, problem.answer, scored))
            within.append(auc(scored, good))
        within = [value for value in within if not math.isnan(value)]
        report[f"best-of-{n} by {name}"] = {
            "accuracy": statistics.fmean(best),
            "gain": interval([b - f for b, f in zip(best, first, strict=True)]),
            "weighted vote": statistics.fmean(vote),
            "auc": auc(values, right),
            "auc within a problem": statistics.fmean(within) if within else math.nan,
        }
    step_scores = [value for score in scores for value in score[:-1]]
    step_labels = [label for marks in grades for grade in marks for label in grade.right]
    report["step judge"] = {
        "auc": auc(step_scores, step_labels),
        "ece": ece(step_scores, list(map(float, step_labels))),
    }
    restart = [1 - score[-1] for score in scores]
    tie = [1 - better for marks in grades for better in restart_targets([grade.correct for grade in marks])]
    report["restart judge"] = {"auc": auc(restart, right), "ece": ece(restart, tie)}
    families: dict[object, list[float]] = defaultdict(list)
    for problem, value in zip(problems, first, strict=True):
        families[problem.meta["family"]].append(value)
        families[problem.meta["steps"]].append(value)
    report["by family and steps"] = {
        str(key): round(statistics.fmean(values), 3) for key, values in families.items()
    }
    return report


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
