"""Pen: the sizes, colours, marks and words that all drawings share."""

from collections.abc import Collection, Sequence
from itertools import accumulate, pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import Transform, offset_copy

from ...arithmetic.labels import shortened
from ...style import (
    BAR_HATCH_DEPTH,
    HATCHES,
    INK,
    MUTED,
    PAPER,
    TRACK,
    Mark,
    hatch_colour,
    mark_hatch,
)
from ..picture import Areas, Bar, Bars, Icicle, Key, Panel, Picture, Plot
from .lettering import fitted, width, wrapped

# Inches of a heading's mark, and of the gap between its name and its numbers.
MARK, BETWEEN = 0.17, 0.12
# Inches that the ticks and the title of a vertical axis take at most.
SIDE = 0.55
# The marks of a legend, the gap behind them, and that between columns, in letters.
HANDLE, BEHIND, COLUMN = 1, 0.6, 1.4
# More points than this have no room for their names.
MOST_NAMES = 8
# Shapes of one size do not look equally large.
OPTICAL_SIZE = dict.fromkeys("^v<>ph", 1.13) | {"D": 0.86, "*": 1.4, "s": 0.95}
NAMED = {"@ink": INK, "@muted": MUTED, "@track": TRACK}


class Pen:
    """The size of lines and letters, and the colours and marks of one picture."""

    def __init__(self, picture: Picture, width: float, size: float) -> None:
        self.width, self.size, self.small = width, size, 0.92 * size
        self.line = 1.5 * size / 72
        self.picture = picture
        marks = enumerate(picture.marks.values())
        self._colours = NAMED | {f"@mark-{number}": mark.colour for number, mark in marks}
        headings = _headings(picture.panels)
        # The layout pads both sides; areas have an axis on their left.
        side = SIDE if any(isinstance(each, Areas) for each in headings) else 0.1
        self.room = self.width - side
        self.is_wrapped = any(self._is_wide(each) for each in headings)
        lines = [len(self._numbers(each)) for each in headings] if self.is_wrapped else []
        # Lines of a heading, its name included.
        self.heading_lines = 1 + max(lines, default=0)

    def _is_wide(self, heading: Bar | Areas | Icicle) -> bool:
        name = width(shortened(heading.label), self.size, bold=True)
        return MARK + name + BETWEEN + width(heading.value.binary, self.size) > self.room

    def _numbers(self, heading: Bar | Areas | Icicle) -> list[str]:
        return wrapped(heading.value.binary, self.small, self.room - MARK, most=2)

    def colour(self, name: str) -> str:
        """Return a picture's colour on white paper."""
        return self._colours[name].light if name in self._colours else name

    def fill(self, name: str) -> dict[str, Any]:
        """Return matplotlib's arguments for a block of a picture's colour, with its hatch."""
        colour, hatch = self.colour(name), mark_hatch(name, self.picture.marks)
        if not hatch:
            return {"facecolor": colour} | hatched(colour)
        lines = hatch_colour(colour, PAPER.light, BAR_HATCH_DEPTH)
        return {"facecolor": colour, "hatch": 4 * hatch, "edgecolor": lines, "linewidth": 0}

    def mark(self, mark: Mark, origin: str, size: float) -> dict[str, Any]:
        """Return matplotlib's arguments for a mark, filled if it was measured."""
        colour = mark.colour.light
        return {
            "marker": mark.shape,
            "markersize": size * OPTICAL_SIZE.get(mark.shape, 1),
            "markerfacecolor": colour if origin == "measured" else PAPER.light,
            "markeredgecolor": colour,
            "markeredgewidth": 0.17 * size,
            "linestyle": "none",
        }

    def heading(
        self, axes: Axes, y: float, place: Transform, heading: Bar | Areas | Icicle
    ) -> None:
        """Write an optimizer with its mark on the left and its numbers on the right."""
        label = heading.mark if isinstance(heading, Bar) else heading.label
        style = self.mark(self.picture.marks[label], heading.origin, 0.75 * self.size)
        points = 72 * self.line

        def moved(right: float, up: float) -> Transform:
            return offset_copy(
                place, axes.get_figure(root=True), right, up * points, units="points"
            )

        up = 0.35 + 0.9 * (self.heading_lines - 1)
        axes.add_artist(Line2D([0], [y], transform=moved(4, up + 0.22), clip_on=False, **style))
        look = {"size": self.size, "color": INK.light}
        name = fitted(shortened(heading.label), self.size, self.room - MARK, bold=True)
        left = 72 * MARK
        axes.text(0, y, name, transform=moved(left, up), weight="bold", **look)
        if not self.is_wrapped:
            value = heading.value.binary
            axes.text(1, y, value, transform=moved(0, up), ha="right", **look)
            return
        look["size"] = self.small
        for number, line in enumerate(self._numbers(heading), 1):
            axes.text(0, y, line, transform=moved(left, up - 0.9 * number), **look)

    def note(
        self,
        axes: Axes,
        words: str,
        at: tuple[float, float],
        place: Transform,
        offset: tuple[float, float],
        **look: Any,
    ) -> None:
        """Write small words that many points away from a point."""
        look = {"size": self.small, "color": MUTED.light} | look
        axes.annotate(words, at, xytext=offset, xycoords=place, textcoords="offset points", **look)

    def title(self, axes: Axes, name: str, pad: float = 0) -> None:
        """Write the name of a panel above it, on several lines if need be."""
        look = {"size": self.size, "weight": "bold", "color": MUTED.light}
        lines = self.title_lines(name)
        axes.set_title("\n".join(lines), loc="left", pad=0.4 * self.size + pad, **look)

    def title_lines(self, name: str) -> list[str]:
        """Return the lines of a panel's name."""
        room = self.width / self.picture.across - SIDE
        return wrapped(name, self.size, room, bold=True, most=2)

    def legend(self, figure: Figure) -> None:
        """Explain the lines and the keys below the panels."""
        labels: dict[str, set[str]] = {}
        for panel in self.picture.panels:
            if isinstance(panel, Plot) and not names_points(panel):
                for line in panel.lines:
                    labels.setdefault(line.label, set()).update(p.origin for p in line.points)
        labels = {label: labels[label] for label in self.picture.marks if label in labels}
        handles = [self._line_handle(label, labels[label]) for label in labels]
        handles += [self._key_handle(key) for key in self.picture.keys]
        names = [shortened(label, 48) for label in labels]
        names += [key.text for key in self.picture.keys]
        # The handle and the gap behind it are narrower than a name's own margin.
        texts = [fitted(name, self.small, self.width - 2.5 * MARK) for name in names]
        if not texts:
            return
        legend = figure.legend(
            handles,
            # A label that begins with an underscore would be left out.
            ["x"] * len(handles),
            ncols=self._legend_columns(texts),
            loc="upper left",
            bbox_to_anchor=(0, 0),
            frameon=False,
            fontsize=self.small,
            labelcolor=MUTED.light,
            borderpad=0,
            borderaxespad=0.6,
            handlelength=HANDLE,
            handletextpad=BEHIND,
            columnspacing=COLUMN,
        )
        for words, text in zip(legend.get_texts(), texts, strict=True):
            words.set_text(text)

    def _legend_columns(self, texts: Sequence[str]) -> int:
        """Return the most columns of a legend that are no wider than the picture."""
        widths, letter = [width(text, self.small) for text in texts], self.small / 72
        for columns in range(min(len(texts), 6), 1, -1):
            # The first columns take what is left over.
            least, more = divmod(len(texts), columns)
            ends = list(accumulate([least + 1] * more + [least] * (columns - more)))
            wide = sum(max(widths[first:end]) for first, end in pairwise([0, *ends]))
            wide += (columns * (HANDLE + BEHIND) + (columns - 1) * COLUMN) * letter
            if wide <= 0.98 * self.width:
                return columns
        return 1

    def _line_handle(self, label: str, origins: Collection[str]) -> Line2D:
        origin = "measured" if "measured" in origins else ""
        return Line2D([], [], **self.mark(self.picture.marks[label], origin, 0.75 * self.size))

    def _key_handle(self, key: Key) -> Line2D | Patch:
        ink, size = self.colour(key.colour or "@muted"), 0.72 * self.size
        if key.symbol == "block":
            return Patch(facecolor=ink, **hatched(ink))
        if key.symbol == "empty":
            return Patch(facecolor=TRACK.light, edgecolor=ink, linewidth=0.7)
        if key.symbol == "quartiles":
            return Patch(facecolor=ink, alpha=0.3)
        if key.symbol in ("stroke", "bracket"):
            return Line2D([], [], color=INK.light, linewidth=0.12 * self.size)
        if key.symbol == "tick":
            tick = {"marker": "|", "markersize": 1.3 * size, "markeredgewidth": 0.17 * self.size}
            return Line2D([], [], color=INK.light, linestyle="none", **tick)
        shape = {"marker": "v" if key.symbol == "peak" else "o", "markersize": size}
        face = PAPER.light if key.symbol == "sample" else ink
        return Line2D([], [], color=ink, markerfacecolor=face, linestyle="none", **shape)


def hatched(colour: str) -> dict[str, Any]:
    """Return matplotlib's arguments for the hatch of a block's colour."""
    if colour not in HATCHES:
        return {}
    return {"hatch": 4 * HATCHES[colour], "edgecolor": hatch_colour(colour), "linewidth": 0}


def names_points(plot: Plot) -> bool:
    """Return whether the points are few enough to have their names next to them."""
    return plot.front is not None and len(plot.lines) <= MOST_NAMES


def _headings(panels: Sequence[Panel]) -> list[Bar | Areas | Icicle]:
    bars = [bar for panel in panels if isinstance(panel, Bars) for bar in panel.bars]
    return [*bars, *(panel for panel in panels if isinstance(panel, Areas | Icicle))]
