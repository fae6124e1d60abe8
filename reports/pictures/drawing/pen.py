"""Pen: the sizes, colours, marks and words that all drawings share."""

from collections.abc import Collection, Sequence
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.transforms import Transform, offset_copy

from ...arithmetic.labels import shortened
from ...style import INK, MUTED, PAPER, TRACK, Mark
from ..picture import Areas, Bar, Bars, Icicle, Key, Panel, Picture, Plot

# The mean width of a letter, in its size.
LETTER = 0.56
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
        self.is_wrapped = any(self._is_wide(each) for each in _headings(picture.panels))

    def _is_wide(self, heading: Bar | Areas | Icicle) -> bool:
        letters = len(shortened(heading.label)) + len(heading.value.binary)
        return letters * LETTER * self.size / 72 > self.width - 0.5

    def colour(self, name: str) -> str:
        """Return a picture's colour on white paper."""
        return self._colours[name].light if name in self._colours else name

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

    def fit(self, words: Text, inches: float) -> None:
        """Cut a text in its middle until it is no wider."""
        text = words.get_text()
        if len(text) > 200:
            words.set_text(shortened(text, 200))
        while (width := words.get_window_extent().width / words.figure.dpi) > inches:
            text = words.get_text()
            words.set_text(shortened(text, min(len(text) - 1, int(len(text) * inches / width))))

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

        up = 1.2 if self.is_wrapped else 0.35
        axes.add_artist(Line2D([0], [y], transform=moved(4, up + 0.22), clip_on=False, **style))
        look = {"size": self.size, "color": INK.light}
        name = axes.text(
            0, y, shortened(heading.label), transform=moved(12, up), weight="bold", **look
        )
        value = shortened(heading.value.binary, 200)
        if self.is_wrapped:
            look["size"] = self.small
            numbers = axes.text(0, y, value, transform=moved(12, 0.3), **look)
        else:
            numbers = axes.text(1, y, value, transform=moved(0, up), ha="right", **look)
        for words in (name, numbers):
            self.fit(words, self.width - 0.3)

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
        letters = int((self.width - 0.3) * 72 / (1.1 * LETTER * self.size))
        look = {"size": self.size, "weight": "bold", "color": MUTED.light}
        name = fill(shortened(name, 2 * letters), letters)
        words = axes.set_title(name, loc="left", pad=0.4 * self.size + pad, **look)
        self.fit(words, self.width - 0.3)

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
        texts = [shortened(label, 48) for label in labels] + [
            shortened(key.text, 48) for key in self.picture.keys
        ]
        for columns in range(min(len(handles), 6), 0, -1):
            legend = figure.legend(
                handles,
                # A label that begins with an underscore would be left out.
                ["x"] * len(handles),
                ncols=columns,
                loc="upper left",
                bbox_to_anchor=(0, 0),
                frameon=False,
                fontsize=self.small,
                labelcolor=MUTED.light,
                borderpad=0,
                borderaxespad=0.6,
                handlelength=1,
                handletextpad=0.6,
                columnspacing=1.4,
            )
            for words, text in zip(legend.get_texts(), texts, strict=True):
                words.set_text(text)
            if columns == 1 or legend.get_window_extent().width <= self.width * figure.dpi:
                return
            legend.remove()

    def _line_handle(self, label: str, origins: Collection[str]) -> Line2D:
        origin = "measured" if "measured" in origins else ""
        return Line2D([], [], **self.mark(self.picture.marks[label], origin, 0.75 * self.size))

    def _key_handle(self, key: Key) -> Line2D | Patch:
        ink, size = self.colour(key.colour or "@muted"), 0.72 * self.size
        if key.symbol == "block":
            return Patch(facecolor=ink)
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


def names_points(plot: Plot) -> bool:
    """Return whether the points are few enough to have their names next to them."""
    return plot.front is not None and len(plot.lines) <= MOST_NAMES


def _headings(panels: Sequence[Panel]) -> list[Bar | Areas | Icicle]:
    bars = [bar for panel in panels if isinstance(panel, Bars) for bar in panel.bars]
    return [*bars, *(panel for panel in panels if isinstance(panel, Areas | Icicle))]
