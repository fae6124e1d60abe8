"""Graphs: plots, areas and icicles as plotly's traces in JSON.

The page's script fills in three things when it draws: a colour "@ink" is the page's colour of that
name, {"bytes": [...]} are exact bytes to show in the reader's unit, {"binary": ..., "decimal": ...}
is one of the two by that unit, and {"texts": [...], "picked": [...]} are texts by their numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from optprof.profiler.safety.plain import plain

from ..style import HATCH_DEPTH, HATCHES, ON_BLOCK, Mark, hatch_colour
from ..units import GIB, Sized, Words, bytes_text
from ..words import phase_name
from .bars import VISIBLE
from .picture import SHORT, Areas, Axis, Icicle, Kind, Level, Line, Plot, Tile
from .scales import TICK_TEXTS, framed, scale_name

# plotly's names for matplotlib's shapes.
SYMBOLS = {"o": "circle", "s": "square", "D": "diamond", "p": "pentagon"}
SYMBOLS |= {"h": "hexagon2", "*": "star", "^": "triangle-up", "v": "triangle-down"}
SYMBOLS |= {"<": "triangle-left", ">": "triangle-right"}
# How plotly writes the ticks between ours when a reader zooms.
BETWEEN: dict[Kind, dict[str, str]] = {
    "bytes": {"tickformat": ",~r"},
    "number": {"tickformat": ",~r"},
    "tokens": {"tickformat": "~s"},
    "seconds": {"exponentformat": "SI", "ticksuffix": "s"},
    "parameters": {"exponentformat": "B"},
}
# Of an icicle, in pixels: the size of its letters, and the height of the path to what is enlarged.
LETTERS, PATH = 12, 20
# The height of areas, in pixels: room for the lines under the pointer.
AREAS = 250


@dataclass(frozen=True, kw_only=True)
class Heading:
    """The words over a graph: an optimizer with its mark and its numbers, or a bare title."""

    text: str
    origin: str = ""
    value: Sized | None = None


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph: what a screen reader says, its heading, and the data that the page's script draws.

    The axes of a `logarithmic` graph can be switched to linear ones.
    """

    alt: str
    height: int
    data: Mapping[str, Any]
    heading: Heading | None = None
    logarithmic: bool = False


def text(words: str) -> str:
    """Return words from elsewhere so that plotly and the page's script show them as text.

    plotly reads markup and the names of values, as %{y}; to the script an @ begins a colour.
    """
    return escape(plain(words), quote=False).replace("%", "&#37;").replace("@", "&#64;")


def plot_graph(plot: Plot, marks: Mapping[str, Mark]) -> Graph:
    """Return the graph of a plot."""
    colours = {label: f"@mark-{number}" for number, label in enumerate(marks)}
    lines = sorted(enumerate(plot.lines), key=lambda each: each[1].lane)
    traces = [
        *(_level(level, plot.x) for level in plot.levels),
        *([_front(plot)] if plot.front is not None else []),
        *(
            _trace(line, number, plot, marks[line.label], colours[line.label])
            for number, line in lines
        ),
    ]
    return Graph(
        alt=plot.alt,
        height=plot.height,
        data=_data(
            traces,
            {"xaxis": _axis(plot.x), "yaxis": _axis(plot.y)},
            plot.height,
            columns=[(count, text(name)) for count, name in (plot.columns or {}).items()],
            logarithmic=plot.x.log and plot.x.ticks is None,
        ),
        heading=Heading(text=plot.name) if plot.name else None,
        logarithmic=plot.x.log and plot.x.ticks is None,
    )


def _data(
    traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], height: int, **more: Any
) -> dict[str, Any]:
    data = {"traces": traces, "layout": layout, "height": height}
    return data | {"columns": [], "bands": [], "logarithmic": False} | more


def _axis(axis: Axis) -> dict[str, Any]:
    """Return plotly's settings of an axis; a logarithmic one has those of a linear one too."""
    if axis.ticks is not None:
        return _named(axis, axis.ticks)
    if not axis.log:
        return _scaled(axis, log=False)
    return _scaled(axis, log=True) | {"linear": _scaled(axis, log=False)}


def _named(axis: Axis, ticks: Mapping[float, str]) -> dict[str, Any]:
    """Return plotly's settings of an axis with names in place of numbers."""
    return {
        "title": {"text": text(axis.title)},
        "range": [min(axis.values), max(axis.values)],
        "tickvals": list(ticks),
        "ticktext": list(map(text, ticks.values())),
        # Zooming would only hide names.
        "fixedrange": True,
    }


def _scaled(axis: Axis, *, log: bool) -> dict[str, Any]:
    """Return the title, which says the scale, and ticks that enclose all values."""
    title = f"{text(axis.title)}, {scale_name(log=log)}"
    kind = {"type": "log" if log else "linear", **BETWEEN.get(axis.kind, {})}
    if axis.kind != "bytes":
        return {"title": {"text": title}, **kind, **_ticks(axis, axis.values, log=log)}
    units = {"binary": ("GiB", GIB), "decimal": ("GB", 10**9)}
    ticks = {
        unit: _ticks(axis, [count / size for count in axis.values], log=log)
        for unit, (_, size) in units.items()
    }
    return {
        "title": {
            "text": {
                unit: f"{giga} {title}".replace(" ,", ",") for unit, (giga, _) in units.items()
            }
        },
        **kind,
        **{name: {unit: ticks[unit][name] for unit in units} for name in ticks["binary"]},
    }


def _ticks(axis: Axis, values: Sequence[float], *, log: bool) -> dict[str, Any]:
    ticks, ends = framed(values, log=log, from_zero=axis.kind != "number")
    return {
        "range": [math.log10(end) for end in ends] if log else list(ends),
        "tickvals": ticks,
        "ticktext": list(map(TICK_TEXTS[axis.kind], ticks)),
    }


def _trace(line: Line, number: int, plot: Plot, mark: Mark, colour: str) -> dict[str, Any]:
    points = line.points
    single = plot.front is not None
    dash = f"5px,{5 * line.lane}px" if line.lane else line.dash
    trace = {
        "label": plain(line.label),
        "mode": _mode(line, single=single),
        "x": [point.x for point in points],
        "y": _values([point.y for point in points], plot.y),
        "line": {"color": colour, "width": 1.8, "dash": "solid" if dash == "none" else dash},
        "marker": {
            "symbol": SYMBOLS[mark.shape],
            "size": max(line.size * 0.68**line.lane, 6),
            # Filled for what was measured.
            "color": [colour if point.origin == "measured" else "@paper" for point in points],
            "line": {"color": colour, "width": 1.8},
            "opacity": 1,
        },
        "hoverinfo": "text",
        "hovertext": _under_pointer(line),
        "cliponaxis": False,
    }
    if any(point.interval for point in points):
        trace[f"error_{plot.intervals}"] = _error_bars(line, plot, colour)
    if single:
        # Neighbours in time are named above and below by turns.
        place = "bottom center" if number % 2 else "top center"
        trace |= {"text": [text(line.label)], "textposition": place}
    return trace


def _mode(line: Line, *, single: bool) -> str:
    if single or line.dash == "none":
        return "markers+text" if single else "markers"
    return "lines+markers" if line.size else "lines"


def _under_pointer(line: Line) -> dict[str, list[str]]:
    def words(point_words: Words, unit: str) -> str:
        own = point_words if isinstance(point_words, str) else getattr(point_words, unit)
        return f"<b>{text(line.label)}</b>{text(own)}".replace("\n", "<br>")

    return {
        unit: [words(point.words, unit) for point in line.points] for unit in ("binary", "decimal")
    }


def _error_bars(line: Line, plot: Plot, colour: str) -> dict[str, Any]:
    middles = [getattr(point, plot.intervals) for point in line.points]
    ends = [
        point.interval or (middle, middle)
        for point, middle in zip(line.points, middles, strict=True)
    ]
    pairs = list(zip(ends, middles, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - middle for (_, high), middle in pairs],
        "arrayminus": [middle - low for (low, _), middle in pairs],
        "color": colour,
        "thickness": 1.4,
        # Small marks stand too close together for caps; a point without an interval has no cap.
        "width": 5 if line.size > 8 and all(point.interval for point in line.points) else 0,
    }


def _front(plot: Plot) -> dict[str, Any]:
    front = plot.front or ()
    return {
        "mode": "lines",
        "x": [x for x, _ in front],
        "y": _values([y for _, y in front], plot.y),
        "line": {"color": "@muted", "width": 1.2, "dash": "dash", "shape": "hv"},
        "hoverinfo": "skip",
    }


def _level(level: Level, x: Axis) -> dict[str, Any]:
    return {
        "mode": "lines+text",
        "x": [min(x.values) / 1.25, 1.25 * max(x.values)],
        "y": {"bytes": [level.value, level.value]},
        "line": {"color": "@muted", "width": 1, "dash": "dot"},
        "text": [text(level.name), ""],
        "textposition": "top right",
        "textfont": {"color": "@muted", "size": 11},
        "hoverinfo": "text",
        "hovertext": {"binary": level.words.binary, "decimal": level.words.decimal},
    }


def _values(values: Sequence[float], axis: Axis) -> Any:
    return {"bytes": values} if axis.kind == "bytes" else values


def areas_graph(areas: Areas) -> Graph:
    """Return the graph of stacked areas."""
    place, peak = areas.peak
    traces = [
        *(
            {
                "mode": "lines",
                "stackgroup": "bytes",
                "x": areas.places,
                "y": {"bytes": layer.values},
                "line": {"width": 0},
                "fillcolor": layer.colour,
                **_hatched(layer.colour),
                # A layer that is too thin to see takes no line under the pointer.
                **(
                    {"hovertemplate": _template(text(layer.name))}
                    if max(layer.values) >= VISIBLE * peak
                    else {"hoverinfo": "skip"}
                ),
            }
            for layer in areas.layers
        ),
        {
            "mode": "lines",
            "x": areas.places,
            "y": {"bytes": areas.reserved},
            "line": {"width": 1.3, "color": "@ink"},
            "hovertemplate": _template("reserved"),
        },
        {
            "mode": "markers",
            "x": [place],
            "y": {"bytes": [peak]},
            "marker": {"symbol": "triangle-down", "size": 9, "color": "@ink"},
            "hoverinfo": "skip",
            "cliponaxis": False,
        },
        # The last trace is the first line under the pointer. It draws nothing.
        {
            "mode": "lines",
            "x": areas.places,
            "y": {"bytes": areas.reserved},
            "line": {"width": 0},
            "customdata": areas.events,
            "text": _picked([text(words).replace("\n", "<br>") for words in areas.words]),
            "hovertemplate": "event %{customdata:,} of %{text}<extra></extra>",
        },
    ]
    layout = {
        "xaxis": {
            "range": [0, 1],
            "showgrid": False,
            # The next line is the event.
            "unifiedhovertitle": {"text": "memory after"},
            **({} if areas.bands else _event_ticks(areas.events[-1])),
        },
        "yaxis": _scaled(Axis(title="", kind="bytes", values=[areas.most]), log=False),
        "hovermode": "x unified",
    }
    return Graph(
        alt=areas.alt,
        height=AREAS,
        data=_data(traces, layout, AREAS, bands=_bands(areas)),
        heading=Heading(text=areas.label, origin=areas.origin, value=areas.value),
    )


def _event_ticks(last: int) -> dict[str, Any]:
    """Return the ticks of an axis of events, which has no phases."""
    places = [0, 0.25, 0.5, 0.75, 1]
    texts = [f"{round(place * last):,}" for place in places]
    return {"tickvals": places, "ticktext": texts, "title": {"text": "events"}}


def _hatched(colour: str) -> dict[str, Any]:
    """Return plotly's settings for the hatch of a block's colour."""
    if colour not in HATCHES:
        return {}
    lines = {"shape": HATCHES[colour], "size": 6, "solidity": 0.16}
    return {"fillpattern": lines | {"bgcolor": colour, "fgcolor": hatch_colour(colour)}}


def _picked(texts: Sequence[str]) -> dict[str, Any]:
    """Return texts that repeat: each once, and the numbers of all."""
    numbers = {words: number for number, words in enumerate(dict.fromkeys(texts))}
    return {"texts": list(numbers), "picked": [numbers[words] for words in texts]}


def _bands(areas: Areas) -> list[dict[str, Any]]:
    names = [phase_name(band.stretch.phase) for band in areas.bands]
    return [
        {
            "left": band.left,
            "right": band.right,
            "name": text(name),
            "short": text(SHORT.get(name, name)),
            "step": band.stretch.step,
        }
        for name, band in zip(names, areas.bands, strict=True)
    ]


def _template(name: str) -> str:
    """Return the words under the pointer; `name` is escaped, and the page's script has sizes."""
    return f"{name} %{{text}}<extra></extra>"


def icicle_graph(icicle: Icicle) -> Graph:
    """Return the graph of an icicle, whose parts can be clicked to enlarge them."""
    tiles = icicle.tiles
    height = PATH + 8 + 36 * (1 + max(tile.depth for tile in tiles))
    sizes = [Sized.of(lambda units, tile=tile: bytes_text(tile.nbytes, units)) for tile in tiles]
    trace = {
        "type": "icicle",
        "ids": [str(number) for number in range(len(tiles))],
        "labels": [text(tile.short) for tile in tiles],
        "parents": ["" if tile.parent is None else str(tile.parent) for tile in tiles],
        # Bytes as they are: plotly compares sums, which rounding would spoil.
        "values": [tile.nbytes for tile in tiles],
        "branchvalues": "total",
        "sort": False,
        "text": {unit: [getattr(size, unit) for size in sizes] for unit in ("binary", "decimal")},
        "customdata": [[text(tile.name), _count(tile)] for tile in tiles],
        "textinfo": "label+text",
        "hovertemplate": (
            "<b>%{customdata[0]}</b><br>%{text}, %{percentRoot:.2%} of the peak<br>%{value:,d}"
            " bytes in %{customdata[1]}<extra></extra>"
        ),
        "marker": {
            "colors": [tile.colour for tile in tiles],
            "pattern": _patterns(tiles),
            "line": {"width": 1, "color": "@paper"},
        },
        "textfont": {"size": LETTERS, "color": ["@ink", *[ON_BLOCK for _ in tiles[1:]]]},
        "leaf": {"opacity": 1},
        "tiling": {"orientation": "v"},
        "pathbar": {"thickness": PATH, "textfont": {"size": LETTERS}},
    }
    # A name that would have to be smaller is left out.
    layout = {
        "uniformtext": {"minsize": LETTERS, "mode": "hide"},
        "margin": {"l": 0, "r": 0, "t": PATH + 4, "b": 4},
    }
    return Graph(
        alt=icicle.alt,
        height=height,
        data=_data([trace], layout, height),
        heading=Heading(text=icicle.label, origin=icicle.origin, value=icicle.value),
    )


def _patterns(tiles: Sequence[Tile]) -> dict[str, Any]:
    """Return the hatches of the first row; lines would cross the names of all modules."""
    shown = [HATCHES.get(tile.colour, "") if tile.depth == 1 else "" for tile in tiles]
    lines = {"fgcolor": ON_BLOCK, "fgopacity": HATCH_DEPTH, "size": 6, "solidity": 0.12}
    return {"shape": shown, "bgcolor": [tile.colour for tile in tiles]} | lines


def _count(tile: Tile) -> str:
    return f"{tile.blocks:,} block{'s' if tile.blocks > 1 else ''}"
