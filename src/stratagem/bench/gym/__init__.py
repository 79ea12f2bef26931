"""The gym: skills whose problems are generated and checked by program, to train and to measure on."""

from stratagem.bench.gym.base import (
    SPLITS,
    Document,
    Grade,
    Mark,
    Message,
    Probe,
    Problem,
    Skill,
    Split,
    Step,
    answer_line,
    seeded,
)
from stratagem.bench.gym.registry import register, skill, skills

__all__ = [
    "SPLITS",
    "Document",
    "Grade",
    "Mark",
    "Message",
    "Probe",
    "Problem",
    "Skill",
    "Split",
    "Step",
    "answer_line",
    "register",
    "seeded",
    "skill",
    "skills",
]
