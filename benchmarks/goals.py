"""What all benchmarks do alike: their arguments, and the verdicts from which the exit code follows."""

from __future__ import annotations

import argparse


def parser(description: str | None) -> argparse.ArgumentParser:
    """For a benchmark's own arguments beside the one that they share."""
    shared = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared.add_argument("--informative", action="store_true", help="say what is missed, but exit with 0")
    return shared


class Goals:
    """The goals of one run of a benchmark.

    Args:
        informative: none of them decides the exit code.
    """

    def __init__(self, *, informative: bool = False) -> None:
        self._informative = informative
        self._missed = 0

    def at_most(self, value: float, goal: float) -> str:
        """The verdict on a figure that is to be at most ``goal`` (NaN is not), to be printed beside it."""
        return self.check(value <= goal, f"at most {goal:g}")

    def at_least(self, value: float, goal: float) -> str:
        """As :meth:`at_most`, for a figure that is to be at least ``goal``."""
        return self.check(value >= goal, f"at least {goal:g}")

    def check(self, reached: bool, what: str) -> str:
        """The verdict on a goal said in words."""
        self._missed += not reached
        verdict = f"{'reached' if reached else 'NOT reached'}: {what}"
        return f"{verdict} (informative)" if self._informative else verdict

    @property
    def code(self) -> int:
        """What the process is to exit with: 1 if a goal was missed that is more than informative."""
        return int(self._missed > 0 and not self._informative)
