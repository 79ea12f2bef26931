"""One line of what ``stratagem doctor`` reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "missing", "advice", "broken"]


@dataclass(frozen=True, slots=True)
class Check:
    """A thing that was looked at. ``advice``: it could work better; only ``broken`` makes the exit code 1."""

    section: str
    name: str
    status: Status
    detail: str
    remedy: str = ""
