"""Step sizes: time of the step against parameters, joined within a model family only, with the
intervals of the medians.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from optprof.profiler.safety.plain import plain

from ..arithmetic.curves import Point, Series
from ..arithmetic.findings import Findings
from ..arithmetic.labels import columns, shortened
from ..tables.table import Cell, Table
from ..units import NOTHING, count_text, range_text, seconds_text
from ..words import clock_name
from .chart import Chart, Graph, Heading, count_ticks, error_bars, marker, second_ticks, text

DASHES: Mapping[str, str] = {
    "loop": "dot",
    "foreach": "solid",
    "fused": "dash",
    "compiled": "dashdot",
}
DASH_NOTE = (
    "Dotted lines are steps run as a loop, solid ones foreach, broken ones fused, broken ones with"
    " dots compiled."
)


def step_size_chart(findings: Findings) -> Chart | None:
    """A graph for each clock that has timed models of two sizes; None where there is none."""
    clocks: dict[str, list[Series]] = {}
    for series in findings.time_curves:
        clocks.setdefault(series.clock, []).append(series)
    clocks = {clock: found for clock, found in clocks.items() if len(_models(found)) > 1}
    if not clocks:
        return None
    shown = [series for found in clocks.values() for series in found]
    several = len({series.implementation for series in shown}) > 1
    notes = (DASH_NOTE,) if several else ()
    return Chart(
        name="step-by-size",
        title="Time of the step against model size",
        sentence=(
            "How the time of a step grows with the model: medians with their 95 % intervals; a line"
            " joins models of one family only."
        ),
        alt="",
        table=_table(shown),
        notes=notes,
        graphs=tuple(_graph(findings, clock, found) for clock, found in clocks.items()),
        labels={series.label: series.points[-1].origin for series in shown},
    )


def _graph(findings: Findings, clock: str, found: Sequence[Series]) -> Graph:
    models = _models(found)
    seconds = [point.seconds for series in found for point in series.points]
    return Graph(
        alt=f"Time of the step, {clock_name(clock)}, against parameters. "
        + "; ".join(map(_spoken, found))
        + ".",
        traces=[_trace(findings, series) for series in found],
        layout={
            "xaxis": {
                "type": "log",
                "title": {"text": "parameters of the model"},
                **count_ticks(models),
            },
            "yaxis": {
                "type": "log",
                "title": {"text": "time of the step"},
                **second_ticks(seconds),
            },
        },
        height=460,
        heading=Heading(text=clock_name(clock)),
        columns=[(count, text(shortened(model, 24))) for count, model in models.items()],
        logarithmic=True,
    )


def _trace(findings: Findings, series: Series) -> dict[str, Any]:
    colour, points = f"@{findings.colour_name(series.label)}", series.points
    return {
        "label": plain(series.label),
        "mode": "lines+markers",
        "x": [point.parameters for point in points],
        "y": [point.seconds for point in points],
        "error_y": error_bars(
            [(point.lower, point.seconds, point.upper) for point in points], colour
        ),
        "line": {"color": colour, "width": 1.8, "dash": DASHES[series.implementation]},
        "marker": {
            **marker(findings.marks[series.label], colour, "", 11),
            "color": [colour if point.origin == "measured" else "@paper" for point in points],
        },
        "hoverinfo": "text",
        "hovertext": [
            f"<b>{text(series.label)}</b> · {text(series.dtype)}, {series.implementation}<br>"
            f"{text(point.model)}, {count_text(point.parameters)} parameters<br>"
            f"{seconds_text(point.seconds)}, {point.origin}"
            for point in points
        ],
        "cliponaxis": False,
    }


def _models(found: Sequence[Series]) -> dict[int, str]:
    return columns((point.parameters, point.model) for series in found for point in series.points)


def _spoken(series: Series) -> str:
    points = ", ".join(f"{point.model} {seconds_text(point.seconds)}" for point in series.points)
    return f"{series.label} in {series.dtype}, {series.implementation}: {points}"


def _table(found: Sequence[Series]) -> Table:
    head = (
        "optimizer",
        "implementation",
        "dtype",
        "clock",
        "model",
        "parameters",
        "step",
        "95 % interval",
        "origin",
    )
    rows = [
        (
            Cell(text=series.label, mark=series.label, origin=point.origin),
            *(
                Cell(text=words)
                for words in (
                    series.implementation,
                    series.dtype,
                    clock_name(series.clock),
                    point.model,
                )
            ),
            Cell(text=count_text(point.parameters), number=True),
            Cell(text=seconds_text(point.seconds), number=True),
            Cell(text=_interval(point), number=True),
            Cell(text=point.origin),
        )
        for series in found
        for point in series.points
    ]
    return Table(head=head, rows=tuple(rows))


def _interval(point: Point) -> str:
    return (
        NOTHING
        if point.lower is None or point.upper is None
        else range_text(point.lower, point.upper)
    )
