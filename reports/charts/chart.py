"""A chart: its words, its rows of bars or its graphs, and the keys that explain them.

A graph is what plotly takes, but for three things that the page puts in when it draws: a colour
"@ink" is the page's colour of that name, {"bytes": [...]} are exact bytes to be shown in the
reader's unit, {"binary": ..., "decimal": ...} is the one or the other by that unit.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from optprof.profiler.safety.plain import plain

from ..style import Mark
from ..tables.table import Table
from ..units import Sized, Words, count_text, seconds_text

if TYPE_CHECKING:
    from ..figures.drawing import Drawing

# plotly's names for matplotlib's shapes.
SYMBOLS: Mapping[str, str] = {
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "^": "triangle-up",
    "v": "triangle-down",
    "<": "triangle-left",
    ">": "triangle-right",
    "p": "pentagon",
    "h": "hexagon2",
    "*": "star",
}
# Beyond this ratio 2 and 5 of each power of ten would crowd an axis.
MANY_TIMES = 300
# And below this one they are too few.
FEW_TIMES = 4


@dataclass(frozen=True, kw_only=True)
class Part:
    """A block of a bar: its place and width in per cent of the row, its colour, and what is written
    in it.
    """

    left: float
    width: float
    colour: str
    text: Sized | None = None


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A row: the optimizer under its mark, its figures in words, and its bar; places are in per
    cent of the row.

    `mark` is the label whose mark it wears, `outline` the width of a frame behind the blocks. Rows
    of samples have the `samples`, the `band` of their quartiles, the `whisker` of their confidence
    interval and the `median`.
    """

    label: str
    mark: str
    origin: str
    value: Sized
    parts: tuple[Part, ...] = ()
    outline: float | None = None
    samples: tuple[float, ...] = ()
    band: tuple[float, float] | None = None
    whisker: tuple[float, float] | None = None
    median: float | None = None


@dataclass(frozen=True, kw_only=True)
class BarGroup:
    """Bars in one scale under one name, empty where the run has one setting only; `ticks` are
    places in per cent and their texts.
    """

    name: str
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class BlockKey:
    """What a colour of the blocks means."""

    colour: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Heading:
    """What stands over a graph: an optimizer under its mark, or a bare title, and its figures in
    words.
    """

    text: str
    origin: str = ""
    value: Sized | None = None


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph as plotly draws it; `alt` says in words what it shows.

    `columns` are names over places of the x axis, `bands` phases along it. `logarithmic` graphs can
    be switched to linear axes.
    """

    alt: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    height: int
    heading: Heading | None = None
    columns: Sequence[tuple[float, str]] = ()
    bands: Sequence[Mapping[str, Any]] = ()
    logarithmic: bool = False

    @property
    def data(self) -> dict[str, Any]:
        """What the page's script draws from."""
        names = ("traces", "layout", "height", "columns", "bands", "logarithmic")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What a section of the page shows."""

    name: str
    title: str
    sentence: str
    alt: str
    table: Table
    notes: tuple[Words, ...] = ()
    groups: tuple[BarGroup, ...] = ()
    graphs: tuple[Graph, ...] = ()
    block_keys: tuple[BlockKey, ...] = ()
    # The optimizers that the graphs show, each with an origin; they can be shown and hidden.
    labels: Mapping[str, str] = field(default_factory=dict)
    explains_samples: bool = False

    @property
    def kind(self) -> str:
        """The name without the number that tells several of a kind apart: timeline for
        timeline-2.
        """
        return re.sub(r"-\d+$", "", self.name)

    @classmethod
    def of(cls, drawing: "Drawing") -> "Chart":
        """A chart with a picture's words, and nothing to see yet."""
        words = {
            name: getattr(drawing, name)
            for name in ("name", "title", "sentence", "alt", "table", "notes")
        }
        return cls(**words)


def text(words: str) -> str:
    """Return words from elsewhere as plotly and the page's script take them for text.

    plotly reads markup and the names of values, as %{y}; to the script an @ begins a colour.
    """
    return escape(plain(words), quote=False).replace("%", "&#37;").replace("@", "&#64;")


def marker(mark: Mark, colour: str, origin: str, size: float) -> dict[str, Any]:
    """plotly's marker for one point: filled for what was measured, hollow for the rest."""
    return {
        "symbol": SYMBOLS[mark.shape],
        "size": size,
        "color": colour if origin == "measured" else "@paper",
        "line": {"color": colour, "width": 1.8},
        "opacity": 1,
    }


def error_bars(
    found: Sequence[tuple[float | None, float, float | None]], colour: str
) -> dict[str, Any]:
    """plotly's error bars for intervals around middles; where there is no interval there is no
    bar.
    """
    return {
        "type": "data",
        "symmetric": False,
        "array": [0 if upper is None else upper - middle for _, middle, upper in found],
        "arrayminus": [0 if lower is None else middle - lower for lower, middle, _ in found],
        "color": colour,
        "thickness": 1.4,
        "width": 5,
    }


def count_ticks(counts: Iterable[int]) -> dict[str, Any]:
    """The range and the round numbers of a logarithmic axis of parameters, and how plotly is to
    write those of a linear one.
    """
    found = list(counts)
    ticks = _round_numbers(found)
    return {
        "range": [math.log10(min(found) / 1.6), math.log10(1.6 * max(found))],
        "tickvals": ticks,
        "ticktext": [re.sub(r"\.0+ ", " ", count_text(round(tick))) for tick in ticks],
        "exponentformat": "B",
    }


def second_ticks(seconds: Sequence[float]) -> dict[str, Any]:
    """The same for an axis of times."""
    ticks = _round_numbers(seconds)
    return {
        "tickvals": ticks,
        "ticktext": list(map(round_seconds_text, ticks)),
        "exponentformat": "SI",
        "ticksuffix": "s",
    }


def giga_ticks(counts: Sequence[int]) -> dict[str, Any]:
    """How plotly is to place and write sizes: on many powers of ten those alone, on some 2 and 5 of
    each too, on less than one a few.
    """
    ratio = max(counts) / min(counts)
    if 1 < ratio <= FEW_TIMES:
        return {"tickformat": ",~r", "nticks": 7}
    return {"tickformat": ",~r", "dtick": 1 if ratio > MANY_TIMES else "D2"}


def round_seconds_text(seconds: float) -> str:
    """A round duration without the zeros behind its point: 5 ms."""
    number, unit = seconds_text(seconds).split()
    return f"{float(number.replace(',', '')):g} {unit}"


def _round_numbers(values: Sequence[float]) -> list[float]:
    """1, 2 and 5 of each power of ten from half the least to twice the most value; of many powers
    the powers alone.
    """
    # A logarithm has no place for a time of 0.
    shown = [value for value in values if value > 0] or [1]
    least, most = min(shown) / 2, 2 * max(shown)
    digits = (1,) if most > MANY_TIMES * least else (1, 2, 5)
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    # 5 * 10**-3 is 0.005, and 5 * 0.001 is not.
    ticks = [float(f"{digit}e{power}") for power in powers for digit in digits]
    return [tick for tick in ticks if least <= tick <= most]
