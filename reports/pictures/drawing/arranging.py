"""Arranging: the places of a picture's panels, with room for the words around each."""

from itertools import accumulate

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

# Inches of white at the sides of a panel and its words.
SIDE = 1 / 24


def arrange(figure: Figure, gap: float) -> None:
    """Place the panels in their grid: equally wide, and of heights in its ratios.

    The words around each panel are measured where it is now; matplotlib's own layout measures them
    twice. `gap` is the inches of white above and below. Panels without room stay where they are.
    """
    cells = {axes: cell for axes in figure.axes if (cell := axes.get_subplotspec())}
    grid = next(iter(cells.values())).get_gridspec()
    rows, columns = grid.get_geometry()
    left, right = [SIDE] * columns, [SIDE] * columns
    above, below = [gap] * rows, [gap] * rows
    for axes, cell in cells.items():
        first, last, row = cell.colspan.start, cell.colspan.stop - 1, cell.rowspan.start
        words = _around(axes)
        left[first] = max(left[first], words.x0 + SIDE)
        right[last] = max(right[last], words.x1 + SIDE)
        above[row] = max(above[row], words.y1 + gap)
        below[row] = max(below[row], words.y0 + gap)
    width, height = figure.get_size_inches()
    wide = (width - sum(left) - sum(right)) / columns
    ratios: list[float] = np.asarray(grid.get_height_ratios()).tolist()
    scale = (height - sum(above) - sum(below)) / sum(ratios)
    if wide <= 0 or scale <= 0:
        return
    tall = [scale * ratio for ratio in ratios]
    before = accumulate((sum(each) + wide for each in zip(left, right, strict=True)), initial=0)
    xs = [start + margin for start, margin in zip(before, left, strict=False)]
    over = accumulate((sum(each) for each in zip(above, tall, below, strict=True)), initial=0)
    tops = [start + margin for start, margin in zip(over, above, strict=False)]
    for axes, cell in cells.items():
        first, last, row = cell.colspan.start, cell.colspan.stop - 1, cell.rowspan.start
        low = height - tops[row] - tall[row]
        box = Bbox.from_extents(xs[first], low, xs[last] + wide, low + tall[row])
        axes.set_position((box.x0 / width, box.y0 / height, box.width / width, box.height / height))


def _around(axes: Axes) -> Bbox:
    """Return the inches that words stand out of a panel: x0 to its left, y0 below it."""
    panel, words = axes.get_window_extent(), axes.get_tightbbox(for_layout_only=True) or axes.bbox
    ends = (panel.x0 - words.x0, panel.y0 - words.y0, words.x1 - panel.x1, words.y1 - panel.y1)
    return Bbox.from_extents(*(end / axes.figure.dpi for end in ends))
