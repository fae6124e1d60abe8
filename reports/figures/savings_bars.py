"""The picture of savings: each optimizer's state as a share of the baseline's, with bytes, factor
and per cent written out.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..arithmetic.findings import Findings, pictured
from ..arithmetic.savings import BASELINE, Saving
from ..phrases import saving_text
from ..style import INK, PAPER, TRACK
from ..tables.table import Table, bytes_cell, text_table
from ..units import bytes_text, factor_text, gib_text, per_parameter_text, percent_text
from .canvas import Frame
from .drawing import FOR_PAPER, Drawing, Style, render
from .rows import BAR, Place, Row, RowChart

TITLE = "State saved against AdamW"


def draw_savings(findings: Findings, style: Style = FOR_PAPER) -> Drawing | None:
    """The picture, or None where no setting has a baseline and something to compare with it."""
    rows, notes = pictured(findings.savings, lambda row: row.entry.setting)
    if all(row.is_baseline for row in rows):
        return None
    return render(
        lambda frame: _figure(findings, rows, frame),
        style,
        name="savings",
        title=TITLE,
        sentence=(
            f"How much less state each optimizer keeps than {BASELINE} for the same model, in"
            " bytes, as a factor and in per cent."
        ),
        alt=f"Bars of optimizer state as a share of {BASELINE}'s. "
        + "; ".join(_spoken(findings, row) for row in rows)
        + ".",
        table=_table(findings),
        notes=notes,
    )


def _figure(findings: Findings, rows: Sequence[Saving], frame: Frame) -> Figure:
    most = max(1.0, *(row.share_kept for row in rows))
    chart = RowChart(
        frame,
        [_row(findings, row) for row in rows],
        title=TITLE,
        context=findings.context,
        grouped=len(findings.names) > 1,
        axis=f"state kept, as a share of {BASELINE}'s",
        scale=lambda axes, _: _scale(axes, most),
    )
    for row, place in zip(rows, chart.places, strict=True):
        place.axes.barh(place.y, 1, BAR, color=TRACK.light)
        place.axes.barh(
            place.y, row.share_kept, BAR, color=findings.marks[row.entry.label].colour.light
        )
        _write_state(place, row, inside=row.share_kept > 0.7 * most)
    return chart.canvas.figure


def _scale(axes: Axes, most: float) -> None:
    axes.set_xlim(0, most)
    ticks = [0, 0.25, 0.5, 0.75, 1] if most <= 1.5 else [0, 1, most]
    axes.set_xticks(ticks, [f"{100 * tick:.0f} %" for tick in ticks])


def _write_state(place: Place, row: Saving, *, inside: bool) -> None:
    """The state itself, at the end of its bar."""
    place.axes.annotate(
        f"{gib_text(row.state_bytes)} GiB",
        (row.share_kept, place.y),
        xytext=(-4 if inside else 4, 0),
        textcoords="offset points",
        ha="right" if inside else "left",
        va="center_baseline",
        color=(PAPER if inside else INK).light,
        size=place.frame.small,
    )


def _row(findings: Findings, row: Saving) -> Row:
    return Row(
        group=findings.names[row.entry.setting],
        mark=findings.marks[row.entry.label],
        origin=row.entry.origin,
        label=row.entry.label,
        value=saving_text(row),
    )


def _spoken(findings: Findings, row: Saving) -> str:
    return (
        f"{row.entry.label} on {findings.names[row.entry.setting]}: {bytes_text(row.state_bytes)},"
        f" {saving_text(row)}"
    )


def _table(findings: Findings) -> Table:
    head = ("optimizer", "model", "state", "bytes a parameter", "saved", "factor", "per cent")
    rows = tuple(
        (
            row.entry.label,
            findings.names[row.entry.setting],
            bytes_cell(row.state_bytes),
            per_parameter_text(row.entry.bytes_per_parameter or 0),
            bytes_cell(row.saved_bytes),
            factor_text(row.factor),
            percent_text(row.saved_bytes, row.baseline_bytes),
        )
        for row in findings.savings
    )
    return text_table(head, rows)
