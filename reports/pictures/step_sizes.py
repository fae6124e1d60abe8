"""The picture of step sizes: the time of a step against parameters, a panel for each clock.

A line joins models of one family only.
"""

from collections.abc import Sequence

from ..arithmetic.curves import ModelSize, Series
from ..arithmetic.findings import Findings
from ..arithmetic.labels import columns, shortened
from ..phrases import NOISE, noise_mark
from ..tables.table import Cell, Table
from ..units import NOTHING, count_text, range_text, seconds_text
from ..words import clock_name
from .picture import Axis, Dash, Line, Picture, Plot, Point

DASHES: dict[str, Dash] = {
    "loop": "dot",
    "foreach": "solid",
    "fused": "dash",
    "compiled": "dashdot",
}
DASH_NOTE = (
    "Dotted lines are steps run as a loop, solid ones foreach, broken ones fused, broken ones with"
    " dots compiled."
)


def describe(findings: Findings) -> list[Picture]:
    """Return the picture if a clock timed models of two sizes."""
    clocks: dict[str, list[Series]] = {}
    for series in findings.time_curves:
        clocks.setdefault(series.clock, []).append(series)
    clocks = {clock: series for clock, series in clocks.items() if len(_models(series)) > 1}
    if not clocks:
        return []
    shown = [series for group in clocks.values() for series in group]
    several = len({series.implementation for series in shown}) > 1
    noisy = any(point.noisy for series in shown for point in series.points)
    picture = Picture(
        name="step-by-size",
        title="Time of the step against model size",
        context=findings.context,
        sentence=(
            "How the time of a step grows with the model: medians with their 95 % intervals; a line"
            " joins models of one family only."
        ),
        table=_table(shown),
        panels=tuple(_plot(clock, series) for clock, series in clocks.items()),
        marks=findings.marks,
        notes=(*((DASH_NOTE,) if several else ()), *((NOISE,) if noisy else ())),
    )
    return [picture]


def _plot(clock: str, series: Sequence[Series]) -> Plot:
    models = _models(series)
    seconds = [point.seconds for one in series for point in one.points]
    return Plot(
        name=clock_name(clock),
        alt=f"Time of the step, {clock_name(clock)}, against parameters. "
        + "; ".join(map(_spoken, series))
        + ".",
        x=Axis(title="parameters of the model", kind="parameters", values=list(models)),
        y=Axis(title="time of the step", kind="seconds", values=seconds),
        lines=[_line(one) for one in series],
        height=460,
        columns={count: shortened(model, 24) for count, model in models.items()},
    )


def _line(series: Series) -> Line:
    points = (
        Point(
            x=point.parameters,
            y=point.seconds,
            origin=point.origin,
            words=(
                f" · {series.dtype}, {series.implementation}\n"
                f"{point.model}, {count_text(point.parameters)} parameters\n"
                f"{_time(point)}, {point.origin}"
            ),
            interval=_ends(point),
        )
        for point in series.points
    )
    dash = DASHES[series.implementation]
    return Line(label=series.label, points=tuple(points), dash=dash, size=11)


def _time(point: ModelSize) -> str:
    return seconds_text(point.seconds) + (noise_mark(point.noisy) if point.noisy else "")


def _ends(point: ModelSize) -> tuple[float, float] | None:
    if point.lower is None or point.upper is None:
        return None
    return point.lower, point.upper


def _models(series: Sequence[Series]) -> dict[int, str]:
    return columns((point.parameters, point.model) for one in series for point in one.points)


def _spoken(series: Series) -> str:
    points = ", ".join(f"{point.model} {_time(point)}" for point in series.points)
    return f"{series.label} in {series.dtype}, {series.implementation}: {points}"


def _table(series: Sequence[Series]) -> Table:
    head = (
        *("optimizer", "implementation", "dtype", "clock", "model", "parameters", "step"),
        *("95 % interval", "origin"),
    )
    rows = (
        (
            Cell(text=one.label, mark=one.label, origin=point.origin),
            Cell(text=one.implementation),
            Cell(text=one.dtype),
            Cell(text=clock_name(one.clock)),
            Cell(text=point.model),
            Cell(text=count_text(point.parameters), number=True),
            Cell(text=_time(point), number=True),
            Cell(text=range_text(*ends) if (ends := _ends(point)) else NOTHING, number=True),
            Cell(text=point.origin),
        )
        for one in series
        for point in one.points
    )
    return Table(head=head, rows=tuple(rows))
