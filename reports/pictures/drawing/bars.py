"""Bars: rows of blocks or samples under the names of optimizers."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle

from ...style import INK, LINE, MUTED, ON_BLOCK, PAPER, TRACK
from ...units import Words
from ..picture import Bar, Bars
from .lettering import width
from .pen import Pen

# Inches of a bar, and of the space below it.
BAR, BELOW = 0.16, 0.15


def bars_height(bars: Bars, pen: Pen) -> float:
    """Return the inches of the bars with their name and ticks."""
    title = 0.5 + 1.3 * len(pen.title_lines(bars.name)) if bars.name else 0.3
    return len(bars.bars) * _pitch(pen) + (title + (1.7 if bars.ticks else 0)) * pen.line


def draw_bars(axes: Axes, bars: Bars, pen: Pen) -> None:
    """Draw rows from the top down, y in inches and x in per cent."""
    if bars.name:
        pen.title(axes, bars.name)
    axes.set(xlim=(0, 100), ylim=(len(bars.bars) * _pitch(pen), 0))
    axes.set_yticks([])
    _write_ticks(axes, bars, pen)
    rows = [(bar, (row + 1) * _pitch(pen) - BELOW - BAR / 2) for row, bar in enumerate(bars.bars)]
    ticks = [(place, y) for _, y in rows for place, _ in bars.ticks]
    _strokes(axes, ticks, 0.75 * BAR, color=LINE.light, linewidth=0.7, zorder=0)
    # A line of paper between parts, above the hatches.
    edges = [(part.left, y) for bar, y in rows if not bar.samples for part in bar.parts[1:]]
    _strokes(axes, edges, BAR / 2, color=PAPER.light, linewidth=0.7)
    medians = [(bar.median, y) for bar, y in rows if bar.samples and bar.median is not None]
    thick = 0.17 * pen.size
    _strokes(axes, medians, 0.6 * BAR, color=INK.light, linewidth=thick, zorder=3)
    for bar, y in rows:
        pen.heading(axes, y - BAR / 2, axes.get_yaxis_transform(), bar)
        if bar.samples:
            _draw_samples(axes, bar, y, pen)
        else:
            _draw_parts(axes, bar, y, pen)


def _strokes(axes: Axes, places: Sequence[tuple[float, float]], reach: float, **look: Any) -> None:
    """Draw upright lines through some places, which reach that far up and down."""
    lines = [((x, y - reach), (x, y + reach)) for x, y in places]
    axes.add_collection(LineCollection(lines, **look), autolim=False)


def _block(axes: Axes, y: float, tall: float, left: float, wide: float, **look: Any) -> None:
    """Draw a block whose middle is at the height y."""
    # Rectangles by themselves: matplotlib's own bars cost several times as much.
    axes.add_artist(Rectangle((left, y - tall / 2), wide, tall, **look))


def _draw_parts(axes: Axes, bar: Bar, y: float, pen: Pen) -> None:
    if bar.outline is not None:
        outline = {"facecolor": TRACK.light, "edgecolor": MUTED.light, "linewidth": 0.7}
        _block(axes, y, 0.7 * BAR, 0, bar.outline, **outline)
    for part in bar.parts:
        look = {"linewidth": 0} | pen.fill(part.colour)
        _block(axes, y, BAR, part.left, part.width, **look)
    size = 0.83 * pen.size
    look = {"size": size, "color": ON_BLOCK, "ha": "center", "va": "center_baseline"}
    for part in bar.parts:
        text = part.text.binary if part.text else ""
        if text and part.width / 100 * pen.width > width(text, size) + 0.07:
            # No line of a hatch crosses a letter.
            box = {"facecolor": pen.colour(part.colour), "edgecolor": "none", "pad": 0.6}
            axes.text(part.left + part.width / 2, y, text, bbox=box, **look)


def _draw_samples(axes: Axes, bar: Bar, y: float, pen: Pen) -> None:
    mark = pen.picture.marks[bar.mark]
    axes.plot((0, 100), (y, y), color=TRACK.light, linewidth=1.2, zorder=0)
    if bar.band:
        low, high = bar.band
        _block(axes, y, BAR, low, high - low, color=mark.colour.light, alpha=0.3, linewidth=0)
    style = pen.mark(mark, bar.origin, 0.5 * pen.size)
    axes.plot(bar.samples, [y] * len(bar.samples), clip_on=False, **style)
    if bar.whisker:
        axes.plot(bar.whisker, (y, y), color=INK.light, linewidth=0.12 * pen.size)


def _pitch(pen: Pen) -> float:
    return (0.25 + 0.9 * pen.heading_lines) * pen.line + BAR + BELOW


def _write_ticks(axes: Axes, bars: Bars, pen: Pen) -> None:
    """Mark every tick, and name as many as have room."""
    texts = [_words(text) for _, text in bars.ticks]
    if not texts:
        return
    places = [place / 100 * pen.width for place, _ in bars.ticks]
    widest = 1.2 * max(width(text, pen.small) for text in texts)
    closest = min((after - place for place, after in pairwise(places)), default=widest)
    every = math.ceil(widest / closest)
    # The last tick encloses the data, and is named with each so-manieth before it.
    names = [
        text if (len(texts) - 1 - number) % every == 0 else "" for number, text in enumerate(texts)
    ]
    axes.set_xticks([place for place, _ in bars.ticks], names)
    axes.tick_params(axis="x", length=0.3 * pen.size)
    labels = axes.get_xticklabels()
    if places[0] < width(texts[0], pen.small) / 2:
        labels[0].set_horizontalalignment("left")
    if places[-1] > pen.width - width(texts[-1], pen.small) / 2:
        labels[-1].set_horizontalalignment("right")


def _words(words: Words) -> str:
    return words if isinstance(words, str) else words.binary
