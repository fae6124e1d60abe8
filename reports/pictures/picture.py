"""Picture: the description of one picture, for every renderer.

Sizes are exact bytes and times are seconds; a renderer converts them. A colour is "#rrggbb", or
"@" before the name of one of the page's colours: "@ink", "@track", "@mark-3".
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..arithmetic.courses import Band
from ..style import Mark
from ..tables.table import Table
from ..units import Sized, Words

# Phases in few letters.
SHORT = {"forward": "fwd", "backward": "bwd", "zero grad": "zero"}
Kind = Literal["bytes", "seconds", "parameters", "tokens", "number"]
Dash = Literal["solid", "dot", "dash", "dashdot", "none"]
Symbol = Literal[
    "block", "empty", "quartiles", "stroke", "peak", "tick", "bracket", "sample", "sample full"
]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A block of a bar; its place and width are in per cent of the row.

    The page shows `words` under the pointer: a name and the exact bytes.
    """

    left: float
    width: float
    colour: str
    text: Sized | None = None
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A row: an optimizer with its mark and its numbers in words, over a bar or samples.

    Places are in per cent of the row. `mark` is the label that has the mark, `outline` the width of
    a frame behind the parts, `words` the frame's text under the pointer, `band` the quartiles of
    the samples, `whisker` the confidence interval of their median.
    """

    label: str
    mark: str
    origin: str
    value: Sized
    parts: tuple[Part, ...] = ()
    outline: float | None = None
    words: str = ""
    samples: tuple[float, ...] = ()
    band: tuple[float, float] | None = None
    whisker: tuple[float, float] | None = None
    median: float | None = None


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Bars on one scale; `name` is empty if the run has one setting only.

    Ticks are places in per cent, with their texts.
    """

    name: str
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, Words], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis of a plot; `values` are all values along it.

    An axis with `ticks`, names by their places, ends at the outermost values, and its title says
    all. It is not logarithmic itself.
    """

    title: str
    kind: Kind
    values: Sequence[float]
    log: bool = True
    ticks: Mapping[float, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of a line, and the lines of text that the page shows under the pointer."""

    x: float
    y: float
    origin: str
    words: Words
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """The points of one label; `lane` counts the earlier lines that it coincides with.

    `size` is that of the marks in pixels of the page; 0 draws none. The points of a dash "none" are
    not joined.
    """

    label: str
    points: tuple[Point, ...]
    dash: Dash = "solid"
    lane: int = 0
    size: float = 12


@dataclass(frozen=True, kw_only=True)
class Level:
    """A horizontal line, its name, and the words that the page shows under the pointer."""

    value: float
    name: str
    words: Sized


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Lines, or single points with their names, on two axes.

    `columns` are names over places of the x axis. `front` are the points that a broken staircase
    joins. Intervals lie along `intervals`. `height` is in pixels of the page.
    """

    name: str
    alt: str
    x: Axis
    y: Axis
    lines: Sequence[Line]
    height: int
    columns: Mapping[int, str] | None = None
    levels: Sequence[Level] = ()
    front: Sequence[tuple[float, float]] | None = None
    intervals: Literal["x", "y"] = "y"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Bytes of one category at the places of a stacked area."""

    name: str
    colour: str
    values: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Areas:
    """Stacked areas along a training step, with the reserved bytes as a line over them.

    Places are from 0 to 1; `most` is the largest number of bytes on the scale. Each place has the
    number of an event of its phase, and the lines of text that the page shows under the pointer.
    """

    label: str
    origin: str
    value: Sized
    alt: str
    bands: Sequence[Band]
    places: Sequence[float]
    layers: Sequence[Layer]
    reserved: Sequence[int]
    events: Sequence[int]
    words: Sequence[str]
    peak: tuple[float, int]
    most: int


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A part of an icicle, inside the tile of the number `parent`.

    A tile without room for its name has the `short` one. `start` is the bytes to its left, `depth`
    the number of tiles that it is inside of.
    """

    name: str
    short: str
    parent: int | None
    depth: int
    colour: str
    start: int
    nbytes: int
    blocks: int


@dataclass(frozen=True, kw_only=True)
class Icicle:
    """Tiles below each other, each as wide as its bytes; the first one is the whole."""

    label: str
    origin: str
    value: Sized
    alt: str
    tiles: Sequence[Tile]


Panel = Bars | Plot | Areas | Icicle


@dataclass(frozen=True)
class Key:
    """A symbol of the legend, and its meaning."""

    symbol: Symbol
    text: str
    colour: str = ""


ORIGINS = (Key("sample full", "measured"), Key("sample", "simulated or estimated"))


@dataclass(frozen=True, kw_only=True)
class Picture:
    """The words of a picture, its numbers as a table, and its panels.

    `marks` has the marks of all labels of the run. `across` is the number of panels side by side in
    a file. If the panels are `apart`, each has a file of its own. A file has the table below the
    panels if the picture `draws_table`.
    """

    name: str
    title: str
    context: str
    sentence: str
    table: Table
    panels: Sequence[Panel]
    marks: Mapping[str, Mark]
    notes: tuple[Words, ...] = ()
    keys: tuple[Key, ...] = ORIGINS
    across: int = 1
    apart: bool = False
    draws_table: bool = False

    @property
    def files(self) -> "dict[str, Picture]":
        """The picture of each file by its name: one, or one of each panel if they are apart."""
        if not self.apart:
            return {self.name: self}
        parts = [
            replace(
                self,
                name=f"{self.name}-{number}" if number > 1 else self.name,
                context=panel.name if isinstance(panel, Plot) else self.context,
                panels=(panel,),
            )
            for number, panel in enumerate(self.panels, 1)
        ]
        return {part.name: part for part in parts}

    @property
    def kind(self) -> str:
        """The name without its number: timeline for timeline-2."""
        return re.sub(r"-\d+$", "", self.name)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A picture as PNG bytes and as SVG text."""

    name: str
    png: bytes
    svg: str
