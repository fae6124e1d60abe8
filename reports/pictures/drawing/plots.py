"""Plots: lines and points on two axes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis as Side
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import Bbox

from ...arithmetic.labels import shortened
from ...style import INK, LINE, MUTED, PAPER
from ...units import gib
from ..picture import Axis, Line, Plot
from ..scales import LOG_FROM, TICK_TEXTS, framed, scale_name
from .lettering import fitted, width, wrapped
from .pen import SIDE, Pen, names_points

# Pixels of the page in an inch of a picture.
PIXELS = 190
# The angle of a model's name over a plot, and its height for its length.
ANGLE = 35
SLOPE = math.sin(math.radians(ANGLE))
DASHES = {"solid": "-", "dot": ":", "dash": "--", "dashdot": "-.", "none": "none"}
# Where a point's name may stand: right and up, in half its width and in lines.
AROUND = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))


def plot_height(plot: Plot, pen: Pen) -> float:
    """Return the inches of a plot with its name and those of its columns."""
    name = 0.2 + 1.3 * len(pen.title_lines(plot.name)) if plot.name else 0
    return (plot.height + 80) / PIXELS + name * pen.line + _names(plot, pen)


def _names(plot: Plot, pen: Pen) -> float:
    """Return the inches that the names of the columns stand above the plot."""
    if not plot.columns:
        return 0.0
    longest = max(width(name, pen.small) for name in plot.columns.values())
    return SLOPE * (longest + pen.small / 72) + 0.06


def draw_plot(axes: Axes, plot: Plot, pen: Pen) -> None:
    """Draw the axes and the lines; `name_lines` writes the rest when their place is known."""
    if plot.name and not pen.picture.apart:
        pen.title(axes, plot.name, pad=72 * _names(plot, pen))
    rooms = (pen.width / pen.picture.across - SIDE, plot.height / PIXELS)
    for side, axis, room in zip((axes.xaxis, axes.yaxis), (plot.x, plot.y), rooms, strict=True):
        always = bool(plot.columns) or pen.picture.across > 1
        _scale(axes, side, axis, pen, always_log=always, room=room)
    axes.grid(axis="both" if not plot.columns else "y", color=LINE.light, linewidth=0.6)
    if plot.front:
        x, y = _places(plot, plot.front)
        look = {"color": MUTED.light, "linewidth": 0.9, "linestyle": (0, (3, 2))}
        axes.plot(x, y, drawstyle="steps-post", zorder=1, **look)
    for line in sorted(plot.lines, key=lambda line: line.lane):
        _draw_line(axes, line, plot, pen)
    _name_columns(axes, plot, pen)


def name_lines(axes: Axes, plot: Plot, pen: Pen) -> None:
    """Name levels and points inside the axes, none over another."""
    low, high = axes.get_ylim()
    last = -math.inf
    for level in sorted(plot.levels, key=lambda level: level.value):
        height = _shown(level.value, plot.y)
        place = axes.transData.transform((1, height))[1] / axes.figure.dpi
        # The name of a level too near to the one below would be written over it.
        if not low <= height <= high or place - last < 1.2 * pen.small / 72:
            continue
        last = place
        axes.axhline(height, color=MUTED.light, linewidth=0.6, linestyle=":", zorder=1)
        side = axes.get_yaxis_transform()
        pen.note(axes, level.name, (0, height), side, (2, 2), size=0.8 * pen.size)
    if names_points(plot):
        _name_points(axes, plot, pen)


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
    """Write each name next to its point, at the first place that is free."""
    dpi = axes.figure.dpi
    dot = 0.6 * pen.size / 72 * dpi
    points = [axes.transData.transform(_places_of(line, plot)) for line in plot.lines]
    taken = [Bbox.from_extents(x - dot, y - dot, x + dot, y + dot) for x, y in points]
    inside = axes.get_window_extent()
    for line, (x, y) in zip(plot.lines, points, strict=True):
        name = shortened(line.label, 28)
        half, tall = width(name, pen.size) / 2 * dpi, 1.15 * pen.size / 72 * dpi
        places = [
            Bbox.from_bounds(
                x + right * (half + 1.5 * dot) - half,
                y + up * (dot + tall / 2) - tall / 2 + far,
                2 * half,
                tall,
            )
            for steps in range(4)
            for right, up in AROUND
            for far in (up * steps * 0.8 * tall,)
        ]
        free = (
            box
            for box in places
            if not any(box.overlaps(other) for other in taken)
            and inside.x0 <= box.x0
            and box.x1 <= inside.x1
            and inside.y0 <= box.y0
            and box.y1 <= inside.y1 + tall
        )
        if (box := next(free, None)) is None:
            continue
        taken.append(box)
        # The name covers the lines that run under it.
        look = {"ha": "center", "va": "center", "size": pen.size, "color": INK.light, "zorder": 20}
        look["bbox"] = {"facecolor": PAPER.light, "edgecolor": "none", "pad": 0.5}
        middle = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
        x, y = axes.transData.inverted().transform(middle)
        axes.text(x, y, name, **look)


def _places_of(line: Line, plot: Plot) -> tuple[float, float]:
    return _shown(line.points[0].x, plot.x), _shown(line.points[0].y, plot.y)


def _places(plot: Plot, points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [_shown(x, plot.x) for x, _ in points], [_shown(y, plot.y) for _, y in points]


def _shown(value: float, axis: Axis) -> float:
    return gib(value) if axis.kind == "bytes" else value


def _scale(axes: Axes, side: Side, axis: Axis, pen: Pen, *, always_log: bool, room: float) -> None:
    """Set a logarithmic scale, or a linear one if the values lie near each other or are zero.

    The title says which, in lines of at most `room` inches.
    """
    if axis.ticks is not None:
        _name(axes, side, axis, axis.ticks, pen, room)
        return
    values = [_shown(value, axis) for value in axis.values] or [1.0]
    low, high = min(values), max(values)
    name = "x" if side is axes.xaxis else "y"
    log = axis.log and low > 0 and (always_log or high > LOG_FROM * low)
    ticks, ends = framed(values, log=log, from_zero=axis.kind != "number")
    axes.set(**{f"{name}scale": "log" if log else "linear", f"{name}lim": ends})
    side.set_major_locator(FixedLocator(ticks))
    side.set_minor_locator(NullLocator())
    write = TICK_TEXTS[axis.kind]
    names = {tick: write(tick) for tick in ticks}
    if name == "x":
        places = np.array([math.log(tick) if log else tick for tick in ticks])
        inches = room * (places - places[0]) / (places[-1] - places[0])
        names = _apart(names, list(inches), pen)
    side.set_major_formatter(FuncFormatter(lambda value, _: names.get(value, "")))
    axes.tick_params(axis=name, length=0.3 * pen.size)
    title = f"GiB {axis.title}" if axis.kind == "bytes" else axis.title
    lines = wrapped(f"{title}, {scale_name(log=log)}", pen.small, room)
    side.set_label_text("\n".join(lines), size=pen.small, color=MUTED.light)


def _name(
    axes: Axes, side: Side, axis: Axis, ticks: Mapping[float, str], pen: Pen, room: float
) -> None:
    """Set the ends, the names and the title of an axis with names in place of numbers."""
    ends = min(axis.values), max(axis.values)
    (axes.set_xlim if side is axes.xaxis else axes.set_ylim)(*ends)
    side.set_ticks(list(ticks), list(ticks.values()))
    if side is axes.yaxis:
        axes.tick_params(axis="y", labelcolor=INK.light)
    lines = wrapped(axis.title, pen.small, room)
    side.set_label_text("\n".join(lines), size=pen.small, color=MUTED.light)


def _apart(names: Mapping[float, str], inches: Sequence[float], pen: Pen) -> dict[float, str]:
    """Return the names of ticks that have room: the first, the last, powers of ten, others."""
    places, kept = dict(zip(names, inches, strict=True)), {}
    ends = (min(names), max(names))
    for tick in sorted(names, key=lambda tick: (tick not in ends, f"{tick:e}"[0] != "1", tick)):
        half = width(names[tick], pen.small) / 2 + 0.03
        if all(abs(places[tick] - place) > half + other for place, other in kept.values()):
            kept[tick] = places[tick], half
    return {tick: names[tick] for tick in kept}


def _name_columns(axes: Axes, plot: Plot, pen: Pen) -> None:
    """Write each model over its own line; of models too near to each other only the first."""
    if not plot.columns:
        return
    last = -math.inf
    for count, name in sorted(plot.columns.items()):
        axes.axvline(count, color=LINE.light, linewidth=0.6, zorder=0)
        place = axes.transLimits.transform(axes.transScale.transform((count, 1)))[0]
        place *= pen.width - SIDE
        if place - last < 1.25 * pen.small / 72 / SLOPE:
            continue
        last = place
        turn = {"rotation": ANGLE, "rotation_mode": "anchor"}
        # The layout makes the axes narrower by what a name needs beyond them.
        name = fitted(name, pen.small, 0.4 * pen.width)
        pen.note(axes, name, (count, 1), axes.get_xaxis_transform(), (0, 3), **turn)
