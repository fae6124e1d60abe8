"""Heat map: the savings of every optimizer in every setting as coloured cells, factor and per cent
written out.
"""

import math
from dataclasses import dataclass

from ..arithmetic.findings import Findings
from ..arithmetic.savings import Saving
from ..units import exact_text, factor_text, percent_text

# The deepest colour is of a state this many times smaller, or larger, than the baseline's.
DEEPEST = 1000


@dataclass(frozen=True, kw_only=True)
class Heat:
    """A cell: the factor, the per cent saved, the bytes behind both; `depth` of colour in per cent,
    for what is saved or is kept more.
    """

    factor: str
    percent: str
    exact: str
    depth: float
    saves: bool


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """Labels of the columns, and rows of a setting's name and its cells; None is a cell that no
    record tells.
    """

    labels: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Heat | None, ...]], ...]


def heat_map(findings: Findings) -> HeatMap:
    """The map of a run; without rows where no setting has a baseline and something to compare with
    it.
    """
    if all(saving.is_baseline for saving in findings.savings):
        return HeatMap(labels=(), rows=())
    cells = {(saving.entry.label, saving.entry.setting): saving for saving in findings.savings}
    heats = {key: _heat(saving) for key, saving in cells.items()}
    labels = tuple(dict.fromkeys(label for label, _ in cells))
    rows = [
        (findings.names[setting], tuple(heats.get((label, setting)) for label in labels))
        for setting in dict.fromkeys(setting for _, setting in cells)
    ]
    return HeatMap(labels=labels, rows=tuple(rows))


def _heat(row: Saving) -> Heat:
    distance = (
        abs(math.log(max(row.factor, 1e-9))) / math.log(DEEPEST)
        if math.isfinite(row.factor)
        else 1.0
    )
    saved = (
        f"{exact_text(row.state_bytes)}, {exact_text(abs(row.saved_bytes))}"
        f" {'less' if row.saved_bytes >= 0 else 'more'}"
    )
    return Heat(
        factor=factor_text(row.factor),
        percent=(
            "the baseline" if row.is_baseline else percent_text(row.saved_bytes, row.baseline_bytes)
        ),
        exact=saved,
        # The root brings out what halves a state, which matters more than the step from 500 times
        # to 1,000.
        depth=100 * min(distance, 1.0) ** 0.6,
        saves=row.saved_bytes >= 0,
    )
