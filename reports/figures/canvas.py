"""Canvas: a picture laid out in inches from its top, in one frame (width and type size), on white
paper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath

from ..arithmetic.labels import shortened
from ..style import INK, MUTED, PAPER, TRACK, Colour
from .symbols import Key, shape_style

# Inches of a key's symbol, from its left edge to its text, and from the text to the next key.
KEY, KEY_TEXT, KEY_GAP = 0.11, 0.17, 0.18
# Widths of letters, in their type's size: few are narrower or wider.
NARROWEST, WIDEST = 0.2, 1.2


@dataclass(frozen=True, kw_only=True)
class Frame:
    """How wide a picture is in inches and how large its type in points."""

    width: float
    size: float

    @property
    def line(self) -> float:
        """The height of a line of text, in inches."""
        return 1.5 * self.size / 72

    @property
    def small(self) -> float:
        """The type size of what stands back, in points."""
        return 0.92 * self.size


class Canvas:
    """A figure with a head (title, context), a legend, a body of a given height and a foot (what
    filled and hollow mean).

    Every point is in inches: x from the left edge, y from the top of the body downwards.
    """

    def __init__(
        self,
        frame: Frame,
        *,
        body: float,
        title: str,
        context: str,
        legend: Sequence[Key] = (),
        foot: Sequence[Key] = (),
    ) -> None:
        self.frame = frame
        self._head = 2.9 * frame.line + legend_height(legend, frame)
        self.height = self._head + body + legend_height(foot, frame)
        self.figure = Figure(figsize=(frame.width, self.height))
        FigureCanvasAgg(self.figure)
        self.figure.patch.set_facecolor(PAPER.light)
        self.text(
            0.02, 0.95 * frame.line - self._head, title, size=frame.size * 1.25, weight="bold"
        )
        self.text(0.02, 1.95 * frame.line - self._head, context, colour=MUTED)
        self._write_keys(legend, -legend_height(legend, frame))
        self._write_keys(foot, body + 0.3 * frame.line)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        colour: Colour = INK,
        size: float | None = None,
        weight: str = "normal",
        align: str = "left",
        turn: float = 0,
    ) -> None:
        """Write on a baseline that begins (or ends, or has its middle) at a point.

        What is wider than the picture is cut in its middle.
        """
        (across,), (up,) = self._places((x,), (y,))
        size = size or self.frame.size
        look = {"color": colour.light, "size": size, "weight": weight}
        text = fitting(
            text, size, self.frame.width - (x if align == "left" and not turn else 0), weight
        )
        self.figure.text(
            across, up, text, ha=align, va="baseline", rotation=turn, rotation_mode="anchor", **look
        )

    def line(
        self, x: tuple[float, float], y: tuple[float, float], colour: Colour, width: float = 0.6
    ) -> None:
        """A line of a width in points, behind everything else."""
        shade = colour.light
        self.figure.add_artist(
            Line2D(
                *self._places(x, y), color=shade, linewidth=width, zorder=-1, solid_capstyle="butt"
            )
        )

    def mark(self, x: float, y: float, style: Mapping[str, Any]) -> None:
        """A mark, as `mark_style` describes it, with its middle at a point."""
        self.figure.add_artist(Line2D(*self._places((x,), (y,)), **style))

    def block(self, x: float, y: float, width: float, height: float, **look: Any) -> None:
        """A rectangle from its upper left corner."""
        (left,), (bottom,) = self._places((x,), (y + height,))
        self.figure.add_artist(
            Rectangle((left, bottom), width / self.frame.width, height / self.height, **look)
        )

    def axes(self, left: float, right: float, top: float, bottom: float) -> Axes:
        """Axes without spines, between those edges."""
        (x0, x1), (y1, y0) = self._places((left, right), (top, bottom))
        axes = self.figure.add_axes((x0, y0, x1 - x0, y1 - y0))
        axes.set_facecolor("none")
        axes.tick_params(
            which="both", length=0, labelsize=self.frame.small, labelcolor=MUTED.light, pad=4
        )
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    def _places(self, x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
        """Points in inches as shares of the figure."""
        return [value / self.frame.width for value in x], [
            1 - (self._head + value) / self.height for value in y
        ]

    def _write_keys(self, keys: Sequence[Key], top: float) -> None:
        for number, line in enumerate(_wrapped(keys, self.frame)):
            x, y = 0.02, top + (number + 0.7) * self.frame.line
            for key in line:
                self._draw_key(key, x, y - 0.2 * self.frame.line - KEY / 2)
                self.text(x + KEY_TEXT, y, key.text, colour=MUTED, size=self.frame.small)
                x += _key_width(key, self.frame)

    def _draw_key(self, key: Key, x: float, y: float) -> None:
        """A key's symbol in a square with that upper left corner."""
        colour, middle, size = key.colour.light, x + KEY / 2, self.frame.size
        if key.symbol == "block":
            self.block(x, y, KEY, KEY, color=colour)
        elif key.symbol == "outline":
            self.block(
                x, y + 0.02, KEY, KEY - 0.04, facecolor=TRACK.light, edgecolor=colour, linewidth=0.7
            )
        elif key.symbol == "tick":
            self.line((middle, middle), (y, y + KEY), key.colour, 0.2 * size)
        elif key.symbol == "line":
            self.line((x, x + KEY), (y + KEY / 2, y + KEY / 2), key.colour, 0.12 * size)
        else:
            style = shape_style(key.symbol, key.colour, filled=key.filled, size=0.72 * size)
            self.mark(middle, y + KEY / 2, style)


def legend_height(keys: Sequence[Key], frame: Frame) -> float:
    """The height in inches that these keys take, none for none."""
    return (len(_wrapped(keys, frame)) + 0.4) * frame.line if keys else 0.0


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """How wide the text is, in inches; to be asked while `drawing()`."""
    if not text.strip():
        return 0.0
    # The outermost control point is close enough, and a tenth of the work of the exact outline.
    try:
        outline = TextPath((0, 0), text, size=size, prop=FontProperties(weight=weight))
    except AttributeError:
        # Matplotlib's error for letters of which none is drawn, such as U+FFF9.
        return 0.0
    return float(outline.vertices[:, 0].max()) / 72


def fitting(text: str, size: float, width: float, weight: str = "normal") -> str:
    """The text, cut in its middle until it is no wider than that many inches."""
    if len(text) * WIDEST * size <= width * 72:
        return text
    # The rest of a text of thousands of letters need not be drawn to be measured.
    text = shortened(text, max(4, int(width * 72 / (NARROWEST * size))))
    if text_width(text, size, weight) <= width:
        return text
    fits, longer = 3, len(text)
    while longer - fits > 1:
        length = (fits + longer) // 2
        if text_width(shortened(text, length), size, weight) <= width:
            fits = length
        else:
            longer = length
    return shortened(text, fits)


def _wrapped(keys: Sequence[Key], frame: Frame) -> list[list[Key]]:
    lines: list[list[Key]] = [[]]
    used = 0.0
    for key in keys:
        width = _key_width(key, frame)
        if lines[-1] and used + width - KEY_GAP > frame.width:
            lines.append([])
            used = 0.0
        lines[-1].append(key)
        used += width
    return lines if keys else []


def _key_width(key: Key, frame: Frame) -> float:
    return KEY_TEXT + text_width(key.text, frame.small) + KEY_GAP
