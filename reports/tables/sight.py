"""Sight tables: state, allocated, reserved and the driver's figure of each optimizer side by side,
and sentences on what hides a saving.
"""

from collections.abc import Sequence

from ..arithmetic.findings import Findings
from ..arithmetic.visibility import Sight, sights
from ..reasons import reasons
from ..units import NOTHING, Sized
from ..words import phase_name
from .table import Cell, Facts, Table, gib_cell
from .verdict import headline_groups

HEAD = (
    "optimizer",
    "state, GiB",
    "as allocated, GiB",
    "peak allocated, GiB",
    "peak reserved, GiB",
    "driver, GiB",
    "phase of the peak",
    "state saved, GiB",
    "peak lower by, GiB",
)


def sight_tables(findings: Findings) -> dict[str, tuple[Table, Facts]]:
    """The figures of each setting of the verdict by its name, and sentences by optimizer; a
    setting without known bytes is left out.
    """
    groups = {
        name: sights(group, findings.baseline) for name, group in headline_groups(findings).items()
    }
    return {
        name: (_table(name, group), _sentences(group)) for name, group in groups.items() if group
    }


def _sentences(group: Sequence[Sight]) -> Facts:
    pairs = (
        (
            sight.entry.label,
            Sized.of(lambda units, sight=sight: " ".join(reasons(sight, units))),
        )
        for sight in group
    )
    return Facts(tuple((label, text) for label, text in pairs if text.binary))


def _table(name: str, group: Sequence[Sight]) -> Table:
    title = f"Counters side by side: {name}"
    return Table(head=HEAD, rows=tuple(map(_row, group)), title=title)


def _row(sight: Sight) -> tuple[Cell, ...]:
    label = sight.entry.label
    return (
        Cell(text=label, mark=label, origin=sight.entry.origin),
        gib_cell(sight.state),
        gib_cell(sight.state_allocated),
        gib_cell(sight.allocated, sight.allocated_upper),
        gib_cell(sight.reserved, sight.reserved_upper),
        gib_cell(sight.driver, sight.driver_upper),
        Cell(text=phase_name(sight.phase) or NOTHING),
        gib_cell(sight.state_saved),
        gib_cell(sight.allocated_saved),
    )
