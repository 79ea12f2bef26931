"""The code in the README, the documentation and the examples runs as it is written; nothing public is missing."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import stratagem as sg
from stratagem.bench.gym import skills
from stratagem.testing.server import SimSettings, SimulatedServer

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = ROOT / "docs" / "reference.md"
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

                for test in [names.pop(name) for name in list(names) if name.startswith("test_")]:
                    await asyncio.to_thread(test)  # as a test runner calls it: where no event loop runs

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


def modules() -> dict[str, ModuleType]:
    """All modules of the package that anybody may import."""
    found = [m.name for m in pkgutil.walk_packages(sg.__path__, "stratagem.")]
    return {n: importlib.import_module(n) for n in found if not any(p.startswith("_") for p in n.split("."))}


def own(module: ModuleType) -> dict[str, Any]:
    """What the module itself defines for others: classes and functions."""
    return {
        name: thing
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(thing) or inspect.isfunction(thing))
        and thing.__module__ == module.__name__
    }


def undocumented(name: str, thing: Any) -> Iterator[str]:
    """The class or function if it has no docstring of its own, and what of a class has none at all."""
    doc = thing.__doc__ or ""
    if not doc.strip() or doc.startswith(f"{thing.__name__}("):  # what a dataclass writes itself
        yield name
    for member, value in vars(thing).items() if inspect.isclass(thing) else ():
        plain = isinstance(value, (property, classmethod, staticmethod)) or inspect.isfunction(value)
        if plain and not member.startswith("_") and not inspect.getdoc(getattr(thing, member)):
            yield f"{name}.{member}"


def test_everything_public_has_a_docstring() -> None:
    found = [(module, name, thing) for module in modules().values() for name, thing in own(module).items()]
    assert len(found) > 150
    assert [
        bare for module, name, thing in found for bare in undocumented(f"{module.__name__}.{name}", thing)
    ] == []


def test_every_name_of_the_facade_is_explained() -> None:
    """In the README or a page that explains, in code that runs or in a sentence."""
    pages = ("README.md", "docs/guide.md", "docs/tools.md")
    told = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in pages)
    code = "\n".join(source for page in PAGES for _, source in blocks(page))
    prose = re.sub(r"^```.*?^```", "", told, flags=re.DOTALL | re.MULTILINE)
    sentences = [paragraph for paragraph in prose.split("\n\n") if len(paragraph.split()) >= 5]
    for name in set(sg.__all__) - {"__version__"}:
        used = rf"\bsg\.{name}\b"
        assert re.search(used, code) or any(re.search(rf"`[^`]*{used}[^`]*`", s) for s in sentences), name


# Parts of other modules, or of the package that names what is public of them.
INTERNAL = re.compile(
    r"stratagem\.("
    r"cli|backends\.embedded\.(?!backend$)\w+|bench\.store|bench\.gym\.\w+|bench\.gym\.(words|toolworld)\.\w+|graphs\.\w+|tools\.sandbox\.(monty|process|python_tool)"
    r"|core\.(address|agreement|choosing|concurrency|files|postgres|prompts|seeds|sqlite|text))"
)


def sections(page: Path) -> dict[str, dict[str, str]]:
    """What a page lists under each heading: names with their sentences."""
    parts = re.split(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    entry = re.compile(r"^- `(\w+)`: (.+)$", re.MULTILINE)
    return {heading: dict(entry.findall(text)) for heading, text in zip(parts[::2], parts[1::2], strict=True)}


def test_the_reference_lists_what_is_public_and_nothing_else() -> None:
    listed = {name: names for name, names in sections(REFERENCE).items() if name.startswith("stratagem.")}
    for name, module in modules().items():
        public = {n: getattr(module, n) for n in getattr(module, "__all__", own(module))}
        told = listed.pop(name, {})
        assert told.keys() <= public.keys(), f"{name} has no such thing"
        if INTERNAL.fullmatch(name):
            assert not told, f"{name} is internal"
            continue
        of_the_facade = {n for n, thing in public.items() if n in sg.__all__ and getattr(sg, n) is thing}
        assert public.keys() - told.keys() <= of_the_facade, f"docs/reference.md says nothing of {name}"
        for entry, sentence in told.items():
            assert len(sentence.split()) >= 3, f"{name}.{entry}"
            assert sentence.endswith("."), f"{name}.{entry}"
    assert listed == {}, "no such modules"


def test_every_kind_is_explained() -> None:
    text = REFERENCE.read_text(encoding="utf-8").partition("## Kinds")[2].partition("\n## ")[0]
    shipped = {
        kind
        for family in (sg.Strategy, sg.Verifier)
        for kind, member in family.kinds().items()
        if member.__module__.startswith("stratagem.")
    }
    backends = {p.name for p in entry_points(group="stratagem.backends") if p.value.startswith("stratagem.")}
    for kind in shipped | backends | set(skills()):
        assert re.search(rf"^- `{kind}`: \w+", text, re.MULTILINE), kind


def test_every_law_is_explained() -> None:
    table = re.findall(
        r"^\| (`.+`) \| (.+) \|$", (ROOT / "docs" / "guide.md").read_text("utf-8"), re.MULTILINE
    )
    told = [law for cell, _ in table for law in re.findall(r"`([^`]+)`", cell)]
    assert sorted(told) == sorted(laws_in_the_code())


def laws_in_the_code() -> set[str]:
    """The names that broken laws are told by: what is passed as ``law``, or assigned to that name."""
    folder = ROOT / "src" / "stratagem" / "testing" / "laws"
    nodes = [node for path in folder.glob("*.py") for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    position: dict[str, int] = {}
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [argument.arg for argument in node.args.args if argument.arg != "self"]
            if "law" in names:
                position[node.name] = names.index("law")
    found: set[str] = set()
    for node in nodes:
        value: ast.AST | None = None
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["law"]:
            value = node.value
        elif isinstance(node, ast.Call):
            at = position.get(ast.unparse(node.func).rpartition(".")[2])
            value = None if at is None or at >= len(node.args) else node.args[at]
        if isinstance(value, ast.Constant):
            found.add(str(value.value))
    assert len(found) > 30
    return found


def test_the_results_are_of_the_model_that_is_shipped() -> None:
    results = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    shipped = asyncio.run(sg.connect().capabilities()).version
    assert re.findall(r"digest (\w+)", results)[0] == shipped
