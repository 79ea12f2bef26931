"""Drawing a diagram with matplotlib: cards with a coloured head, curved arrows."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path as Curve
from matplotlib.textpath import TextPath

from stratagem.graphs._diagram import Arrow, Card, Diagram
from stratagem.graphs._layout import Edge, Layout, Point, lay_out

_PAD, _ROW, _HEAD, _RADIUS = 0.14, 0.21, 0.34, 0.09  # inches
_GAP, _RANK_GAP, _MARGIN, _LANE = 0.45, 0.7, 0.3, 0.3
_TITLE, _BODY = 11.0, 9.0  # points
_LINE, _INK, _FAINT = "#64748b", "#0f172a", "#64748b"
_HEADS = {"end": "#1f2937", "step": "#475569", "strategy": "#4f46e5", "verifier": "#059669"}
_HEADS |= {"done": "#059669", "failed": "#dc2626", "skipped": "#94a3b8"}
_BODIES = {"end": "#1f2937", "step": "#ffffff", "strategy": "#f5f6ff", "verifier": "#f0fdf7"}
_BODIES |= {"done": "#f0fdf7", "failed": "#fef2f2", "skipped": "#f8fafc"}


def draw(diagram: Diagram, path: Path) -> None:
    """Write the diagram to ``path``, in the format that its ending names."""
    arrows = _merged(diagram.arrows)
    sizes = {name: _size(card) for name, card in diagram.cards.items()}
    loops = {a.source: _width(a.label, _BODY) + _LANE + 0.1 for a in arrows if a.source == a.target}
    room = {name: (w + 2 * loops.get(name, 0.0), h) for name, (w, h) in sizes.items()}
    layout = lay_out(room, [(a.source, a.target) for a in arrows], gap=_GAP, rank_gap=_RANK_GAP)
    sides = [at for bends in layout.paths.values() for at, _, _ in bends]
    for name, (x, _) in layout.centres.items():
        sides += [x - room[name][0] / 2, x + room[name][0] / 2]
    left, right = min(sides), max(sides)
    bottom = max(below for _, below in layout.bands.values())
    lanes: dict[Edge, float] = {}
    for arrow in arrows:
        if (arrow.source, arrow.target) not in layout.paths and arrow.source != arrow.target:
            lanes[arrow.source, arrow.target] = right + _LANE
            right += _LANE + _width(arrow.label, _BODY) + 0.1
    figure = Figure(figsize=(right - left + 2 * _MARGIN, bottom + 2 * _MARGIN), dpi=200, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(left - _MARGIN, right + _MARGIN)
    axes.set_ylim(bottom + _MARGIN, -_MARGIN)
    axes.set_axis_off()
    pen = _Pen(axes)
    leaving, arriving = (_ports(arrows, layout, sizes, out=out) for out in (True, False))
    for arrow in arrows:
        edge = (arrow.source, arrow.target)
        (x, y), (w, h) = layout.centres[arrow.source], sizes[arrow.source]
        if arrow.source == arrow.target:
            pen.around(arrow, (x - w / 2, y + h / 5), (x - w / 2, y - h / 5), x - w / 2 - _LANE)
        elif edge in lanes:
            (x1, y1), (w1, _) = layout.centres[arrow.target], sizes[arrow.target]
            pen.around(arrow, (x + w / 2, y + 0.1), (x1 + w1 / 2, y1 - 0.1), lanes[edge])
        else:
            y1 = layout.centres[arrow.target][1] - sizes[arrow.target][1] / 2
            stops = [(leaving[edge], y + h / 2), (leaving[edge], layout.bands[arrow.source][1])]
            for at, above, below in layout.paths[edge]:
                stops += [(at, above), (at, below)]
            stops += [(arriving[edge], layout.bands[arrow.target][0]), (arriving[edge], y1)]
            pen.down(arrow, stops)
    for name, card in diagram.cards.items():
        (x, y), (w, h) = layout.centres[name], sizes[name]
        pen.card(card, x - w / 2, y - h / 2, w)
    figure.savefig(path)


def _merged(arrows: Sequence[Arrow]) -> list[Arrow]:
    """One arrow per pair of nodes."""
    merged: dict[Edge, Arrow] = {}
    for arrow in arrows:
        edge = (arrow.source, arrow.target)
        if edge in merged and arrow.label:
            arrow = replace(arrow, label=f"{merged[edge].label} / {arrow.label}".removeprefix(" / "))
        merged[edge] = arrow
    return list(merged.values())


def _ports(
    arrows: Sequence[Arrow], layout: Layout, sizes: Mapping[str, tuple[float, float]], *, out: bool
) -> dict[Edge, float]:
    """Where each arrow leaves its source (or reaches its target): side by side, so that none cross there."""
    sides: dict[str, list[tuple[float, Edge]]] = defaultdict(list)
    for edge in ((a.source, a.target) for a in arrows if (a.source, a.target) in layout.paths):
        bends = layout.paths[edge]
        other = layout.centres[edge[1] if out else edge[0]][0]
        towards = (bends[0] if out else bends[-1])[0] if bends else other
        sides[edge[0] if out else edge[1]].append((towards, edge))
    ports: dict[Edge, float] = {}
    for name, ends in sides.items():
        step = min(0.3, 0.7 * sizes[name][0] / len(ends))
        for i, (_, edge) in enumerate(sorted(ends)):
            ports[edge] = layout.centres[name][0] + step * (i - (len(ends) - 1) / 2)
    return ports


def _size(card: Card) -> tuple[float, float]:
    """Width and height of a card in inches."""
    if card.style == "end":
        return _width(card.title, _TITLE) + 4 * _PAD, _HEAD
    if card.style == "step":
        return max(1.0, _width(card.title, _TITLE) + 4 * _PAD), _HEAD + _PAD
    width = _width(card.title, _TITLE, bold=True) + 2 * _PAD
    keys = max((_width(k, _BODY) for k, _ in card.rows), default=0.0)
    values = max((_width(v, _BODY) for _, v in card.rows), default=0.0)
    width = max(width, keys + values + 4 * _PAD, 1.5)
    height = _HEAD + (_PAD + len(card.rows) * _ROW if card.rows else 0.0)
    for key, parts in _grouped(card):
        width = max(width, _width(key, _BODY) + 2 * _PAD, *(_size(part)[0] + 2 * _PAD for part in parts))
        height += _PAD / 2 + _ROW + sum(_size(part)[1] for part in parts) + _PAD / 2 * (len(parts) - 1)
    return width, height + (_PAD if card.parts else 0.0)


def _grouped(card: Card) -> list[tuple[str, list[Card]]]:
    """The card's parts by the name of the parameter they stand in."""
    return [(key, [c for _, c in group]) for key, group in groupby(card.parts, key=itemgetter(0))]


@functools.cache
def _font(bold: bool) -> FontProperties:
    return FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")


def _width(text: str, points: float, *, bold: bool = False) -> float:
    """Of one line, in inches."""
    if not text.strip():
        return 0.0
    return float(TextPath((0, 0), text, size=points, prop=_font(bold)).get_extents().width) / 72


class _Pen:
    """Draws on axes whose unit is an inch."""

    def __init__(self, axes: Axes) -> None:
        self._axes = axes

    def text(
        self,
        x: float,
        y: float,
        text: str,
        points: float,
        colour: str,
        *,
        bold: bool = False,
        align: str = "left",
    ) -> None:
        self._axes.text(
            x,
            y,
            text,
            color=colour,
            fontproperties=_font(bold),
            ha=align,
            va="center_baseline",
            zorder=5,
            parse_math=False,
            size=points,
        )

    def box(
        self, x: float, y: float, w: float, h: float, face: str, edge: str, radius: float = _RADIUS
    ) -> None:
        shape = f"round,pad=0,rounding_size={radius}"
        self._axes.add_patch(
            FancyBboxPatch(
                (x, y), w, h, boxstyle=shape, facecolor=face, edgecolor=edge, linewidth=1.1, zorder=3
            )
        )

    def card(self, card: Card, x: float, y: float, w: float) -> None:
        """A card whose upper left corner is at (x, y)."""
        _, h = _size(card)
        head, body = _HEADS[card.style], _BODIES[card.style]
        if card.style in ("end", "step"):
            self.box(x, y, w, h, body, head, radius=h / 2 - 0.001 if card.style == "end" else _RADIUS)
            ink = "white" if card.style == "end" else _INK
            self.text(x + w / 2, y + h / 2, card.title, _TITLE, ink, align="center")
            return
        self.box(x, y, w, h, body if h > _HEAD else head, head)
        if h > _HEAD:
            self._head(x, y, w, head)
        self.text(x + _PAD, y + _HEAD / 2, card.title, _TITLE, "white", bold=True)
        at = y + _HEAD + (_PAD / 2 if card.rows else 0.0)
        for key, value in card.rows:
            self.text(x + _PAD, at + _ROW / 2, key, _BODY, _FAINT)
            self.text(x + w - _PAD, at + _ROW / 2, value, _BODY, _INK, align="right")
            at += _ROW
        at += _PAD / 2 if card.rows else 0.0
        for key, parts in _grouped(card):
            self.text(x + _PAD, at + (_PAD / 2 + _ROW) / 2, key, _BODY, _FAINT)
            at += _PAD / 2 + _ROW
            for part in parts:
                self.card(part, x + _PAD, at, w - 2 * _PAD)
                at += _size(part)[1] + _PAD / 2
            at -= _PAD / 2

    def _head(self, x: float, y: float, w: float, colour: str) -> None:
        """The coloured strip: round above, straight below."""
        r, h = _RADIUS, _HEAD
        points = [(x, y + h), (x, y + r), (x, y), (x + r, y), (x + w - r, y), (x + w, y), (x + w, y + r)]
        points += [(x + w, y + h), (x, y + h)]
        codes = [Curve.MOVETO, Curve.LINETO, Curve.CURVE3, Curve.CURVE3, Curve.LINETO, Curve.CURVE3]
        codes += [Curve.CURVE3, Curve.LINETO, Curve.CLOSEPOLY]
        self._axes.add_patch(PathPatch(Curve(points, codes), facecolor=colour, edgecolor=colour, zorder=4))

    def down(self, arrow: Arrow, stops: Sequence[Point]) -> None:
        """An arrow through the given points: straight where they stand above each other, else a curve."""
        points, codes = [stops[0]], [Curve.MOVETO]
        for (ax, ay), (bx, by) in pairwise(stops):
            middle = (ay + by) / 2
            points += [(ax, middle), (bx, middle), (bx, by)]
            codes += [Curve.CURVE4] * 3
        self._stroke(points, codes, arrow, (0.0, 1.0))
        if arrow.label:
            (ax, ay), (bx, by) = stops[1], stops[2]
            x, y, w = (ax + bx) / 2, (ay + by) / 2, _width(arrow.label, _BODY) + 0.1
            self.box(x - w / 2, y - 0.1, w, 0.2, "white", "white", radius=0.05)
            self.text(x, y, arrow.label, _BODY, _INK, align="center")

    def around(self, arrow: Arrow, start: Point, end: Point, lane: float) -> None:
        """An arrow that leaves and enters at the side, by way of the vertical line x = ``lane``."""
        (x0, y0), (x1, y1) = start, end
        side = 1 if lane > x0 else -1
        r = min(_RADIUS * 1.5, (y0 - y1) / 2, abs(lane - x0))
        points = [start, (lane - side * r, y0), (lane, y0), (lane, y0 - r)]
        points += [(lane, y1 + r), (lane, y1), (lane - side * r, y1), (x1, y1)]
        codes = [Curve.MOVETO, Curve.LINETO, Curve.CURVE3, Curve.CURVE3]
        codes += [Curve.LINETO, Curve.CURVE3, Curve.CURVE3, Curve.LINETO]
        self._stroke(points, codes, arrow, (-side, 0.0))
        align = "left" if side > 0 else "right"
        self.text(lane + side * 0.07, (y0 + y1) / 2, arrow.label, _BODY, _INK, align=align)

    def _stroke(self, points: list[Point], codes: list[np.uint8], arrow: Arrow, towards: Point) -> None:
        (x, y), (dx, dy) = points[-1], towards
        self._axes.add_patch(
            PathPatch(
                Curve(points, codes),
                fill=False,
                edgecolor=_LINE,
                linewidth=1.5,
                linestyle=(0, (4, 2.5)) if arrow.choice else "-",
                zorder=1,
            )
        )
        base, half = 0.11, 0.05
        tip = [(x, y), (x - base * dx + half * dy, y - base * dy + half * dx)]
        tip.append((x - base * dx - half * dy, y - base * dy - half * dx))
        self._axes.add_patch(Polygon(tip, closed=True, facecolor=_LINE, edgecolor=_LINE, zorder=2))
