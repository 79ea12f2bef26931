"""``stratagem doctor``: is everything there, and what can the model's side do?"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import time
from collections import defaultdict
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, requires, version

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

import stratagem as sg
from stratagem._cli.checks import Check
from stratagem._cli.console import ACCENT, BAD, DIM, GOOD, STRONG, WARN, count, show, write_line
from stratagem._cli.doctor_vllm import served
from stratagem.backends.openai import OpenAIBackend
from stratagem.core.backend import Capabilities, ScoreRequest
from stratagem.core.errors import BackendError

_MARKS = {"ok": ("✓", GOOD), "missing": ("-", DIM), "advice": ("!", WARN), "broken": ("✗", BAD)}
_LIBRARIES = ("pydantic", "numpy", "tokenizers", "llguidance", "openai", "langgraph", "sympy")
_QUESTION = "Ana has 3 apples. Ben has 4 more apples than Ana. How many apples has Ben?"
_LABEL = "A"  # a single token
# Scoring and decoding run the same numbers through differently shaped products: float32 rounding, no more.
_TOLERANCE = 1e-3


async def doctor(llm: sg.Backend, *, embedded: bool, as_json: bool) -> int:
    """Print the report; gives the exit code."""
    checks = [*_installation(), *_extras(), *await _model(llm, embedded=embedded)]
    if as_json:
        write_line(json.dumps([asdict(check) for check in checks], ensure_ascii=False, indent=2))
    else:
        show(*_rendered(checks))
    return 1 if any(check.status == "broken" for check in checks) else 0


def _installation() -> list[Check]:
    here = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    cores = f"{os.cpu_count()} cores"
    checks = [Check("Installation", "stratagem", "ok", f"{sg.__version__} on {here}, {cores}")]
    libraries = {name: _version(name) for name in _LIBRARIES}
    found = ", ".join(f"{name} {number}" for name, number in libraries.items() if number)
    checks.append(Check("Installation", "libraries", "ok", found))
    missing = [name for name, number in libraries.items() if number is None]
    if missing:
        checks.append(
            Check(
                "Installation",
                "missing",
                "broken",
                ", ".join(missing),
                "Run: pip install --upgrade stratagem",
            )
        )
    return checks


def _extras() -> list[Check]:
    """One check per extra of the installed distribution, as its metadata declares them."""
    extras: dict[str, list[str]] = defaultdict(list)
    for line in requires("stratagem") or ():
        found = re.match(r"""([\w.-]+).*\bextra\s*==\s*['"]([\w.-]+)['"]""", line)
        if found:
            extras[found[2]].append(found[1])
    checks = []
    for extra, libraries in sorted(extras.items()):
        missing = [name for name in libraries if _version(name) is None]
        checks.append(
            Check(
                "Optional",
                extra,
                "missing" if missing else "ok",
                f"{', '.join(missing)} not installed" if missing else ", ".join(libraries),
                f"pip install 'stratagem[{extra}]'" if missing else "",
            )
        )
    return checks


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


async def _model(llm: sg.Backend, *, embedded: bool) -> list[Check]:
    section = "Model"
    checks: list[Check] = []
    try:
        can = await llm.capabilities()
        checks += _capabilities(section, can)
        checks += [await _scoring(section, llm, can), await _one_token(section, llm)]
        if embedded:
            checks += await _engine(llm)
        elif isinstance(llm, OpenAIBackend):
            checks += await served(llm, can)
    except sg.StratagemError as error:
        return [*checks, Check(section, "answers", "broken", error.message, error.remedy)]
    return checks


def _capabilities(section: str, can: Capabilities) -> list[Check]:
    def able(name: str, yes: bool, detail: str, otherwise: str) -> Check:
        return Check(section, name, "ok" if yes else "missing", detail if yes else otherwise)

    context = "unknown" if can.context is None else f"{can.context:,} tokens"
    logprobs = "chosen token only" if can.logprobs == 0 else f"top {can.logprobs}"
    return [
        Check(section, "name", "ok", ", ".join(filter(None, (can.model, can.version, f"context {context}")))),
        able("several samples", can.n, "in one request", "one request each"),
        able("seeds", can.seed, "the same seed gives the same text", "not repeatable"),
        able("log-probabilities", can.logprobs >= 0, logprobs, "none: no judge by probability"),
        able(
            "constraints",
            bool(can.constraints),
            ", ".join(sorted(can.constraints)),
            "none: answers are parsed instead",
        ),
        able("continues a text", can.continue_final, "of its own last message", "no"),
        able("token counts", can.exact_count, "exact", "an upper bound"),
        able("aborts", can.exact_abort, "counted to the token", "counted as an upper bound"),
    ]


async def _scoring(section: str, llm: sg.Backend, can: Capabilities) -> Check:
    """Scores a label: what a server says that it can do, it may fail to."""
    if not can.prompt_logprobs:
        return Check(section, "scoring", "missing", "no: judges read one token")
    try:
        await llm.score(ScoreRequest((sg.Message("user", _QUESTION),), (_LABEL,)))
    except BackendError as error:
        return Check(section, "scoring", "broken", f"fails: {error.message}", error.remedy)
    return Check(section, "scoring", "ok", "of given continuations")


async def _one_token(section: str, llm: sg.Backend) -> Check:
    request = sg.Request((sg.Message("user", _QUESTION),), max_tokens=1, temperature=0.0, seed=0)
    began = time.monotonic()
    generation = await llm.generate(request)
    spent = (time.monotonic() - began) * 1000
    text = generation.completions[0].text
    return Check(
        section, "one-token call", "ok", f"{text!r} in {spent:.0f} ms, {generation.usage.tokens} tokens"
    )


async def _engine(llm: sg.Backend) -> list[Check]:
    """Decodes one answer with log-probabilities and scores the same text: both must agree."""
    section = "Embedded engine"
    messages = (sg.Message("user", _QUESTION),)
    began = time.monotonic()
    generation = await llm.generate(
        sg.Request(messages, n=4, max_tokens=64, temperature=0.0, seed=0, logprobs=0)
    )
    spent = time.monotonic() - began
    first, *others = generation.completions
    rate = sum(c.token_count for c in generation.completions) / max(spent, 1e-9)
    scoring = await llm.score(ScoreRequest(messages, (first.text,)))
    ended = len(first.tokens) - len(scoring.scores[0])  # the end token is decoded, not part of the text
    decoded = [t.logprob for t in (first.tokens[:-ended] if ended > 0 else first.tokens)]
    gap = max(
        (abs(a - b.logprob) for a, b in zip(decoded, scoring.scores[0], strict=False)), default=math.inf
    )
    same = all(other.text == first.text for other in others)
    broken = "Run: pip install --force-reinstall stratagem, and report it if that does not help."
    return [
        Check(section, "speed", "ok", f"{rate:,.0f} tokens/s in a batch of 4"),
        Check(
            section,
            "batch equals single",
            "ok" if same else "broken",
            "greedy texts agree" if same else "greedy texts differ within a batch",
            "" if same else broken,
        ),
        Check(
            section,
            "scores equal decoding",
            "ok" if gap < _TOLERANCE else "broken",
            f"largest difference {gap:.1e}",
            "" if gap < _TOLERANCE else broken,
        ),
    ]


def _rendered(checks: list[Check]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for section in dict.fromkeys(check.section for check in checks):
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(width=1)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for check in checks:
            if check.section == section:
                detail = Text(check.detail, style=DIM if check.status == "missing" else "")
                if check.remedy:
                    detail.append(f"\n{check.remedy}", style=ACCENT)
                table.add_row(Text(*_MARKS[check.status]), check.name, detail)
        parts += [Text(section, style=STRONG, overflow="fold"), table, Text()]
    bad = sum(check.status == "broken" for check in checks)
    better = sum(check.status == "advice" for check in checks)
    verdict = Text("Everything works.", style=GOOD) if not bad else Text(f"{bad} broken.", style=BAD)
    if better:
        verdict.append(f" {count(better, 'thing')} could be set better (!).", style=WARN)
    return [*parts, verdict]
