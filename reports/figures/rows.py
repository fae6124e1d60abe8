"""Rows: the frame of a horizontal chart, one row an optimizer, its name and its exact figures
written above its bar.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..arithmetic.labels import shortened
from ..style import INK, LINE, MUTED, ON_BLOCK, PAPER, Mark, block_colour
from ..units import three_digits
from .canvas import Canvas, Frame, text_width
from .symbols import ORIGINS, Key, mark_style

BAR, BELOW = 0.16, 0.15
INSET, RIGHT = 0.05, 0.2


@dataclass(frozen=True, kw_only=True)
class Row:
    """What stands above a bar: the optimizer on the left, exact figures on the right, under the
    name of its group.
    """

    group: str
    mark: Mark
    origin: str
    label: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the bar of a row goes: axes with x in the caller's units, and its middle on their y
    axis.
    """

    axes: Axes
    y: float
    frame: Frame

    def stack(self, parts: Sequence[tuple[str, float]]) -> None:
        """A bar of blocks, each with its length written inside where there is room."""
        lengths = [length for _, length in parts]
        lefts = list(accumulate(lengths, initial=0.0))[:-1]
        colours = [block_colour(name).light for name, _ in parts]
        edge, inches = PAPER.light, (self.frame.width - INSET - RIGHT) / self.axes.get_xlim()[1]
        self.axes.barh(
            [self.y] * len(parts), lengths, BAR, lefts, color=colours, edgecolor=edge, linewidth=0.5
        )
        for left, length in zip(lefts, lengths, strict=True):
            text, size = three_digits(length), 0.83 * self.frame.size
            if length * inches > text_width(text, size) + 0.09:
                self.axes.text(
                    left + length / 2,
                    self.y,
                    text,
                    size=size,
                    color=ON_BLOCK,
                    ha="center",
                    va="center_baseline",
                )


class RowChart:
    """A canvas with a place for the bar of each row, in one scale for all groups of rows or in one
    for each.

    The name of each group stands over its rows where `grouped` says so: not in a run of one group,
    whose context tells it.
    """

    def __init__(
        self,
        frame: Frame,
        rows: Sequence[Row],
        *,
        title: str,
        context: str,
        axis: str,
        scale: Callable[[Axes, slice], None],
        scale_groups: bool = False,
        grouped: bool = False,
        legend: Sequence[Key] = (),
    ) -> None:
        self.frame = frame
        self._rows, self._scale_axes = rows, scale
        self._grouped = grouped
        self._wrapped = any(_natural_width(row, frame) > frame.width for row in rows)
        sizes = [len(list(group)) for _, group in groupby(rows, key=lambda row: row.group)]
        blocks = [[size] for size in sizes] if scale_groups else [sizes]
        heights = [
            sum(self._heading + size * self._pitch for size in block) + 1.3 * frame.line
            for block in blocks
        ]
        body = sum(heights) + frame.line
        self.canvas = Canvas(
            frame, body=body, title=title, context=context, legend=legend, foot=ORIGINS
        )
        self.canvas.text(0.02, body - 0.35 * frame.line, axis, colour=MUTED, size=frame.small)
        self.places: list[Place] = []
        top = 0.0
        for block, height in zip(blocks, heights, strict=True):
            self._write_block(block, top, height)
            top += height

    @property
    def _heading(self) -> float:
        return 1.9 * self.frame.line if self._grouped else 0.0

    @property
    def _pitch(self) -> float:
        return (2.1 if self._wrapped else 1.15) * self.frame.line + BAR + BELOW

    def _write_block(self, sizes: Sequence[int], top: float, height: float) -> None:
        """The groups of one scale: their words, a place for each bar, the ticks below."""
        depth = height - 1.3 * self.frame.line
        axes = self.canvas.axes(INSET, self.frame.width - RIGHT, top, top + depth)
        axes.set_ylim(depth, 0)
        axes.set_yticks([])
        first, y = len(self.places), 0.0
        for size in sizes:
            if self._grouped:
                name = self._rows[len(self.places)].group
                self.canvas.text(
                    0.02, top + y + 1.25 * self.frame.line, name, colour=MUTED, weight="bold"
                )
            y += self._heading
            for row in self._rows[len(self.places) : len(self.places) + size]:
                self._write_row(row, top + y)
                y += self._pitch
                self.places.append(Place(axes=axes, y=y - BELOW - BAR / 2, frame=self.frame))
        self._scale_axes(axes, slice(first, len(self.places)))
        self._rule(axes, [place.y for place in self.places[first:]])

    def _write_row(self, row: Row, y: float) -> None:
        frame, baseline = self.frame, y + 0.8 * self.frame.line
        self.canvas.mark(
            INSET + 0.05, baseline - 0.045, mark_style(row.mark, row.origin, 0.75 * frame.size)
        )
        self.canvas.text(INSET + 0.17, baseline, shortened(row.label), weight="bold")
        if self._wrapped:
            self.canvas.text(
                INSET + 0.17, baseline + 0.93 * frame.line, row.value, size=frame.small
            )
        else:
            self.canvas.text(frame.width - RIGHT, baseline, row.value, colour=INK, align="right")

    def _rule(self, axes: Axes, middles: Sequence[float]) -> None:
        """The ticks' lines behind the bars, and not behind the words."""
        low, high = axes.get_xlim()
        ticks = list(axes.get_xticks())
        ends = [
            (tick, y - 0.75 * BAR, y + 0.75 * BAR)
            for y in middles
            for tick in ticks
            if low <= tick <= high
        ]
        axes.vlines(*zip(*ends, strict=True), color=LINE.light, linewidth=0.7, zorder=0)
        if low == 0 and 0 in ticks:
            axes.get_xticklabels()[ticks.index(0)].set_horizontalalignment("left")


def linear_scale(axes: Axes, highest: float) -> None:
    """A scale from zero to a little above the highest, with a handful of round ticks."""
    axes.set_xlim(0, 1.01 * highest)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _natural_width(row: Row, frame: Frame) -> float:
    return (
        INSET
        + RIGHT
        + 0.4
        + text_width(shortened(row.label), frame.size, "bold")
        + text_width(row.value, frame.size)
    )
