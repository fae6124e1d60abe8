"""Agreement tables: simulated and measured figures, with the residual of each."""

from collections.abc import Sequence

from ..arithmetic.agreement import Agreement
from ..explain import METRICS
from ..units import MINUS, NOTHING, difference_text, exact_text, seconds_text
from ..words import conditions
from .table import Cell, Table, bytes_cell

HEAD = (
    "figure",
    "optimizer",
    "model",
    "measured on",
    "simulated",
    "measured",
    "residual",
    "in per cent",
)


def agreement_table(rows: Sequence[Agreement]) -> Table:
    """A row for each figure that a run has both ways."""
    return Table(head=HEAD, rows=tuple(map(_row, rows)))


def _row(row: Agreement) -> tuple[Cell, ...]:
    scenario = row.measured_from.scenario
    return (
        Cell(text=METRICS[row.metric].title),
        Cell(text=row.label),
        Cell(text=scenario.model),
        Cell(text=conditions(row.measured_from)),
        _figure(row, row.simulated),
        _figure(row, row.measured),
        Cell(text=_residual(row), number=True),
        Cell(
            text=NOTHING if row.percent is None else f"{difference_text(row.percent)} %",
            number=True,
        ),
    )


def _figure(row: Agreement, value: float) -> Cell:
    return (
        bytes_cell(int(value))
        if row.unit == "bytes"
        else Cell(text=seconds_text(value), number=True)
    )


def _residual(row: Agreement) -> str:
    """Bytes to the last one: small residuals matter here."""
    if not row.residual:
        return "0"
    size = (
        exact_text(abs(int(row.residual)))
        if row.unit == "bytes"
        else seconds_text(abs(row.residual))
    )
    return ("+" if row.residual > 0 else MINUS) + size
