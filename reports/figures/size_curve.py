"""The picture of sizes: bytes of state against parameters on log axes, joined within a model family
only.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from ..arithmetic.curves import Series
from ..arithmetic.findings import Findings
from ..arithmetic.labels import columns, shortened
from ..phrases import nothing_text
from ..style import Mark
from ..tables.table import Table, bytes_cell, text_table
from ..units import bytes_text, count_text, gib
from ..words import listed
from .canvas import Frame
from .drawing import FOR_PAPER, Drawing, Style, render
from .log_plot import Label, LogPlot
from .symbols import mark_style

TITLE = "Optimizer state against model size"
# More lines only cover each other, and their names fill the page.
MOST_LINES = 64


def draw_sizes(findings: Findings, style: Style = FOR_PAPER) -> Drawing | None:
    """The picture, or None where no state holds a byte."""
    if not any(point.state_bytes for series in findings.curves for point in series.points):
        return None
    shown = findings.curves[:MOST_LINES]
    empty = dict.fromkeys(
        series.label
        for series in findings.curves
        if any(not point.state_bytes for point in series.points)
    )
    return render(
        lambda frame: _figure(findings, frame),
        style,
        name="state-by-size",
        title=TITLE,
        sentence=(
            "How the state grows with the model. Both axes are logarithmic; a line joins models of"
            " one family only."
        ),
        alt="State in bytes against parameters. "
        + "; ".join(_spoken(series) for series in shown)
        + ".",
        table=_table(findings.curves),
        notes=(*((nothing_text(list(empty)),) if empty else ()), *_left_out(findings)),
    )


def _left_out(findings: Findings) -> tuple[str, ...]:
    count = len(findings.curves)
    return (
        ()
        if count <= MOST_LINES
        else (f"The picture shows {MOST_LINES} of {count} lines; the table has all.",)
    )


def _figure(findings: Findings, frame: Frame) -> Figure:
    series = [
        one
        for one in findings.curves[:MOST_LINES]
        if any(point.state_bytes for point in one.points)
    ]
    models = columns((point.parameters, point.model) for one in series for point in one.points)
    states = [gib(point.state_bytes) for one in series for point in one.points if point.state_bytes]
    labels = _labels(findings, series, 24 if frame.width > 5 else 15)
    plot = LogPlot(
        frame,
        models=models,
        heights=states,
        labels=labels,
        unit="GiB",
        title=TITLE,
        context=_context(findings),
    )
    for one in series:
        _draw(plot, one, findings.marks[one.label])
    return plot.canvas.figure


def _draw(plot: LogPlot, series: Series, mark: Mark) -> None:
    """One series; where it coincides with earlier ones its line is broken and its marks are
    smaller, so that all show.
    """
    points = [point for point in series.points if point.state_bytes]
    frame, lane = plot.frame, series.lane
    colour = mark.colour.light
    line = (0, (4, 4 * lane)) if lane else "solid"
    x, y = [point.parameters for point in points], [gib(point.state_bytes) for point in points]
    plot.axes.plot(x, y, color=colour, linestyle=line, linewidth=1.6, zorder=2 + lane)
    for origin in dict.fromkeys(point.origin for point in points):
        of_origin = [number for number, point in enumerate(points) if point.origin == origin]
        style = mark_style(mark, origin, 0.9 * 0.62**lane * frame.size)
        plot.axes.plot(
            [x[number] for number in of_origin],
            [y[number] for number in of_origin],
            zorder=10 + lane,
            clip_on=False,
            **style,
        )


def _labels(findings: Findings, series: Sequence[Series], length: int) -> list[Label]:
    """A label for each optimizer and dtype, at the state of its largest model."""
    several = len({one.dtype for one in series}) > 1
    last = {}
    for one in sorted(series, key=lambda one: one.points[-1].parameters):
        last[one.label, one.dtype] = one.points[-1]
    return [
        Label(
            text=_broken(label, length) + (f" · {shortened(dtype, 16)}" if several else ""),
            mark=findings.marks[label],
            origin=point.origin,
            height=gib(point.state_bytes),
        )
        for (label, dtype), point in last.items()
        if point.state_bytes
    ]


def _broken(label: str, length: int) -> str:
    """The label on two lines where it names options; of module:Class the class."""
    name, bracket, options = label.partition(" (")
    name = name.rpartition(":")[2] or name
    return shortened(name, length) + (f"\n({shortened(options, length)}" if bracket else "")


def _context(findings: Findings) -> str:
    dtypes = listed(list(dict.fromkeys(series.dtype for series in findings.curves)))
    families = list(dict.fromkeys(series.family for series in findings.curves if series.family))
    return (
        f"{dtypes} · {listed(families)} {'families' if len(families) > 1 else 'family'}"
        if families
        else dtypes
    )


def _spoken(series: Series) -> str:
    points = ", ".join(f"{point.model} {bytes_text(point.state_bytes)}" for point in series.points)
    return f"{series.label} in {series.dtype}: {points}"


def _table(series: Sequence[Series]) -> Table:
    rows = [
        (
            one.label,
            one.dtype,
            point.model,
            count_text(point.parameters),
            bytes_cell(point.state_bytes),
            point.origin,
        )
        for one in series
        for point in one.points
    ]
    return text_table(("optimizer", "dtype", "model", "parameters", "state", "origin"), rows)
