"""Log plot: two logarithmic axes, the models named along the top and the optimizers at the
right.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from ..arithmetic.labels import shortened
from ..style import INK, LINE, MUTED, Mark
from ..units import count_text
from .canvas import Canvas, Frame, fitting, text_width
from .spacing import crowded, spaced, thinned
from .symbols import ORIGINS, mark_style

LEFT = 0.5
HEIGHT = 2.5


@dataclass(frozen=True, kw_only=True)
class Label:
    """The name of a series, beside the height of its last point."""

    text: str
    mark: Mark
    origin: str
    height: float

    @property
    def lines(self) -> int:
        """The lines of its text."""
        return self.text.count("\n") + 1


class LogPlot:
    """A canvas with log-log axes: x in parameters, y in the caller's unit (GiB), and all that
    stands around them.
    """

    def __init__(
        self,
        frame: Frame,
        *,
        models: Mapping[int, str],
        heights: Sequence[float],
        labels: Sequence[Label],
        unit: str,
        title: str,
        context: str,
    ) -> None:
        self.frame = frame
        labels = [_narrow(label, frame) for label in labels]
        self._right = frame.width - 0.42 - max(_label_width(label, frame) for label in labels)
        self._x = _limits(list(models), 0.16)
        self._y = _limits(heights, 0.22)
        names = [shortened(model, 24) for model in models.values()]
        self._tops = [self._across(count) for count in models]
        self._upright = crowded(self._tops, [text_width(name, frame.small) + 0.1 for name in names])
        top = 0.3 * frame.line + (
            max(text_width(name, frame.small) for name in names) + 0.22
            if self._upright
            else 1.2 * frame.line
        )
        self.canvas = Canvas(
            frame, body=top + HEIGHT + 2.2 * frame.line, title=title, context=context, foot=ORIGINS
        )
        self.axes = self.canvas.axes(LEFT, self._right, top, top + HEIGHT)
        self._set_axes()
        self.canvas.text(
            LEFT - 0.055,
            top - 0.45 * frame.line,
            unit,
            colour=MUTED,
            size=frame.small,
            align="right",
        )
        self.canvas.text(
            LEFT,
            top + HEIGHT + 1.95 * frame.line,
            "parameters of the model",
            colour=MUTED,
            size=frame.small,
        )
        self._name_models(names, top)
        self._name_series(labels, top)

    def _across(self, count: float) -> float:
        low, high = map(math.log10, self._x)
        return LEFT + (math.log10(count) - low) / (high - low) * (self._right - LEFT)

    def _down(self, height: float) -> float:
        low, high = map(math.log10, self._y)
        return (high - math.log10(height)) / (high - low) * HEIGHT

    def _set_axes(self) -> None:
        self.axes.set(xscale="log", yscale="log", xlim=self._x, ylim=self._y)
        self.axes.set_axisbelow(True)
        self.axes.grid(axis="y", color=LINE.light, linewidth=0.6)
        _tick(
            self.axes.xaxis, self._x, lambda value: re.sub(r"\.0+ ", " ", count_text(round(value)))
        )
        _tick(self.axes.yaxis, self._y, lambda value: f"{value:,.10g}")

    def _name_models(self, names: Sequence[str], top: float) -> None:
        """The name of each model over its own line; of models that have no room, every second or
        third.
        """
        frame = self.frame
        for across in self._tops:
            self._line((across, across), (top, top + HEIGHT))
        left, right = LEFT - 0.1, self._right + 0.25
        kept = (
            thinned(len(names), int((right - left) / (0.85 * frame.line)))
            if self._upright
            else list(range(len(names)))
        )
        sizes = [
            0.85 * frame.line if self._upright else text_width(names[number], frame.small)
            for number in kept
        ]
        places = spaced([self._tops[number] for number in kept], sizes, left, right)
        for number, place in zip(kept, places, strict=True):
            self._name_model(names[number], place, self._tops[number], top)

    def _name_model(self, name: str, place: float, across: float, top: float) -> None:
        small = self.frame.small
        if self._upright:
            self._line((place, across), (top - 0.14, top))
            self.canvas.text(
                place + 0.35 * small / 72, top - 0.17, name, colour=MUTED, size=small, turn=90
            )
        else:
            self.canvas.text(
                place, top - 0.45 * self.frame.line, name, colour=MUTED, size=small, align="center"
            )

    def _name_series(self, labels: Sequence[Label], top: float) -> None:
        """The name of each series right of its last point, joined to it where it had to move."""
        frame = self.frame
        wanted = [top + self._down(label.height) for label in labels]
        sizes = [label.lines * 0.85 * frame.line + 0.04 for label in labels]
        places = spaced(wanted, sizes, 0, top + HEIGHT + 0.1)
        for label, place, down in zip(labels, places, wanted, strict=True):
            self._line((self._right + 0.02, self._right + 0.14), (down, place))
            self.canvas.mark(
                self._right + 0.22, place, mark_style(label.mark, label.origin, 0.7 * frame.size)
            )
            for number, line in enumerate(label.text.split("\n")):
                down = (
                    place
                    + 0.36 * frame.size / 72
                    + (number - (label.lines - 1) / 2) * 0.85 * frame.line
                )
                self.canvas.text(
                    self._right + 0.33,
                    down,
                    line,
                    colour=INK if number == 0 else MUTED,
                    size=frame.size,
                )

    def _line(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.canvas.line(x, y, LINE)


def _narrow(label: Label, frame: Frame) -> Label:
    """The label, with lines that leave half of the picture to the curves."""
    lines = [fitting(line, frame.size, frame.width / 2) for line in label.text.split("\n")]
    return replace(label, text="\n".join(lines))


def _label_width(label: Label, frame: Frame) -> float:
    return max(text_width(line, frame.size) for line in label.text.split("\n"))


def _limits(values: Sequence[float], margin: float) -> tuple[float, float]:
    """Limits of a log axis around the values: a margin in decades, and at least 1.2 decades in
    all.
    """
    low, high = math.log10(min(values)) - margin, math.log10(max(values)) + margin
    missing = max(0.0, 1.2 - (high - low)) / 2
    return 10 ** (low - missing), 10 ** (high + missing)


def _tick(axis: Axis, limits: tuple[float, float], text: Callable[[float], str]) -> None:
    """Ticks at decades, and at 2 and 5 of each where there are few."""
    decades = math.log10(limits[1] / limits[0])
    axis.set_major_locator(LogLocator(subs=(1,) if decades > 2.2 else (1, 2, 5), numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())
