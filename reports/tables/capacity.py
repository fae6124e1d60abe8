"""Capacity tables: the GPUs that a training step fits on, a row a GPU and a column an optimizer."""

from collections.abc import Iterable, Sequence

from optprof.profiler.records.fits import Fit

from ..arithmetic.capacity import fits_by_setting
from ..arithmetic.entries import setting_names
from ..arithmetic.findings import Findings
from ..arithmetic.labels import optimizer_key
from ..units import DECIMAL, NOTHING, bytes_text, exact_text
from ..words import FAILS, FITS, TIGHT, UNSURE
from .table import Cell, Table, bytes_cell

SIGNS = {"fits": FITS, "tight": TIGHT, "unsure": UNSURE, "fails": FAILS, "unsupported": FAILS}
LEGEND = (
    f"{FITS} The step fits, and so much is left. {TIGHT} It fits, and less than 2 % is left."
    f" {FAILS} It does not fit: so much is missing. {UNSURE} It may fit: it would reserve so much"
    " more than there is, but never uses that much at once; the allocator may give some back, or"
    " cuDNN may take less."
)
BATCH_LEGEND = (
    " The batch is the largest that the run has tried and that fits; a larger one may fit where the"
    " table says “at least”."
)
NCCL_LEGEND = f"{TIGHT} also marks a step that does not fit if NCCL takes the most."
# A page with more tables is no longer read.
MOST_TABLES = 4


def capacity_tables(findings: Findings) -> dict[str, Table]:
    """Return a table for each of the first settings whose peaks are known, by its name."""
    groups = fits_by_setting(findings.records)
    names = list(setting_names(groups).items())[:MOST_TABLES]
    return {name: _table(findings, groups[setting]) for setting, name in names}


def capacity_legend(tables: Iterable[Table]) -> str:
    """The meaning of the signs in the tables, and of batches if there are any."""
    texts = [cell.text for table in tables for row in table.rows for cell in row]
    batch = BATCH_LEGEND if any(", batch" in text for text in texts) else ""
    return LEGEND + batch if texts else ""


def _table(findings: Findings, group: Sequence[tuple[str, Fit]]) -> Table:
    several = len({fit.scenario.implementation for _, fit in group}) > 1

    def column(fit: Fit) -> str:
        label = findings.labels[optimizer_key(fit.scenario)]
        return f"{label}, {fit.scenario.implementation}" if several else label

    cells = {(gpu, column(fit)): fit_cell(fit, _batch(fit)) for gpu, fit in group}
    columns = dict.fromkeys(label for _, label in cells)
    rows = [
        (
            Cell(text=gpu),
            bytes_cell(nbytes),
            *(cells.get((gpu, label), Cell(text=NOTHING)) for label in columns),
        )
        for gpu, nbytes in {gpu: fit.usable for gpu, fit in group}.items()
    ]
    return Table(head=("GPU", "usable", *columns), rows=tuple(rows))


def fit_cell(fit: Fit, batch: str) -> Cell:
    """Return a cell with the answer's sign, the bytes left or short, and the text on the batch."""
    sign, spare = SIGNS[fit.answer], fit.spare
    if fit.error is not None:
        return Cell(text=f"{sign} not simulated")
    if fit.reason is not None:
        return Cell(text=f"{sign} {fit.reason}")
    if spare is None:
        return Cell(text=f"{sign} ran out{batch}")
    return Cell(
        text=f"{sign} {bytes_text(abs(spare))}{batch}",
        exact=f"{exact_text(abs(spare))} {'to spare' if spare >= 0 else 'short'}",
        decimal=f"{sign} {bytes_text(abs(spare), DECIMAL)}{batch}",
    )


def _batch(fit: Fit) -> str:
    """Return the largest batch, or the largest that was tried; the sign covers a batch of 1."""
    largest, failing = fit.largest_batch, fit.failing_batch
    if largest and fit.is_batch_settled:
        return f", batch {largest:,}"
    if largest in (None, 0, 1):
        return ""
    return f", batch at least {largest:,}" + (f", below {failing:,}" if failing else "")
