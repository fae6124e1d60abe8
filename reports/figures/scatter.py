"""Scatter: points with their names beside them, on two linear axes or logarithmic ones where the
values lie far apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from ..arithmetic.labels import shortened
from ..style import INK, LINE, MUTED, PAPER, Mark
from .canvas import Canvas, Frame, text_width
from .spacing import Box, free_place
from .symbols import Key, mark_style

LEFT, RIGHT, HEIGHT = 0.42, 0.12, 2.0
# Beyond this ratio a linear axis would press the small ones together.
LOG_FROM = 10
# Inches between dots that would hide each other, and the dots that have room for their names.
TWIN, MOST_NAMES = 0.06, 8


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A point in the caller's units, with the ends of the interval of its x where there is one."""

    label: str
    mark: Mark
    origin: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None


def draw_scatter(
    canvas: Canvas,
    dots: Sequence[Dot],
    line: Sequence[tuple[float, float]],
    *,
    across: str,
    up: str,
) -> None:
    """Draw the dots into the canvas, above a body of `scatter_body`; `line` is drawn behind them,
    `across` and `up` name the axes.
    """
    frame, top = canvas.frame, 1.3 * canvas.frame.line
    axes = canvas.axes(LEFT, frame.width - RIGHT, top, top + HEIGHT)
    axes.set_axisbelow(True)
    axes.grid(color=LINE.light, linewidth=0.6)
    _scale(
        axes,
        axes.xaxis,
        [end for dot in dots for end in (dot.x, dot.low, dot.high) if end is not None],
    )
    _scale(axes, axes.yaxis, [dot.y for dot in dots])
    canvas.text(0.02, top - 0.5 * frame.line, up, colour=MUTED, size=frame.small)
    canvas.text(LEFT, top + HEIGHT + 1.95 * frame.line, across, colour=MUTED, size=frame.small)
    if len(line) > 1:
        axes.plot(
            *zip(*line, strict=True),
            color=MUTED.light,
            linewidth=0.9,
            linestyle=(0, (3, 2)),
            zorder=1,
        )
    places = [_inches(axes, dot, frame, top) for dot in dots]
    for number, (dot, place) in enumerate(zip(dots, places, strict=True)):
        _draw(
            axes, dot, frame, lane=sum(math.dist(place, other) < TWIN for other in places[:number])
        )
    if len(dots) <= MOST_NAMES:
        _name(canvas, axes, dots, top)


def dot_keys(dots: Sequence[Dot]) -> list[Key]:
    """The names of the dots as a legend, where they are too many to stand beside them."""
    return (
        []
        if len(dots) <= MOST_NAMES
        else [Key(dot.mark.shape, shortened(dot.label, 28), dot.mark.colour) for dot in dots]
    )


def scatter_body(frame: Frame) -> float:
    """The height in inches of what `draw_scatter` draws."""
    return HEIGHT + 3.5 * frame.line


def _draw(axes: Axes, dot: Dot, frame: Frame, *, lane: int) -> None:
    """The dot; where it coincides with earlier ones it is smaller, so that all show."""
    colour = dot.mark.colour.light
    if dot.low is not None and dot.high is not None:
        axes.plot(
            (dot.low, dot.high),
            (dot.y, dot.y),
            color=colour,
            linewidth=1.2,
            solid_capstyle="butt",
            zorder=2,
        )
    axes.plot(
        dot.x,
        dot.y,
        zorder=3 + lane,
        clip_on=False,
        **mark_style(dot.mark, dot.origin, 0.9 * 0.7**lane * frame.size),
    )


def _name(canvas: Canvas, axes: Axes, dots: Sequence[Dot], top: float) -> None:
    """Write each name where it covers no dot and no other name, if there is such a place around its
    dot.
    """
    frame = canvas.frame
    places = [_inches(axes, dot, frame, top) for dot in dots]
    size = 0.9 * frame.size / 72
    taken = [Box(x - size / 2, y - size / 2, x + size / 2, y + size / 2) for x, y in places]
    taken += [_interval(axes, dot, frame, top) for dot in dots if dot.low is not None]
    bounds = Box(LEFT, top, frame.width - 0.02, top + HEIGHT)
    for dot, place in zip(dots, places, strict=True):
        text = shortened(dot.label, 28)
        box = free_place(
            place, text_width(text, frame.size), 0.8 * frame.line, 0.85 * size, taken, bounds
        )
        taken.append(box)
        # The grid stops short of the name.
        canvas.block(
            box.left,
            box.top,
            box.right - box.left,
            box.bottom - box.top,
            color=PAPER.light,
            zorder=0.5,
        )
        canvas.text(box.left, box.bottom - 0.22 * frame.line, text, colour=INK)


def _interval(axes: Axes, dot: Dot, frame: Frame, top: float) -> Box:
    (left, y), (right, _) = (
        _inches(axes, replace(dot, x=end or dot.x), frame, top) for end in (dot.low, dot.high)
    )
    return Box(left, y - 0.02, right, y + 0.02)


def _inches(axes: Axes, dot: Dot, frame: Frame, top: float) -> tuple[float, float]:
    across, up = axes.transLimits.transform(axes.transScale.transform((dot.x, dot.y)))
    return LEFT + across * (frame.width - LEFT - RIGHT), top + (1 - up) * HEIGHT


def _scale(axes: Axes, axis: Axis, values: Sequence[float]) -> None:
    """From zero, or logarithmic where the values are far apart and none is zero."""
    set_scale, set_limits = (
        (axes.set_xscale, axes.set_xlim) if axis is axes.xaxis else (axes.set_yscale, axes.set_ylim)
    )
    smallest, largest = min(values), max(values)
    if smallest > 0 and largest > LOG_FROM * smallest:
        set_scale("log")
        set_limits(smallest / 1.5, largest * 1.5)
        axis.set_major_locator(
            LogLocator(
                subs=(1, 2, 5)
                if largest < 100 * smallest
                else (1, 3)
                if largest < 3000 * smallest
                else (1,)
            )
        )
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    else:
        set_limits(0, 1.15 * largest or 1)
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
