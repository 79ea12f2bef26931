"""A search in pictures: throughput against latency, and against each setting (needs the extra ``tune``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratagem.backends.vllm.tune import Trial, Tuning
from stratagem.core.errors import MissingExtraError, StoreError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WITHIN, _ABOVE, _INK, _FAINT = "#0072b2", "#d55e00", "#1a1c20", "#8a8f98"
_WIDE = 16  # values whose greatest is so many times the least are shown by ratios
_FEW = 5  # different numbers, at most, that stand side by side
_COLUMNS = 3


def save_landscape(tuning: Tuning, path: Path | str) -> None:
    """Draw all trials of a search into a file; its suffix says the format (png, svg, pdf).

    Raises:
        MissingExtraError: matplotlib is not installed.
        StoreError: the file cannot be written.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "tune") from None
    names = list(dict.fromkeys(name for trial in tuning.trials for name in trial.values))
    rows = -(-(1 + len(names)) // _COLUMNS)
    with rc_context({"font.family": "sans-serif", "font.size": 9.5}):
        figure = Figure(figsize=(4 * _COLUMNS, 0.6 + 3 * rows), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        panels = [figure.add_subplot(rows, _COLUMNS, place + 1) for place in range(1 + len(names))]
        handles: dict[str, Any] = {}
        for axes, name in zip(panels, ["latency", *names], strict=True):
            _panel(axes, tuning, name)
            handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        speeds = [trial.measurement.throughput for trial in tuning.trials if trial.measurement is not None]
        for place, axes in enumerate(panels):
            axes.set_ylim(-0.03 * max(speeds), 1.1 * max(speeds))
            if place % _COLUMNS == 0:
                axes.set_ylabel("Decoded tokens per second", color=_INK)
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower right",
            ncols=6,
            frameon=False,
            fontsize=9,
        )
        try:
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise StoreError(f"Cannot write {path}: {error.strerror}.") from error


def _panel(axes: Axes, tuning: Tuning, name: str) -> None:
    shown = [trial for trial in tuning.trials if name == "latency" or name in trial.values]
    if name == "latency":
        shown = [trial for trial in shown if trial.measurement is not None]
        places = {trial.number: trial.measurement.latency for trial in shown if trial.measurement is not None}
        axes.margins(x=0.1)
        axes.set_xlabel("Seconds that 95 % of requests took at most", color=_INK)
        if tuning.bound is not None:
            axes.axvline(tuning.bound, color=_FAINT, linewidth=1, linestyle="--", label="bound")
    else:
        places = _places(axes, [(trial.number, trial.values[name]) for trial in shown])
        axes.set_xlabel(name, color=_INK)
    within = [trial for trial in shown if tuning.within(trial)]
    above = [trial for trial in shown if trial.measurement is not None and not tuning.within(trial)]
    failed = [trial for trial in shown if trial.measurement is None]
    for group, style in (
        (within, {"marker": "o", "color": _WITHIN, "label": "within the bound" if tuning.bound else "tried"}),
        (above, {"marker": "o", "color": _ABOVE, "markerfacecolor": "none", "label": "above it"}),
        (failed, {"marker": "x", "color": _FAINT, "label": "failed"}),
        ([tuning.base], {"marker": "s", "color": _INK, "markerfacecolor": "none", "markersize": 11}),
        ([tuning.best], {"marker": "*", "color": _WITHIN, "markersize": 15}),
    ):
        label = {"s": "the profile itself", "*": "best"}.get(str(style["marker"]), style.get("label"))
        _points(axes, [trial for trial in group if trial.number in places], places, {**style, "label": label})
    axes.grid(color=_FAINT, alpha=0.25, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _points(axes: Axes, group: Sequence[Trial], places: dict[int, float], style: dict[str, Any]) -> None:
    if not group:
        return
    speeds = [0.0 if trial.measurement is None else trial.measurement.throughput for trial in group]
    axes.plot([places[trial.number] for trial in group], speeds, linestyle="none", **style)


def _places(axes: Axes, values: Sequence[tuple[int, Any]]) -> dict[int, float]:
    """Where each trial stands: many numbers as they are, anything else side by side."""
    different = {value for _, value in values}
    if len(different) > _FEW and all(isinstance(value, int) for value in different):
        if max(different) >= _WIDE * max(1, min(different)):
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        return {number: float(value) for number, value in values}
    ordered = sorted(different, key=lambda value: (value != "none", value))
    axes.set_xticks(range(len(ordered)), [str(value) for value in ordered])
    axes.set_xlim(-0.6, len(ordered) - 0.4)
    return {number: float(ordered.index(value)) for number, value in values}
