"""The picture of sizes: bytes of state against parameters, under the memory of GPUs.

A line joins models of one family only.
"""

from collections.abc import Sequence

from optprof.scenarios import hardware

from ..arithmetic.curves import ModelSize, Series
from ..arithmetic.findings import Findings
from ..arithmetic.labels import columns, shortened
from ..phrases import nothing_text
from ..tables.table import Table, bytes_cell, text_table
from ..units import Sized, bytes_text, count_text
from ..words import listed
from .picture import Axis, Level, Line, Picture, Plot, Point

# More lines only cover each other, and their names fill the page.
MOST_LINES = 64
# The memory on the labels of the GPUs that have a line, in GB. Lines more than FAR times above all
# states are left out.
CLASSES, FAR = (16, 24, 40, 80, 141), 8


def describe(findings: Findings) -> list[Picture]:
    """Return the picture if a state has a byte."""
    curves = findings.curves
    shown = [one for one in curves if any(point.state_bytes for point in one.points)]
    if not shown:
        return []
    picture = Picture(
        name="state-by-size",
        title="Optimizer state against model size",
        context=_context(findings),
        sentence=(
            "The state of each optimizer by the size of the model. A line joins models of one"
            " family; dotted lines are the memory of GPUs."
        ),
        table=_table(curves),
        panels=(_plot(shown[:MOST_LINES]),),
        marks=findings.marks,
        notes=_notes(curves, len(shown)),
    )
    return [picture]


def _notes(curves: Sequence[Series], count: int) -> tuple[str, ...]:
    empty = [one.label for one in curves if not all(point.state_bytes for point in one.points)]
    few = f"The picture shows {MOST_LINES} of {count} lines; the table has all."
    return (
        *((nothing_text(list(dict.fromkeys(empty))),) if empty else ()),
        *((few,) if count > MOST_LINES else ()),
    )


def _plot(series: Sequence[Series]) -> Plot:
    points = [point for one in series for point in one.points if point.state_bytes]
    models = columns((point.parameters, point.model) for point in points)
    return Plot(
        name="",
        alt="State in bytes against parameters. " + "; ".join(map(_spoken, series)) + ".",
        x=Axis(title="parameters of the model", kind="parameters", values=list(models)),
        y=Axis(title="of state", kind="bytes", values=[point.state_bytes for point in points]),
        lines=[_line(one) for one in series],
        height=600,
        columns={count: shortened(model, 24) for count, model in models.items()},
        levels=_levels(max(point.state_bytes for point in points)),
    )


def _line(series: Series) -> Line:
    points = (point for point in series.points if point.state_bytes)
    return Line(
        label=series.label,
        points=tuple(
            Point(
                x=point.parameters,
                y=point.state_bytes,
                origin=point.origin,
                words=Sized.of(
                    lambda units, point=point: _words(
                        series, point, bytes_text(point.state_bytes, units)
                    )
                ),
            )
            for point in points
        ),
        lane=series.lane,
    )


def _words(series: Series, point: ModelSize, size: str) -> str:
    return (
        f" · {series.dtype}\n{point.model}, {count_text(point.parameters)} parameters\n"
        f"{size}, {point.origin}"
    )


def _levels(most: int) -> list[Level]:
    """Return a line for each class of GPU memory that the largest state comes near to."""
    gpus = list(map(hardware.describe, hardware.available()))
    classes = {label: [gpu for gpu in gpus if gpu.label_gb == label] for label in CLASSES}
    levels = [_level(label, members) for label, members in classes.items()]
    return [level for level in levels if most > level.value / FAR]


def _level(label: int, members: Sequence[hardware.Gpu]) -> Level:
    least = min(gpu.memory_bytes for gpu in members)
    names = ", ".join(gpu.name for gpu in members)
    return Level(
        value=least,
        name=f"{label} GB GPU",
        words=Sized.of(
            lambda units: (
                f"GPUs of {label} GB: {names}\n"
                f"{bytes_text(least, units)} for a program, or a little more"
            )
        ),
    )


def _context(findings: Findings) -> str:
    dtypes = listed(list(dict.fromkeys(series.dtype for series in findings.curves)))
    families = list(dict.fromkeys(series.family for series in findings.curves if series.family))
    if not families:
        return dtypes
    return f"{dtypes} · {listed(families)} {'families' if len(families) > 1 else 'family'}"


def _spoken(series: Series) -> str:
    points = ", ".join(f"{point.model} {bytes_text(point.state_bytes)}" for point in series.points)
    return f"{series.label} in {series.dtype}: {points}"


def _table(series: Sequence[Series]) -> Table:
    rows = (
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
    )
    return text_table(("optimizer", "dtype", "model", "parameters", "state", "origin"), rows)
