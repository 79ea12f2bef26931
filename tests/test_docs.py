"""The code in the README, the documentation and the examples runs as it is written."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stratagem.testing.server import SimSettings, SimulatedServer

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SERVER = "http://localhost:8000/v1"  # the address that the pages use, where the test puts its own


def blocks(page: Path) -> list[tuple[int, str]]:
    """Line number and code of each Python block."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(text[: m.start(1)].count("\n"), m[1]) for m in found]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_code_on_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def main() -> None:
        async with SimulatedServer(SimSettings(model="my-model")) as server:
            names: dict[str, Any] = {"__name__": "page"}
            for line, source in blocks(page):
                code = compile(
                    "\n" * line + source.replace(SERVER, server.url),
                    str(page),
                    "exec",
                    flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
                )
                result = eval(code, names)  # noqa: S307 - our own pages
                if inspect.isawaitable(result):
                    await result

    asyncio.run(main())


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_example_runs(example: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_public_name_is_documented() -> None:
    import stratagem as sg

    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [name for name in sg.__all__ if name != "__version__" and not re.search(rf"\b{name}\b", pages)]
    assert not missing
