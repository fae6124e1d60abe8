"""Tradeoffs: time of the step against memory, with the front of those that no other optimizer beats
in both.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from optprof.profiler.safety.plain import plain

from ..arithmetic.findings import Findings
from ..arithmetic.pareto import Tradeoff
from ..phrases import nothing_text
from ..tables.table import Cell, Table, bytes_cell
from ..units import Sized, bytes_text, seconds_text
from ..words import clock_name
from .chart import Chart, Graph, Heading, error_bars, giga_ticks, marker, second_ticks, text

# A page with more graphs is no longer looked at.
MOST_GRAPHS = 4
# The name of a setting, and the clock.
Group = tuple[str, str]


def tradeoff_chart(findings: Findings) -> Chart | None:
    """A graph for each setting and clock that has two optimizers or more; None where there is
    none.
    """
    groups: dict[Group, list[Tradeoff]] = {}
    for point in findings.tradeoffs:
        groups.setdefault((findings.names[point.entry.setting], point.clock), []).append(point)
    groups = {
        name: points
        for name, points in groups.items()
        if len({point.entry.label for point in points}) > 1
    }
    if not groups:
        return None
    drawn = {name: [point for point in points if point.bytes] for name, points in groups.items()}
    shown = dict([(name, points) for name, points in drawn.items() if points][:MOST_GRAPHS])
    return Chart(
        name="pareto",
        title="Time against memory",
        sentence=(
            "Left is faster, down is smaller. The broken line joins the Pareto front: what no other"
            " optimizer beats in both."
        ),
        alt="",
        table=_table(findings, [point for points in groups.values() for point in points]),
        notes=_notes(groups, shown),
        graphs=tuple(
            _graph(findings, setting, clock, points) for (setting, clock), points in shown.items()
        ),
        labels={
            point.entry.label: point.shown_origin for points in shown.values() for point in points
        },
    )


def _notes(
    groups: Mapping[Group, Sequence[Tradeoff]], shown: Mapping[Group, Sequence[Tradeoff]]
) -> tuple[str, ...]:
    """What the graphs leave to the table."""
    empty = dict.fromkeys(
        point.entry.label for points in groups.values() for point in points if not point.bytes
    )
    few = f"The page draws {len(shown)} of {len(groups)} comparisons; the table has all."
    return (
        *((nothing_text(list(empty)),) if empty else ()),
        *((few,) if len(shown) < len(groups) else ()),
    )


def _graph(findings: Findings, setting: str, clock: str, points: Sequence[Tradeoff]) -> Graph:
    what = "at the peak of a training step" if points[0].is_peak else "of state"
    return Graph(
        alt=f"Time of the step against bytes {what}, on {setting}. "
        + "; ".join(map(_spoken, points))
        + ".",
        traces=[
            _front(points),
            *(_trace(findings, point, number) for number, point in enumerate(_by_time(points))),
        ],
        layout={
            "xaxis": {
                "type": "log",
                "title": {"text": f"time of the step, {text(clock_name(clock))}"},
                **second_ticks([point.seconds for point in points]),
            },
            "yaxis": {
                "type": "log",
                "title": {"text": {"binary": f"GiB {what}", "decimal": f"GB {what}"}},
                **giga_ticks([point.bytes for point in points]),
            },
        },
        height=420,
        heading=Heading(text=f"{setting}, {clock_name(clock)}"),
        logarithmic=True,
    )


def _trace(findings: Findings, point: Tradeoff, number: int) -> dict[str, Any]:
    label = point.entry.label
    colour = f"@{findings.colour_name(label)}"
    hover = Sized.of(
        lambda units: (
            f"<b>{text(label)}</b><br>{seconds_text(point.seconds)},"
            f" {point.origin}<br>{bytes_text(point.bytes, units)},"
            f" {point.entry.origin}{'<br>on the Pareto front' if point.on_front else ''}"
        )
    )
    return {
        "label": plain(label),
        "mode": "markers+text",
        "x": [point.seconds],
        "y": {"bytes": [point.bytes]},
        "error_x": error_bars([(point.lower, point.seconds, point.upper)], colour),
        "marker": marker(findings.marks[label], colour, point.shown_origin, 13),
        # Neighbours in time are named above and below by turns.
        "text": [text(label)],
        "textposition": "bottom center" if number % 2 else "top center",
        "hoverinfo": "text",
        "hovertext": {"binary": [hover.binary], "decimal": [hover.decimal]},
        "cliponaxis": False,
    }


def _front(points: Sequence[Tradeoff]) -> dict[str, Any]:
    best = _by_time([point for point in points if point.on_front])
    return {
        "mode": "lines",
        "x": [point.seconds for point in best],
        "y": {"bytes": [point.bytes for point in best]},
        "line": {"color": "@muted", "width": 1.2, "dash": "dash", "shape": "hv"},
        "hoverinfo": "skip",
    }


def _by_time(points: Sequence[Tradeoff]) -> list[Tradeoff]:
    return sorted(points, key=lambda point: point.seconds)


def _spoken(point: Tradeoff) -> str:
    front = ", on the Pareto front" if point.on_front else ""
    return (
        f"{point.entry.label}: {seconds_text(point.seconds)} and {bytes_text(point.bytes)}{front}"
    )


def _table(findings: Findings, points: Sequence[Tradeoff]) -> Table:
    head = (
        "optimizer",
        "model",
        "clock",
        "step",
        "origin of the time",
        "bytes",
        "which",
        "origin of the bytes",
        "on the front",
    )
    rows = [
        (
            Cell(text=point.entry.label, mark=point.entry.label, origin=point.shown_origin),
            Cell(text=findings.names[point.entry.setting]),
            Cell(text=clock_name(point.clock)),
            Cell(text=seconds_text(point.seconds), number=True),
            Cell(text=point.origin),
            bytes_cell(point.bytes),
            Cell(text="peak" if point.is_peak else "state"),
            Cell(text=point.entry.origin),
            Cell(text="yes" if point.on_front else "no"),
        )
        for point in points
    ]
    return Table(head=head, rows=tuple(rows))
