"""Heat map: the savings of every optimizer in every setting as coloured cells."""

import math

from ..arithmetic.findings import Findings
from ..arithmetic.savings import Saving
from ..units import NOTHING, exact_text, factor_text, percent_text
from .table import Cell, Table

# A state that is so many times smaller or larger than the baseline's has the deepest colour.
DEEPEST = 1000


def heat_map(findings: Findings) -> Table:
    """A row for each setting, a column for each optimizer; no row where nothing is compared with a
    baseline.
    """
    if not findings.has_savings:
        return Table(head=(), rows=())
    savings = {(saving.entry.label, saving.entry.setting): saving for saving in findings.savings}
    cells = {key: _cell(saving) for key, saving in savings.items()}
    labels = tuple(dict.fromkeys(label for label, _ in savings))
    rows = (
        (
            Cell(text=findings.names[setting]),
            *(cells.get((label, setting), Cell(text=NOTHING)) for label in labels),
        )
        for setting in dict.fromkeys(setting for _, setting in savings)
    )
    return Table(head=("model", *labels), rows=tuple(rows))


def _cell(row: Saving) -> Cell:
    distance = (
        abs(math.log(max(row.factor, 1e-9))) / math.log(DEEPEST)
        if math.isfinite(row.factor)
        else 1.0
    )
    saved = (
        f"{exact_text(row.state_bytes)}, {exact_text(abs(row.saved_bytes))}"
        f" {'less' if row.saved_bytes >= 0 else 'more'}"
    )
    # The root brings out half a state, which matters more than the step from 500 times to 1,000.
    depth = 100 * min(distance, 1.0) ** 0.6
    return Cell(
        text=factor_text(row.factor),
        remark=(
            "the baseline" if row.is_baseline else percent_text(row.saved_bytes, row.baseline_bytes)
        ),
        exact=saved,
        shade=depth if row.saved_bytes >= 0 else -depth,
    )
