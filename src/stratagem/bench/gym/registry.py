"""The open registry of skills: the decorator `register`, or an entry point of the group `stratagem.skills`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import TypeVar

from stratagem.bench.gym.base import Skill

GROUP = "stratagem.skills"
_SHIPPED = ("stratagem.bench.gym.words", "stratagem.bench.gym.toolworld")
_skills: dict[str, Skill] = {}

Make = TypeVar("Make", bound=Callable[[], Skill])


def register(make: Make) -> Make:
    """Class decorator: make a skill with its defaults and add it under its name.

    Raises ValueError if another skill has that name.
    """
    skill = make()
    if skill.name in _skills:
        raise ValueError(f"a skill named {skill.name!r} exists already")
    _skills[skill.name] = skill
    return make


def skills() -> dict[str, Skill]:
    """All skills by name: those shipped, those registered, and those of installed entry points."""
    for module in _SHIPPED:
        import_module(module)
    for entry in entry_points(group=GROUP):
        if entry.name not in _skills:
            register(entry.load())
    return dict(sorted(_skills.items()))


def skill(name: str) -> Skill:
    """The skill of that name. Raises KeyError naming the skills there are."""
    known = skills()
    if name not in known:
        raise KeyError(f"no skill named {name!r}; there are: {', '.join(known)}")
    return known[name]
