"""From a profile's name to what is run: profile, hardware and installed vLLM, looked up and checked together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stratagem.backends.vllm._checks import checked, notes
from stratagem.backends.vllm.hardware import Hardware, Installed
from stratagem.backends.vllm.profiles import Profile, Workload, known, profile


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is going to be served."""

    profile: Profile
    flags: tuple[str, ...]  # those that no profile knows
    hardware: Hardware
    installed: Installed | None

    @property
    def arguments(self) -> list[str]:
        """All flags, without the model."""
        return [*self.profile.arguments(), *self.flags]

    @property
    def notes(self) -> list[str]:
        """What is worth saying before it is started."""
        return list(notes(self.profile, self.installed))

    def command(self, model: str, flags: Sequence[str] = ()) -> str:
        """The line that does the same by hand; with further flags at its end."""
        # That of the build for CPUs has no command of its own.
        named = self.installed.command if self.installed is not None else self.hardware.device != "cpu"
        return self.profile.command(model, [*self.flags, *flags], module=not named)


def plan(
    chosen: str | Profile,
    flags: Sequence[str] = (),
    *,
    workload: Workload | None = None,
    python: str | Path | None = None,
    run: bool = True,
) -> Plan:
    """What a profile means on this machine; starts nothing but short look-ups.

    Args:
        chosen: a profile, or the name of one.
        flags: flags of `vllm serve` that go before the profile's own.
        workload: what the server is going to be asked.
        python: the interpreter of an environment that has vLLM; default: this one.
        run: whether it is going to be run here; to print it only, vLLM need not be installed.

    Raises:
        MissingExtraError: vLLM is not installed.
        ConfigurationError: no such profile, or this vLLM or this machine cannot do what it says.
    """
    if isinstance(chosen, str):
        known(chosen)  # a mistyped name is told before anything is looked up
    installed = Installed.needed(python) if run else Installed.find(python)
    hardware = Hardware.detect(installed.device if installed is not None else None)
    made = profile(chosen, hardware, workload) if isinstance(chosen, str) else chosen
    made, rest = made.overridden(flags)
    checked(made, hardware, installed)
    return Plan(made, tuple(rest), hardware, installed)
