"""Sizes: bytes of state against parameters as a graph, joined within a model family only, under the
memory of GPUs.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from optprof.profiler.safety.plain import plain
from optprof.scenarios import hardware

from ..arithmetic.curves import Point, Series
from ..arithmetic.findings import Findings
from ..arithmetic.labels import columns, shortened
from ..units import Sized, bytes_text, count_text, gib_text
from .chart import Chart, Graph, count_ticks, giga_ticks, marker, text

# A GPU with less than this many times the memory of the line below has none of its own; lines so
# far above all states are left out.
APART, FAR = 1.7, 8


def size_chart(findings: Findings, chart: Chart) -> Chart:
    """One trace a series; where it coincides with earlier ones its line is broken and its marks are
    smaller, so that all show.
    """
    series = [one for one in findings.curves if any(point.state_bytes for point in one.points)]
    points = [point for one in series for point in one.points if point.state_bytes]
    states = [point.state_bytes for point in points]
    models = columns((point.parameters, point.model) for point in points)
    traces = [
        *_capacities(points),
        *(_trace(findings, one) for one in sorted(series, key=lambda one: one.lane)),
    ]
    graph = Graph(
        alt=chart.alt,
        traces=traces,
        layout={
            "xaxis": {
                "type": "log",
                "title": {"text": "parameters of the model"},
                **count_ticks(models),
            },
            "yaxis": {
                "type": "log",
                "title": {"text": {"binary": "GiB of state", "decimal": "GB of state"}},
                **giga_ticks(states),
            },
        },
        height=520,
        columns=[(count, text(shortened(model, 24))) for count, model in models.items()],
        logarithmic=True,
    )
    return replace(
        chart, graphs=(graph,), labels={one.label: one.points[-1].origin for one in series}
    )


def _trace(findings: Findings, series: Series) -> dict[str, Any]:
    mark, colour, lane = (
        findings.marks[series.label],
        f"@{findings.colour_name(series.label)}",
        series.lane,
    )
    points = [point for point in series.points if point.state_bytes]
    size, kept = max(12 * 0.68**lane, 6), marker(mark, colour, "", 0)
    return {
        "label": plain(series.label),
        "mode": "lines+markers",
        "x": [point.parameters for point in points],
        "y": {"bytes": [point.state_bytes for point in points]},
        "line": {"color": colour, "width": 1.8, "dash": f"5px,{5 * lane}px" if lane else "solid"},
        "marker": {
            **kept,
            "size": size,
            "color": [colour if point.origin == "measured" else "@paper" for point in points],
        },
        "hoverinfo": "text",
        "hovertext": _hover([(series, point) for point in points]),
        "cliponaxis": False,
    }


def _hover(found: Sequence[tuple[Series, Point]]) -> dict[str, list[str]]:
    texts = [
        Sized.of(lambda units, at=(one, point): _words(*at, bytes_text(at[1].state_bytes, units)))
        for one, point in found
    ]
    return {"binary": [each.binary for each in texts], "decimal": [each.decimal for each in texts]}


def _words(series: Series, point: Point, size: str) -> str:
    return (
        f"<b>{text(series.label)}</b> · {text(series.dtype)}<br>{text(point.model)},"
        f" {count_text(point.parameters)} parameters<br>{size}, {point.origin}"
    )


def _capacities(points: Sequence[Point]) -> list[dict[str, Any]]:
    """A line for each size of GPU memory that the states come near to."""
    most, counts = (
        max(point.state_bytes for point in points),
        [point.parameters for point in points],
    )
    classes: list[list[hardware.Gpu]] = []
    for gpu in sorted(
        map(hardware.describe, hardware.available()), key=lambda gpu: gpu.memory_bytes
    ):
        if classes and gpu.memory_bytes < APART * classes[-1][0].memory_bytes:
            classes[-1].append(gpu)
        else:
            classes.append([gpu])
    near = [members for members in classes if most > members[0].memory_bytes / FAR]
    return [_capacity(members, min(counts) / 1.25, 1.25 * max(counts)) for members in near]


def _capacity(members: Sequence[hardware.Gpu], first: float, last: float) -> dict[str, Any]:
    """A line at the least memory of these GPUs, under the name of the first that has it."""
    least, names = members[0].memory_bytes, [gpu.name for gpu in members]
    whole = Sized.of(
        lambda units: (
            f"{gib_text(least, units)} {units.giga} ({names[0]}); at least as much:"
            f" {', '.join(names[1:]) or 'no other'}"
        )
    )
    return {
        "mode": "lines+text",
        "x": [first, last],
        "y": {"bytes": [least, least]},
        "line": {"color": "@muted", "width": 1, "dash": "dot"},
        "text": [f"memory of {names[0]}", ""],
        "textposition": "top right",
        "textfont": {"color": "@muted", "size": 11},
        "hoverinfo": "text",
        "hovertext": {"binary": whole.binary, "decimal": whole.decimal},
    }
