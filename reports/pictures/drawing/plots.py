"""Plots: lines and points on two axes."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis as Side
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from ...arithmetic.labels import shortened
from ...style import INK, LINE, MUTED, PAPER
from ...units import gib
from ..picture import Axis, Line, Plot
from ..scales import LOG_FROM, round_count_text, round_numbers, round_seconds_text
from .pen import LETTER, Pen, names_points

# Pixels of the page in an inch of a picture.
PIXELS = 190
# The height of a model's name over a plot, for its length.
SLOPE = math.sin(math.radians(35))
DASHES = {"solid": "-", "dot": ":", "dash": "--", "dashdot": "-."}
TEXTS = {
    "bytes": lambda value: f"{value:,.6g}",
    "number": lambda value: f"{value:,.6g}",
    "seconds": round_seconds_text,
    "parameters": round_count_text,
    "tokens": round_count_text,
}


def plot_height(plot: Plot, pen: Pen) -> float:
    """Return the inches of a plot with its name and those of its columns."""
    return (plot.height + 80) / PIXELS + (1.5 if plot.name else 0) * pen.line + _names(plot, pen)


def _names(plot: Plot, pen: Pen) -> float:
    """Return the inches that the names of the columns stand above the plot."""
    if not plot.columns:
        return 0.0
    longest = max(map(len, plot.columns.values()))
    return SLOPE * (longest + 3) * LETTER * pen.small / 72


def draw_plot(axes: Axes, plot: Plot, pen: Pen) -> None:
    """Draw the axes, the lines and all that is written in between."""
    if plot.name and not pen.picture.apart:
        pen.title(axes, plot.name, pad=72 * _names(plot, pen))
    for side, axis in ((axes.xaxis, plot.x), (axes.yaxis, plot.y)):
        _scale(axes, side, axis, pen, always_log=bool(plot.columns) or pen.picture.across > 1)
    axes.grid(axis="both" if not plot.columns else "y", color=LINE.light, linewidth=0.6)
    if plot.front:
        x, y = _places(plot, plot.front)
        look = {"color": MUTED.light, "linewidth": 0.9, "linestyle": (0, (3, 2))}
        axes.plot(x, y, drawstyle="steps-post", zorder=1, **look)
    low, high = axes.get_ylim()
    for level in plot.levels:
        height = _shown(level.value, plot.y)
        if not low <= height <= high:
            continue
        axes.axhline(height, color=MUTED.light, linewidth=0.6, linestyle=":", zorder=1)
        place = axes.get_yaxis_transform()
        pen.note(axes, level.name, (0, height), place, (2, 2), size=0.8 * pen.size)
    for line in sorted(plot.lines, key=lambda line: line.lane):
        _draw_line(axes, line, plot, pen)
    if names_points(plot):
        _name_points(axes, plot, pen)
    _name_columns(axes, plot, pen)


def _draw_line(axes: Axes, line: Line, plot: Plot, pen: Pen) -> None:
    """Draw a line; one that coincides with earlier ones is broken and has smaller marks."""
    mark, lane = pen.picture.marks[line.label], line.lane
    colour = mark.colour.light
    dash: Any = (0, (4, 4 * lane)) if lane else DASHES[line.dash]
    x, y = _places(plot, [(point.x, point.y) for point in line.points])
    axes.plot(x, y, color=colour, linestyle=dash, linewidth=1.2, zorder=2 + lane)
    size = line.size * 0.68**lane * pen.size / 13
    for number, point in enumerate(line.points):
        if point.interval:
            low, high = (_shown(end, getattr(plot, plot.intervals)) for end in point.interval)
            look = {"color": colour, "linewidth": 1.2, "zorder": 2}
            if plot.intervals == "x":
                axes.hlines(y[number], low, high, **look)
            else:
                axes.vlines(x[number], low, high, **look)
        if not size:
            continue
        style = pen.mark(mark, point.origin, size)
        axes.plot(x[number], y[number], zorder=10 + lane, clip_on=False, **style)


def _name_points(axes: Axes, plot: Plot, pen: Pen) -> None:
    """Name neighbours above and below by turns, and inside the picture."""
    for number, line in enumerate(plot.lines):
        point = line.points[0]
        x, y = _shown(point.x, plot.x), _shown(point.y, plot.y)
        left = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[0]
        across = "left" if left < 0.15 else "right" if left > 0.85 else "center"
        side, up = ("top", -1) if number % 2 else ("bottom", 1)
        look = {"ha": across, "va": side, "size": pen.size, "color": INK.light}
        # The name covers the lines that run under it.
        look["bbox"] = {"facecolor": PAPER.light, "edgecolor": "none", "pad": 1}
        offset = (0, 0.75 * up * pen.size)
        pen.note(axes, shortened(line.label, 28), (x, y), axes.transData, offset, **look)


def _places(plot: Plot, points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [_shown(x, plot.x) for x, _ in points], [_shown(y, plot.y) for _, y in points]


def _shown(value: float, axis: Axis) -> float:
    return gib(value) if axis.kind == "bytes" else value


def _scale(axes: Axes, side: Side, axis: Axis, pen: Pen, *, always_log: bool) -> None:
    """Set a logarithmic scale, or one from zero if the values lie near each other or are zero."""
    values = [_shown(value, axis) for value in axis.values] or [1.0]
    low, high = min(values), max(values)
    name = "x" if side is axes.xaxis else "y"
    if axis.log and low > 0 and (always_log or high > LOG_FROM * low):
        axes.set(**{f"{name}scale": "log", f"{name}lim": (low / 1.7, high * 1.7)})
        side.set_major_locator(FixedLocator(round_numbers(values)))
    elif axis.kind == "number" and high > low:
        side.set_major_locator(MaxNLocator(5))
    else:
        axes.set(**{f"{name}lim": (0, 1.15 * high or 1)})
        side.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    side.set_minor_locator(NullLocator())
    write = TEXTS[axis.kind]
    side.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    title = f"GiB {axis.title}" if axis.kind == "bytes" else axis.title
    side.set_label_text(title, size=pen.small, color=MUTED.light)


def _name_columns(axes: Axes, plot: Plot, pen: Pen) -> None:
    """Write each model over its own line; of models too near to each other only the first."""
    if not plot.columns:
        return
    last = -math.inf
    for count, name in sorted(plot.columns.items()):
        axes.axvline(count, color=LINE.light, linewidth=0.6, zorder=0)
        place = axes.transLimits.transform(axes.transScale.transform((count, 1)))[0]
        place *= pen.width - 0.6
        if place - last < 0.9 * pen.line:
            continue
        last = place
        turn = {"rotation": 35, "rotation_mode": "anchor"}
        pen.note(axes, name, (count, 1), axes.get_xaxis_transform(), (0, 3), **turn)
