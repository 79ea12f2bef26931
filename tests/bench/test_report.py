"""The report and the plot: what a reader sees, on a page that fetches nothing."""

import io
import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from stratagem._cli.bench import rendered as bench_rendered
from stratagem.bench.data import Problem
from stratagem.bench.plot import draw, pareto_front, save_plot, svg
from stratagem.bench.report import render, write_report
from stratagem.bench.results import Cell, Results, Sample
from stratagem.bench.statistics import Estimate
from stratagem.bench.summary import Cost, Difference, Row, Summary, summarise
from stratagem.core.errors import ConfigurationError, StoreError
from stratagem.core.task import Task
from stratagem.core.usage import Usage

EVIL = "</pre><script>alert(1)</script><img src=x onerror='alert(2)'>\"&amp;"


def cells(strategy: str, right: list[bool], tokens: int, text: str = "fine") -> list[Cell]:
    return [
        Cell(
            problem=f"p{i}",
            strategy=strategy,
            seed=0,
            run_seed=1,
            value="7" if ok else "8",
            correct=ok,
            text=text,
            confidence=0.9 if ok else 0.3,
            usage=Usage(prompt_tokens=10, completion_tokens=tokens, calls=1),
            seconds=0.5,
            samples=tuple(
                Sample("7" if (i + j) % 3 else "8", bool((i + j) % 3), 5, {"judge": 0.5}) for j in range(4)
            ),
        )
        for i, ok in enumerate(right)
    ]


def results(*groups: list[Cell], **changes: object) -> Results:
    names = tuple(dict.fromkeys(cell.strategy for group in groups for cell in group))
    count = max(len(group) for group in groups)
    manifest = {
        "format": 1,
        "version": "0.1.0",
        "data": "gym:words/test",
        "models": {"policy": "mini"},
        "budget": {},
        "grader": {"kind": "math"},
        "strategies": {name: {"kind": name} for name in names},
    }
    problems = tuple(Problem(f"p{i}", Task.of(f"What is {i} < {EVIL}?"), "7") for i in range(count))
    found = Results(manifest, problems, names, (0,), {c.key: c for group in groups for c in group})
    return replace(found, **changes) if changes else found  # type: ignore[arg-type]


ONE = cells("one", [i % 2 == 0 for i in range(40)], 30)
VOTE = cells("vote", [i % 10 != 0 for i in range(40)], 400)


class Page(HTMLParser):
    """The tags of a page with their attributes, its text, and whether every element is closed."""

    VOID = frozenset({"meta", "br", "input", "img", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_fetches_nothing_and_is_well_formed() -> None:
    found = results(ONE, VOTE)
    page = Page(render(found, summarise(found)))
    assert page.open == []
    for tag, attrs in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base"), tag
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset"):
                assert (value or "").startswith("#"), (tag, value)
            assert not re.search(r"url\((?!#)", value or ""), value
    assert [tag for tag, _ in page.tags].count("script") == 1
    [policy] = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_what_models_write_is_shown_and_never_run() -> None:
    found = results(cells(f"one {EVIL}", [True, False], 30, EVIL), VOTE[:2])
    text = render(found, summarise(found))
    assert "<script>alert" not in text
    assert "<img" not in text
    page = Page(text)
    shown = "".join(page.text)
    assert shown.count(EVIL) >= 2 * 2  # answers and questions, as they were written


def test_figures_intervals_and_differences_are_on_the_page() -> None:
    found = results(ONE, VOTE)
    summary = summarise(found)
    shown = " ".join("".join(Page(render(found, summary)).text).split())
    vote, gap = summary.row("vote"), summary.difference("vote", "one")
    assert f"90.0 % [{100 * vote.accuracy.low:.1f}, {100 * vote.accuracy.high:.1f}]" in shown
    assert f"{100 * gap.value:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]" in shown
    assert "vote answers 90.0 % right" in shown
    assert "16,400" in shown  # all tokens of the vote
    assert "40 problems" in shown
    assert "confidence 0.90" in shown


def test_failures_gaps_and_skipped_lines_are_not_hidden() -> None:
    broken = replace(ONE[0], error="BackendError: down", correct=False, value=None)
    found = results([broken, *ONE[1:]], VOTE[:30], skipped=("x.jsonl:3: not JSON",))
    shown = "".join(Page(render(found, summarise(found))).text)
    assert "1 run failed and counts as wrong" in shown
    assert "1 broken line of the data was left out" in shown
    assert "BackendError: down" in shown
    assert "10 runs are missing" in shown
    assert "x.jsonl:3: not JSON" in shown


def test_before_all_runs_are_there_none_is_the_best() -> None:
    whole, cut = results(ONE, VOTE), results(ONE, VOTE[:39])
    pages = [render(found, summarise(found)) for found in (whole, cut)]
    assert ["on the same problems.</p>" in page for page in pages] == [True, False]
    assert ['class="best"' in page for page in pages] == [True, False]
    shown = "".join(Page(pages[1]).text)
    assert "1 run is missing: the bench is not finished" in shown
    assert "<b>vote</b>" not in pages[1].partition("<h2>")[0]


def test_no_difference_has_no_sign_and_what_never_ran_is_unknown() -> None:
    same = results(ONE, cells("again", [cell.correct for cell in ONE], 30))
    summary = summarise(same)
    # As the lead turns a difference round it negates its zeros.
    shown = "".join(
        Page(render(same, replace(summary, differences=tuple(map(turned, summary.differences))))).text
    )
    assert "+0.0 points [+0.0, +0.0]" in shown
    assert "-0.0" not in shown
    only = results(ONE, VOTE, cells={cell.key: cell for cell in ONE})
    row = "".join(Page(render(only, summarise(only))).text)
    assert "unknown" in row
    assert "nan" not in row.partition("Problems")[0]
    console = Console(width=200, file=io.StringIO())
    console.print(*bench_rendered(summarise(only), only))
    console.print(*bench_rendered(summary, same))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "nan" not in printed
    assert printed.count("unknown") >= 4
    assert "-0.0" not in printed


def turned(d: Difference) -> Difference:
    e = d.accuracy
    return replace(d, a=d.b, b=d.a, accuracy=Estimate(-e.value, -e.high, -e.low, e.size))


def test_a_bench_with_nothing_finished_still_gives_a_page(tmp_path: Path) -> None:
    found = results(ONE, VOTE, cells={})
    summary = summarise(found)
    assert math.isnan(summary.row("one").accuracy.value)
    write_report(found, tmp_path / "report.html", summary)
    assert "80 runs" in (tmp_path / "report.html").read_text()
    with pytest.raises(StoreError, match="Cannot write"):
        write_report(found, tmp_path / "no" / "report.html", summary)


def test_half_characters_do_not_stop_the_report(tmp_path: Path) -> None:
    found = results(cells("one", [True], 30, "half \ud83d"))
    write_report(found, tmp_path / "report.html")
    assert "half " in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_without_matplotlib_the_report_says_how_to_get_the_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    found = results(ONE, VOTE)
    summary = summarise(found)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match=r"matplotlib is not installed.*stratagem\[bench\]"):
        draw(summary)
    assert "stratagem[bench]" in render(found, summary)


def row(name: str, accuracy: float, tokens: float, spread: float = 0.03) -> Row:
    cost = Cost(Estimate(tokens, tokens, tokens, 10), tokens)
    estimate = Estimate(accuracy, accuracy - spread, accuracy + spread, 10)
    return Row(name, 10, 0, 0, estimate, cost, cost, cost, cost, cost)


def of(*rows: Row) -> Summary:
    return Summary(rows, (), (), (), 0.95)


def test_the_front_holds_what_nothing_beats() -> None:
    summary = of(
        row("a", 0.5, 10), row("b", 0.4, 20), row("c", 0.7, 30), row("d", 0.7, 40), row("e", 0.6, 30)
    )
    assert pareto_front(summary) == ("a", "c")
    assert pareto_front(summary, "seconds") == ("a", "c")


CROWDS = [
    of(*(row(f"strategy_{i}", 0.9 + 0.004 * i, 100 + 3 * i) for i in range(6))),
    of(*(row(f"s{i}", 0.1 * i, 10 * 2**i) for i in range(10))),
    of(row("same_place", 0.5, 50), row("same_place_too", 0.5, 50), row("the_third_one", 0.5, 50)),
    of(row("perfect", 1.0, 5, 0.0), row("a_rather_long_name_of_a_strategy", 1.0, 6, 0.0)),
]


@pytest.mark.parametrize("summary", CROWDS, ids=["crowd", "spread", "same", "edge"])
def test_labels_are_all_there_inside_and_apart(summary: Summary) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    figure = draw(summary, measures=("tokens",))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    [axes] = figure.axes
    boxes = {t.get_text(): Text.get_window_extent(t, canvas.get_renderer()) for t in axes.texts}
    assert set(boxes) == {r.strategy for r in summary.rows}
    for name, box in boxes.items():
        assert box.x0 >= 0, name
        assert box.x1 <= figure.bbox.x1, name
        for other, its in boxes.items():
            assert name == other or not box.overlaps(its), (name, other)


def test_the_plot_is_written_and_repeatable(tmp_path: Path) -> None:
    summary = summarise(results(ONE, VOTE))
    save_plot(summary, tmp_path / "plot.png", title="Words")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    drawing = svg(summary)
    assert drawing == svg(summary)
    assert drawing.startswith("<svg")
    assert "vote" in drawing
    assert "currentColor" in drawing
