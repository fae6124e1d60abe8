"""The picture of peaks: what a training step holds at its highest moment, stacked by category."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from ..arithmetic.findings import Findings, pictured
from ..arithmetic.peaks import Peak, in_stack_order
from ..phrases import peak_text
from ..style import MUTED, TRACK, block_colour
from ..tables.table import Table, bytes_cell, text_table
from ..units import bytes_text, gib
from ..words import category_name, phase_name
from .canvas import Frame
from .drawing import FOR_PAPER, Drawing, Style, render
from .rows import BAR, Row, RowChart, linear_scale
from .symbols import Key

TITLE = "What the peak is made of"
# A part below this share is thinner than a line, and no key explains it.
VISIBLE = 0.002


def draw_peaks(findings: Findings, style: Style = FOR_PAPER) -> Drawing | None:
    """The picture, or None where no record tells a peak."""
    rows, notes = pictured(findings.peaks, lambda row: row.entry.setting)
    if not rows:
        return None
    return render(
        lambda frame: _figure(findings, rows, frame),
        style,
        name="peak",
        title=TITLE,
        sentence=(
            "The most that a training step holds at once, split by what holds it, and the phase in"
            " which that moment comes."
        ),
        alt="Stacked bars of peak memory. "
        + "; ".join(_spoken(findings, row) for row in rows)
        + ".",
        table=_table(findings),
        notes=notes,
    )


def _figure(findings: Findings, rows: Sequence[Peak], frame: Frame) -> Figure:
    highest = [gib(max(row.allocated, row.reserved or 0, row.split)) for row in rows]
    chart = RowChart(
        frame,
        [_row(findings, row) for row in rows],
        title=TITLE,
        context=findings.context,
        grouped=len(findings.names) > 1,
        axis="GiB",
        scale=lambda axes, group: linear_scale(axes, max(highest[group])),
        scale_groups=True,
        legend=_legend(findings),
    )
    outline = {"facecolor": TRACK.light, "edgecolor": MUTED.light, "linewidth": 0.7}
    for row, place in zip(rows, chart.places, strict=True):
        if row.reserved is not None:
            place.axes.barh(place.y, gib(row.reserved), 0.7 * BAR, **outline)
        place.stack([(name, gib(count)) for name, count in row.parts])
    return chart.canvas.figure


def _legend(findings: Findings) -> list[Key]:
    legend = [
        Key("block", category_name(name), block_colour(name))
        for name in _categories(findings, VISIBLE)
    ]
    return [
        *legend,
        *(
            [Key("outline", "reserved, not allocated")]
            if any(row.reserved for row in findings.peaks)
            else []
        ),
    ]


def _categories(findings: Findings, least: float = 0) -> list[str]:
    """The categories that hold at least that share of some peak."""
    return in_stack_order(
        {
            name
            for row in findings.peaks
            for name, count in row.parts
            if count >= least * row.allocated
        }
    )


def _row(findings: Findings, row: Peak) -> Row:
    return Row(
        group=findings.names[row.entry.setting],
        mark=findings.marks[row.entry.label],
        origin=row.parts_origin,
        label=row.entry.label,
        value=peak_text(row),
    )


def _spoken(findings: Findings, row: Peak) -> str:
    parts = ", ".join(f"{category_name(name)} {bytes_text(count)}" for name, count in row.parts)
    return f"{row.entry.label} on {findings.names[row.entry.setting]}: {peak_text(row)} ({parts})"


def _table(findings: Findings) -> Table:
    categories = _categories(findings)
    told = ("optimizer", "model", "origin", "phase", "peak", "reserved")
    head = (*told, "parts", *map(category_name, categories), "peak less parts")
    rows = []
    for row in findings.peaks:
        parts, name = dict(row.parts), findings.names[row.entry.setting]
        counts = [bytes_cell(parts.get(category, 0)) for category in categories]
        whole = (
            phase_name(row.phase),
            bytes_cell(row.allocated, row.allocated_upper),
            bytes_cell(row.reserved, row.reserved_upper),
        )
        rows.append(
            (
                row.entry.label,
                name,
                row.entry.origin,
                *whole,
                row.parts_origin,
                *counts,
                bytes_cell(row.residual),
            )
        )
    return text_table(head, rows)
