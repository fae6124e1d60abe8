"""Bars: rows of blocks or samples under the names of optimizers."""

from matplotlib.axes import Axes

from ...style import INK, LINE, MUTED, ON_BLOCK, PAPER, TRACK
from ...units import Words
from ..picture import Bar, Bars
from .pen import LETTER, Pen

# Inches of a bar, and of the space below it.
BAR, BELOW = 0.16, 0.15


def bars_height(bars: Bars, pen: Pen) -> float:
    """Return the inches of the bars with their name and ticks."""
    around = (1.8 if bars.name else 0.3) + (1.5 if bars.ticks else 0)
    return len(bars.bars) * _pitch(pen) + around * pen.line


def draw_bars(axes: Axes, bars: Bars, pen: Pen) -> None:
    """Draw rows from the top down, y in inches and x in per cent."""
    if bars.name:
        pen.title(axes, bars.name)
    axes.set(xlim=(0, 100), ylim=(len(bars.bars) * _pitch(pen), 0))
    axes.set_yticks([])
    axes.set_xticks([place for place, _ in bars.ticks], [_words(text) for _, text in bars.ticks])
    if bars.ticks and bars.ticks[0][0] == 0:
        axes.get_xticklabels()[0].set_horizontalalignment("left")
    for number, bar in enumerate(bars.bars):
        y = (number + 1) * _pitch(pen) - BELOW - BAR / 2
        pen.heading(axes, y - BAR / 2, axes.get_yaxis_transform(), bar)
        ticks = [place for place, _ in bars.ticks]
        reach = 0.75 * BAR
        axes.vlines(ticks, y - reach, y + reach, color=LINE.light, linewidth=0.7, zorder=0)
        if bar.samples:
            _draw_samples(axes, bar, y, pen)
        else:
            _draw_parts(axes, bar, y, pen)


def _draw_parts(axes: Axes, bar: Bar, y: float, pen: Pen) -> None:
    if bar.outline is not None:
        outline = {"facecolor": TRACK.light, "edgecolor": MUTED.light, "linewidth": 0.7}
        axes.barh(y, bar.outline, 0.7 * BAR, **outline)
    widths, lefts = [part.width for part in bar.parts], [part.left for part in bar.parts]
    colours = [pen.colour(part.colour) for part in bar.parts]
    edge = {"edgecolor": PAPER.light, "linewidth": 0.5}
    axes.barh([y] * len(widths), widths, BAR, lefts, color=colours, **edge)
    size = 0.83 * pen.size
    look = {"size": size, "color": ON_BLOCK, "ha": "center", "va": "center_baseline"}
    for part in bar.parts:
        text = part.text.binary if part.text else ""
        if part.width / 100 * (pen.width - 0.1) > len(text) * LETTER * size / 72 + 0.09:
            axes.text(part.left + part.width / 2, y, text, **look)


def _draw_samples(axes: Axes, bar: Bar, y: float, pen: Pen) -> None:
    mark = pen.picture.marks[bar.mark]
    axes.plot((0, 100), (y, y), color=TRACK.light, linewidth=1.2, zorder=0)
    if bar.band:
        low, high = bar.band
        axes.barh(y, high - low, BAR, low, color=mark.colour.light, alpha=0.3)
    style = pen.mark(mark, bar.origin, 0.5 * pen.size)
    axes.plot(bar.samples, [y] * len(bar.samples), clip_on=False, **style)
    if bar.whisker:
        axes.plot(bar.whisker, (y, y), color=INK.light, linewidth=0.12 * pen.size)
    if bar.median is not None:
        tick = {"color": INK.light, "linewidth": 0.17 * pen.size}
        axes.vlines(bar.median, y - 0.6 * BAR, y + 0.6 * BAR, zorder=3, **tick)


def _pitch(pen: Pen) -> float:
    return (2.1 if pen.is_wrapped else 1.15) * pen.line + BAR + BELOW


def _words(words: Words) -> str:
    return words if isinstance(words, str) else words.binary
