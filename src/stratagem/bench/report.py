"""A bench as one HTML file that asks for nothing from outside and works without script."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from stratagem.bench.plot import svg
from stratagem.bench.results import Cell, Results
from stratagem.bench.statistics import Estimate
from stratagem.bench.summary import Row, Summary, summarise
from stratagem.core.errors import MissingExtraError, StoreError


def write_report(results: Results, path: Path | str, summary: Summary | None = None) -> None:
    """Write :func:`render` to ``path``.

    Raises:
        StoreError: it cannot be written.
    """
    page = render(results, summary or summarise(results))
    try:
        Path(path).write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise StoreError(f"Cannot write {path}: {error.strerror}.") from None


def render(results: Results, summary: Summary) -> str:
    """The page: figures, plot, differences, and every problem with its answers."""
    style, script = (
        files("stratagem.bench").joinpath(f"report.{s}").read_text("utf-8") for s in ("css", "js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    title = f"{results.manifest.get('data') or 'Bench'}: {', '.join(results.strategies)}"
    body = "\n".join(
        (
            *_head(results, summary),
            *_strategies(results, summary),
            *_plot(summary),
            *_differences(summary),
            *_curves(summary),
            *_calibrations(summary),
            *_served(results),
            *_problems(results),
            *_settings(results),
        )
    )
    # The policy holds even if a text slipped through unescaped: only our own script runs, nothing is fetched.
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""


def _head(results: Results, summary: Summary) -> Iterator[str]:
    manifest = results.manifest
    yield f"<h1>{escape(manifest.get('data') or 'Bench')}</h1>"
    models = ", ".join(dict.fromkeys(map(str, manifest.get("models", {}).values())))
    parts = [
        _count(len(results.problems), "problem"),
        _count(len(results.seeds), "seed"),
        models,
        f"Stratagem {manifest.get('version', '')}",
    ]
    yield f'<p class="soft">{escape(" · ".join(filter(None, parts)))}</p>'
    ranked = [row for row in summary.rows if row.accuracy.size]
    if len(ranked) > 1 and not results.missing:  # else each may have had other problems
        best = max(ranked, key=lambda row: row.accuracy.value)
        other = ranked[0] if best is not ranked[0] else ranked[1]
        gap = summary.difference(best.strategy, other.strategy)
        yield (
            f'<p class="lead"><b>{escape(best.strategy)}</b> answers {_share(best.accuracy.value)} right,'
            f" {_points(gap.value)} points [{_points(gap.low)}, {_points(gap.high)}] against"
            f" {escape(other.strategy)} on the same problems.</p>"
        )
    if results.failed:
        how_many = len(results.failed)
        yield _warning(
            f"{_count(how_many, 'run')} failed and {_are(how_many, 'counts', 'count')} as wrong; the same command "
            f"tries again. First error: {results.failed[0].error}"
        )
    if results.missing > 0:
        yield _warning(
            f"{_count(results.missing, 'run')} {_are(results.missing)} missing: the bench is not finished, and the "
            "strategies may have met different problems."
        )
    if results.skipped:
        more = f" First: {results.skipped[0]}"
        were = _are(len(results.skipped), "was", "were")
        yield _warning(f"{_count(len(results.skipped), 'broken line')} of the data {were} left out.{more}")


def _strategies(results: Results, summary: Summary) -> Iterator[str]:
    money = any(row.money.total for row in summary.rows)
    cut = any(row.cut_short for row in summary.rows)
    header = ["Strategy", "Accuracy", "Tokens", "of them decoded", "Calls", "Seconds", "All tokens"]
    header += ["Money"] * money + ["Cut short"] * cut
    finished = [row.accuracy.value for row in summary.rows if row.accuracy.size and not results.missing]
    best = max(finished, default=math.nan)
    yield "<h2>Strategies</h2>"
    yield from _table(
        header,
        (_strategy(row, best, money=money, cut=cut) for row in summary.rows),
        f"Means per run, with {summary.level:.0%} bootstrap intervals over problems.",
    )


def _strategy(row: Row, best: float, *, money: bool, cut: bool) -> list[str]:
    accuracy = _interval(row.accuracy, percent=True)
    if row.accuracy.value == best:
        accuracy = f'<span class="best">{accuracy}</span>'
    cells = [
        escape(row.strategy),
        accuracy,
        _interval(row.tokens.mean),
        _number(row.completion_tokens.mean.value),
        _number(row.calls.mean.value),
        _number(row.seconds.mean.value),
        f"{row.tokens.total:,.0f}",
    ]
    return cells + [f"{row.money.total:.4f}"] * money + [str(row.cut_short)] * cut


def _plot(summary: Summary) -> Iterator[str]:
    yield "<h2>Accuracy against cost</h2>"
    try:
        drawing = svg(summary)
    except MissingExtraError as error:
        yield f'<p class="soft">No plot: {escape(str(error))}</p>'
        return
    yield f'<div class="plot" role="img" aria-label="Accuracy against tokens, as in the table">{drawing}</div>'


def _differences(summary: Summary) -> Iterator[str]:
    if not summary.differences:
        return
    found = [d.accuracy for d in summary.differences]
    reach = max((abs(x) for d in found for x in (d.low, d.high) if not math.isnan(x)), default=0.0) or 1.0

    def row(name: str, over: str, d: Estimate) -> list[str]:
        colour = ("good" if d.value > 0 else "bad") if d.excludes_zero else "soft"
        verdict = ("better" if d.value > 0 else "worse") if d.excludes_zero else "not clear"
        return [
            f'{escape(name)} <span class="soft">over</span> {escape(over)}',
            f"{_points(d.value)} <small>[{_points(d.low)}, {_points(d.high)}]</small>",
            _forest(d, reach, colour),
            f'<span class="{colour}">{verdict}</span>',
        ]

    yield "<h2>Paired differences</h2>"
    yield from _table(
        ["Accuracy of", "Points", "", ""],
        (row(d.a, d.b, d.accuracy) for d in summary.differences),
        f"On the same problems, {summary.level:.0%} bootstrap intervals, each on its own: not corrected for "
        "how many there are.",
    )


def _forest(d: Estimate, reach: float, colour: str) -> str:
    if math.isnan(d.value):
        return ""
    low, value, high = (100 * x / reach for x in (d.low, d.value, d.high))
    return (
        f'<svg class="forest {colour}" viewBox="-104 -10 208 20" aria-hidden="true">'
        '<line class="zero" x1="0" x2="0" y1="-12" y2="12"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="0" y2="0"/><circle cx="{value:.1f}" cy="0" r="4"/></svg>'
    )


def _curves(summary: Summary) -> Iterator[str]:
    if not summary.curves:
        return
    sizes = sorted({k for curve in summary.curves for k in curve.k})
    rows: list[list[str]] = []
    for curve in summary.curves:
        judged = ((f"best by {judge}", values) for judge, values in curve.best.items())
        for name, values in (("majority", curve.majority), *judged, ("any right", curve.any_right)):
            by_k = dict(zip(curve.k, values, strict=True))
            shares = [_share(by_k[k]) if k in by_k else "" for k in sizes]
            rows.append([f'{escape(curve.strategy)} <span class="soft">{escape(name)}</span>', *shares])
    yield "<h2>What k of the samples give</h2>"
    yield from _table(
        ["Samples", *map(str, sizes)],
        rows,
        "Expected over all ways to draw k of a run's samples: a majority vote, the sample that a verifier scores "
        "highest, and the chance that any is right (pass@k), the most that choosing among them can give.",
    )


def _calibrations(summary: Summary) -> Iterator[str]:
    if not summary.calibrations:
        return
    yield "<h2>Scores and confidence</h2>"
    yield from _table(
        ["Strategy", "Score", "Size", "AUC", "ECE", "ECE, equal mass"],
        (
            [
                escape(c.strategy),
                escape(c.source),
                f"{c.size:,}",
                *("" if math.isnan(x) else f"{x:.3f}" for x in (c.auc, c.ece, c.ece_mass)),
            ]
            for c in summary.calibrations
        ),
        "How well each tells right answers from wrong (AUC: 0.5 is chance, 1 perfect) and how far it is from the "
        "share that is right (expected calibration error, 10 bins).",
    )


def _served(results: Results) -> Iterator[str]:
    if not results.served:
        return
    names = list(dict.fromkeys(name for each in results.served for name in (*each.after, *each.between)))
    rows = [
        [
            f'{escape(each.server)} <span class="soft">{when}</span>',
            *(_number(figures[name]) if name in figures else "" for name in names),
        ]
        for each in results.served
        for when, figures in (("before", each.before), ("after", each.after), ("between", each.between))
    ]
    yield "<h2>Servers</h2>"
    yield from _table(
        ["Server", *(name[0].upper() + name[1:] for name in names)],
        rows,
        "What each server had counted since its start before and after a sitting of this bench, and what came "
        "between: of all its clients, others too.",
    )


def _problems(results: Results) -> Iterator[str]:
    options = [("all", "all problems"), ("differ", "strategies differ"), ("wrong", "all wrong")]
    options += [("failed", "failed")] * bool(results.failed)
    choice = "".join(f'<option value="{value}">{name}</option>' for value, name in options)
    yield (
        '<h2>Problems</h2><div class="controls" hidden><label>Show '
        f'<select id="kind">{choice}</select></label><label>with the words <input id="words" type="search">'
        '</label><span class="soft" id="shown" role="status"></span></div>'
    )
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in results.strategies)
    yield (
        '<div class="scroll"><table><caption>Open a problem to read the answers.</caption><thead><tr>'
        f'<th scope="col">Problem</th><th scope="col">Gold</th>{names}</tr></thead><tbody>'
    )
    for problem in results.problems:
        cells = [results.of(name, problem.id) for name in results.strategies]
        marks = "".join(f"<td>{_marks(own)}</td>" for own in cells)
        answers = "".join(
            _answer(name, cell) for name, own in zip(results.strategies, cells, strict=True) for cell in own
        )
        yield (
            f'<tr class="problem" data-kinds="{_kinds(cells)}"><td class="text"><details>'
            f"<summary>{escape(problem.task.question)}</summary>{answers}"
            f"<small>{escape(problem.id)}</small></details></td>"
            f"<td>{escape(problem.gold)}</td>{marks}</tr>"
        )
    yield "</tbody></table></div>"


def _kinds(cells: Sequence[Sequence[Cell]]) -> str:
    shares = {sum(c.correct for c in own) / len(own) for own in cells if own}
    kinds = ["differ"] * (len(shares) > 1) + ["wrong"] * (shares == {0.0})
    return " ".join(kinds + ["failed"] * any(c.error for own in cells for c in own))


def _marks(cells: Sequence[Cell]) -> str:
    if len(cells) == 1:
        cell = cells[0]
        value = "failed" if cell.error else _cut(cell.value) if cell.value is not None else "none"
        colour, sign = ("good", "✓") if cell.correct else ("bad", "✗")
        return f'<span class="{colour}">{escape(value)} {sign}</span>'
    if not cells:
        return '<span class="soft">missing</span>'
    right = sum(cell.correct for cell in cells)
    colour = "good" if right == len(cells) else "bad" if not right else "soft"
    return f'<span class="{colour}">{right} of {len(cells)}</span>'


def _answer(name: str, cell: Cell) -> str:
    facts = [f"seed {cell.seed}", f"{cell.usage.tokens:,} tokens", f"{cell.seconds:.2f} s"]
    if cell.confidence is not None:
        facts.insert(0, f"confidence {cell.confidence:.2f}")
    if cell.stopped != "complete":
        facts.append(f"stopped: {cell.stopped}")
    text = cell.error or cell.text
    sign = '<span class="good">✓</span>' if cell.correct else '<span class="bad">✗</span>'
    return (
        f'<div class="answer"><p>{sign} <b>{escape(name)}</b> <small>{escape(" · ".join(facts))}</small></p>'
        f"<pre>{escape(text)}</pre></div>"
    )


def _settings(results: Results) -> Iterator[str]:
    manifest = dict(results.manifest)
    strategies = manifest.pop("strategies")
    yield "<h2>Settings</h2><dl>"
    for key, value in {**manifest, "seeds": list(results.seeds)}.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield f"<dt>{escape(key)}</dt><dd><code>{escape(text)}</code></dd>"
    for name in results.strategies:
        text = json.dumps(strategies[name], ensure_ascii=False)
        yield f"<dt>{escape(name)}</dt><dd><code>{escape(text)}</code></dd>"
    yield "</dl>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> Iterator[str]:
    """Rows of cells that are HTML already."""
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    yield f'<div class="scroll"><table><caption>{escape(caption)}</caption><thead><tr>{names}</tr></thead><tbody>'
    for first, *rest in rows:
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        yield f'<tr><th scope="row">{first}</th>{cells}</tr>'
    yield "</tbody></table></div>"


def _warning(text: str) -> str:
    return f'<p class="warning" role="note">{escape(text)}</p>'


def _interval(e: Estimate, *, percent: bool = False) -> str:
    if math.isnan(e.value):
        return "unknown"
    if percent:
        return f"{_share(e.value)} <small>[{100 * e.low:.1f}, {100 * e.high:.1f}]</small>"
    return f"{_number(e.value)} <small>[{_number(e.low)}, {_number(e.high)}]</small>"


def _share(x: float) -> str:
    return "unknown" if math.isnan(x) else f"{100 * x:.1f} %"


def _number(x: float) -> str:
    return "unknown" if math.isnan(x) else f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def _points(x: float) -> str:
    return "unknown" if math.isnan(x) else f"{round(100 * x, 1) + 0.0:+.1f}"  # + 0.0: no minus before a zero


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def _are(n: int, one: str = "is", more: str = "are") -> str:
    return one if n == 1 else more


def _cut(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"
