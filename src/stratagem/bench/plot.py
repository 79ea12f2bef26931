"""Accuracy against cost, one point per strategy, with the Pareto front (needs the extra ``bench``)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stratagem.bench.summary import Row, Summary
from stratagem.core.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

Measure = Literal["completion_tokens", "tokens", "calls", "seconds"]

_AXES: dict[Measure, str] = {
    "completion_tokens": "Completion tokens per problem",
    "tokens": "Prompt and completion tokens per problem",
    "calls": "Model calls per problem",
    "seconds": "Seconds per problem",
}
# Okabe & Ito (2008) without yellow and black: told apart by colour-blind readers, with markers besides.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_MARKERS = "osD^vPXhp*"
_INK, _FAINT, _PAPER = "#1a1c20", "#8a8f98", "#ffffff"
_METADATA = ("Date", "Creator", "Format", "Type")  # of an SVG; none of it is wanted
_KEY = "Dashed: Pareto front, the best accuracy at that cost or less"
# Where a label may stand, in points from its point, best first: right, left, above, below, corners; then farther.
_SIDES = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)]
_PLACES = [(x * d, y * d) for d in (9, 16, 26, 38, 54) for x, y in _SIDES]


def pareto_front(summary: Summary, measure: Measure = "completion_tokens") -> tuple[str, ...]:
    """Strategies that no other one beats in accuracy at no more cost, in order of cost."""
    front: list[Row] = []
    rows = (row for row in summary.rows if row.accuracy.size)
    for row in sorted(rows, key=lambda r: (_cost(r, measure), -r.accuracy.value)):
        if not front or row.accuracy.value > front[-1].accuracy.value:
            front.append(row)
    return tuple(row.strategy for row in front)


def draw(
    summary: Summary, *, measures: Sequence[Measure] = ("completion_tokens", "tokens"), title: str = ""
) -> Figure:
    """A figure with a panel for each measure of cost.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "bench") from None
    with rc_context({"font.family": "sans-serif", "font.size": 10.5}):
        figure = Figure(figsize=(0.6 + 5.4 * len(measures), 4.3), layout="constrained", facecolor=_PAPER)
        renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
        panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
        for axes, measure in zip(panels, measures, strict=True):
            _panel(axes, summary, measure)
        panels[0].set_ylabel(f"Accuracy, {summary.level:.0%} interval", color=_INK)
        if title:
            figure.suptitle(title, x=0.01, ha="left", color=_INK, fontsize=12.5, fontweight="bold")
        figure.supxlabel(_KEY, x=0.995, ha="right", color=_INK, fontsize=8.5)
        figure.draw_without_rendering()  # positions are known from here on
        figure.set_layout_engine("none")
        for axes, measure in zip(panels, measures, strict=True):
            _label(axes, summary, measure, renderer)
    return figure


def save_plot(summary: Summary, path: Path | str, *, title: str = "") -> None:
    """Write :func:`draw` to a file; its suffix says the format (png, svg, pdf)."""
    draw(summary, title=title).savefig(path, dpi=160)


def svg(summary: Summary) -> str:
    """The figure as an SVG element for a web page: its ink is the page's ``currentColor``, its paper clear."""
    figure = draw(summary)
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "stratagem"}
    ):  # text as text, the same each time
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return text.replace(_INK, "currentColor").replace(_PAPER, "var(--paper, #ffffff)")


def _cost(row: Row, measure: Measure) -> float:
    return {
        "completion_tokens": row.completion_tokens,
        "tokens": row.tokens,
        "calls": row.calls,
        "seconds": row.seconds,
    }[measure].mean.value


def _front(summary: Summary, measure: Measure) -> list[tuple[float, float]]:
    """(cost, accuracy) along the front."""
    rows = map(summary.row, pareto_front(summary, measure))
    return [(_cost(row, measure), row.accuracy.value) for row in rows]


def _panel(axes: Axes, summary: Summary, measure: Measure) -> None:
    rows = [row for row in summary.rows if row.accuracy.size]
    axes.set_facecolor("none")
    costs = [_cost(row, measure) for row in rows]
    if costs and min(costs) > 0 and max(costs) > 8 * min(costs):
        axes.set_xscale("log")
    front = _front(summary, measure)
    if len(front) > 1:
        x, y = zip(*front, strict=True)
        axes.plot(x, y, drawstyle="steps-post", color=_FAINT, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    for index, row in enumerate(rows):
        spread = row.accuracy
        axes.errorbar(
            _cost(row, measure),
            spread.value,
            yerr=[[spread.value - spread.low], [spread.high - spread.value]],
            color=_COLOURS[index % len(_COLOURS)],
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=8,
            markeredgecolor=_PAPER,
            markeredgewidth=1,
            elinewidth=1.6,
            capsize=3.5,
            capthick=1.6,
            zorder=3,
        )
    axes.margins(x=0.16, y=0.1)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.03), min(high, 1.03))
    axes.set_xlabel(_AXES[measure], color=_INK)
    _dress(axes)


def _dress(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 10 else f"{x:g}"))
    if axes.get_xscale() == "log":
        low, high = axes.get_xlim()
        few = high < 120 * low
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", color=_FAINT, alpha=0.28, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, colors=_INK, labelsize=9.5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)


def _label(axes: Axes, summary: Summary, measure: Measure, renderer: RendererBase) -> None:
    """Name each point where its name covers nothing that is drawn, as near as that can be had."""
    inside = axes.get_window_extent(renderer)
    rows = [row for row in summary.rows if row.accuracy.size]
    taken = [*_steps(axes, _front(summary, measure)), *(_mark(axes, row, measure) for row in rows)]
    for row in rows:
        best: tuple[float, Annotation, Bbox] | None = None
        for rank, (x, y) in enumerate(_PLACES):
            text = axes.annotate(
                row.strategy,
                (_cost(row, measure), row.accuracy.value),
                xytext=(x, y),
                textcoords="offset points",
                ha="left" if x > 0 else "right" if x < 0 else "center",
                va="bottom" if y > 0 else "top" if y < 0 else "center",
                color=_INK,
                fontsize=9.5,
                zorder=4,
                arrowprops=(
                    {"arrowstyle": "-", "color": _FAINT, "linewidth": 0.7, "shrinkB": 5, "shrinkA": 1}
                    if abs(x) > 20 or abs(y) > 20
                    else None
                ),
            )
            box = _text_box(text, renderer)
            padded = box.padded(1.5)
            covered = sum(_common(padded, other) for other in taken) + 4 * (
                box.width * box.height - _common(box, inside)
            )
            cost = covered * 100 + rank
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = (cost, text, padded)
            else:
                text.remove()
            if covered <= 0:
                break
        if best is not None:
            taken.append(best[2])


def _text_box(text: Annotation, renderer: RendererBase) -> Bbox:
    """The box of the text alone, without its leader line."""
    from matplotlib.text import Text

    text.update_positions(renderer)
    return Text.get_window_extent(text, renderer)


def _mark(axes: Axes, row: Row, measure: Measure) -> Bbox:
    """The box of a point and its interval, in pixels."""
    from matplotlib.transforms import Bbox

    x = _cost(row, measure)
    (px, low), (_, high) = axes.transData.transform([(x, row.accuracy.low), (x, row.accuracy.high)])
    scale = axes.figure.dpi / 72
    middle = axes.transData.transform((x, row.accuracy.value))[1]
    return Bbox(
        [[px - 5 * scale, min(low, middle - 5 * scale)], [px + 5 * scale, max(high, middle + 5 * scale)]]
    )


def _steps(axes: Axes, front: Sequence[tuple[float, float]]) -> list[Bbox]:
    """The boxes of the front's line, in pixels."""
    from matplotlib.transforms import Bbox

    boxes: list[Bbox] = []
    corners = [axes.transData.transform(point) for point in front]
    for (x0, y0), (x1, y1) in pairwise(corners):
        boxes += [Bbox([[x0, y0 - 1], [x1, y0 + 1]]), Bbox([[x1 - 1, y0], [x1 + 1, y1]])]
    return boxes


def _common(a: Bbox, b: Bbox) -> float:
    """Area that two boxes have in common."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(max(0.0, width) * max(0.0, height))
