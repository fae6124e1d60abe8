"""Sight tables: state, allocated, reserved and the driver's figure of each optimizer side by side,
and what hides a saving in words.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..arithmetic.findings import Findings
from ..arithmetic.visibility import Sight, sights
from ..reasons import reasons
from ..units import NOTHING, Sized
from ..words import phase_name
from .table import Cell, Table, gib_cell
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


@dataclass(frozen=True, kw_only=True)
class SightTable:
    """The figures of one setting, and under each optimizer's label its sentences."""

    table: Table
    sentences: dict[str, Sized]


def sight_tables(findings: Findings) -> dict[str, SightTable]:
    """What is known of the settings that the verdict is about, by their names; those of which no
    bytes are known are left out.
    """
    found = {name: sights(group) for name, group in headline_groups(findings).items()}
    return {name: _sight_table(group) for name, group in found.items() if group}


def _sight_table(group: Sequence[Sight]) -> SightTable:
    sentences = {
        sight.entry.label: Sized.of(lambda units, sight=sight: " ".join(reasons(sight, units)))
        for sight in group
    }
    return SightTable(
        table=_table(group),
        sentences={label: told for label, told in sentences.items() if told.binary},
    )


def _table(found: Sequence[Sight]) -> Table:
    return Table(head=HEAD, rows=tuple(map(_row, found)))


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
