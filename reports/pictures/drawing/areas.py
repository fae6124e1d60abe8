"""Areas: stacked bytes along a training step, under the reserved ones."""

from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Polygon, Rectangle
from matplotlib.path import Path

from ...style import INK, LINE, MUTED, TRACK
from ...units import gib
from ...words import phase_name
from ..picture import SHORT, Areas
from ..scales import framed, number_text, scale_name
from .lettering import one_line, width
from .pen import SIDE, Pen, hatched

# Inches of the areas.
HEIGHT = 1.15


def areas_height(pen: Pen) -> float:
    """Return the inches of the areas with their heading."""
    return HEIGHT + (1.7 + 0.9 * pen.heading_lines) * pen.line


def draw_areas(axes: Axes, areas: Areas, pen: Pen, *, named: bool) -> None:
    """Draw the areas of one optimizer, and name their phases if they are to be `named`."""
    pen.heading(axes, 1, axes.transAxes, areas)
    ticks, ends = framed([gib(areas.most)], log=False)
    axes.set(xlim=(0, 1), ylim=ends)
    axes.set_yticks(ticks, list(map(number_text, ticks)))
    axes.tick_params(axis="y", length=0.3 * pen.size)
    axes.grid(axis="y", color=LINE.light, linewidth=0.6)
    axes.set_ylabel(f"GiB, {scale_name(log=False)}", size=pen.small, color=MUTED.light)
    for band in areas.bands[1::2]:
        look = {"transform": axes.get_xaxis_transform(), "linewidth": 0, "zorder": 0}
        wide = band.right - band.left
        axes.add_artist(Rectangle((band.left, 0), wide, 1, facecolor=TRACK.light, **look))
    for last, band in pairwise(areas.bands):
        if last.stretch.step != band.stretch.step:
            axes.axvline(band.left, color=MUTED.light, linewidth=0.7, zorder=4)
    tops = list(accumulate((layer.values for layer in areas.layers), _sums))
    # The highest first: each hides the lower part of the one above it.
    for layer, top in reversed(list(zip(areas.layers, tops, strict=True))):
        look = {"facecolor": layer.colour, "linewidth": 0} | hatched(layer.colour)
        corners = _curve(axes, areas.places, top).T.tolist()
        corners = [(corners[0][0], 0), *corners, (corners[-1][0], 0)]
        axes.add_artist(Polygon(corners, **look))
    reserved = _curve(axes, areas.places, areas.reserved)
    axes.plot(*reserved, color=INK.light, linewidth=0.9, zorder=3)
    place, peak = areas.peak
    axes.plot(
        place,
        gib(peak) + 0.035 * axes.get_ylim()[1],
        marker="v",
        markersize=0.6 * pen.size,
        color=INK.light,
        zorder=5,
        clip_on=False,
    )
    _name_phases(axes, areas, pen, named=named)


def _sums(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return list(map(sum, zip(one, other, strict=True)))


def _curve(axes: Axes, places: Sequence[float], counts: Sequence[int]) -> Any:
    """Return a curve in GiB without the corners that are too small to see."""
    points = list(zip(places, map(gib, counts), strict=True))
    path = axes.transData.transform_path(Path(points))
    path.simplify_threshold = 2.0
    # The last vertex only ends the path.
    corners: Any = path.cleaned(simplify=True).vertices
    return axes.transData.inverted().transform(corners[:-1]).T


def _name_phases(axes: Axes, areas: Areas, pen: Pen, *, named: bool) -> None:
    """Name the phases that are wide enough, and below them the training steps."""
    axes.set_xticks([])
    if not named:
        return
    names = [
        _fitting(phase_name(band.stretch.phase), (band.right - band.left) * (pen.width - SIDE), pen)
        for band in areas.bands
    ]
    axes.set_xticks([(band.left + band.right) / 2 for band in areas.bands], names)
    for step, of_step in groupby(areas.bands, key=lambda band: band.stretch.step):
        members = list(of_step)
        middle = (members[0].left + members[-1].right) / 2
        place, below = axes.get_xaxis_transform(), (0, -4 - 1.35 * pen.size)
        pen.note(axes, f"training step {step}", (middle, 0), place, below, ha="center", va="top")


def _fitting(name: str, inches: float, pen: Pen) -> str:
    """Return a name or its short form, whichever is narrow enough, or nothing."""
    # A tick's text is set anew when it is drawn.
    name = one_line(name)
    names = (name, SHORT.get(name, name), "")
    return next(each for each in names if not each or width(each, pen.small) + 0.05 <= inches)
