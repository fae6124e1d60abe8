"""Sight tables: what stands between the saving of state and the figure that a user looks at."""

from collections.abc import Sequence
from dataclasses import replace

from ..arithmetic.findings import Findings
from ..arithmetic.visibility import Sight, sights
from ..reasons import hidden_most, other_parts
from ..units import NOTHING, Sized, Words
from ..words import phase_name
from .table import Cell, Table, bytes_cell, columns_of, filled
from .verdict import headline_groups


def sight_tables(findings: Findings) -> dict[str, tuple[Words, Table]]:
    """A sentence and the figures of each setting of the verdict, by its name; a setting without
    known bytes is left out.
    """
    groups = {
        name: sights(group, findings.baseline) for name, group in headline_groups(findings).items()
    }
    return {
        name: (_sentence(group), _table(name, group)) for name, group in groups.items() if group
    }


def _sentence(group: Sequence[Sight]) -> Sized:
    return Sized.of(lambda units: hidden_most(group, units))


def _table(name: str, group: Sequence[Sight]) -> Table:
    """The counters from left to right, each with what the one before it leaves out, then the
    savings; columns that no row fills are left out.
    """
    is_read = all(sight.driver_is_read for sight in group if sight.driver is not None)
    columns = (
        ("optimizer", _name),
        ("state", lambda sight: bytes_cell(sight.state)),
        ("state as allocated", lambda sight: bytes_cell(sight.state_allocated)),
        ("peak allocated", lambda sight: bytes_cell(sight.allocated, sight.allocated_upper)),
        ("in", lambda sight: Cell(text=phase_name(sight.phase) or NOTHING)),
        ("peak reserved", lambda sight: bytes_cell(sight.reserved, sight.reserved_upper)),
        (
            "driver" if is_read else "driver, estimated",
            lambda sight: bytes_cell(sight.driver, sight.driver_upper),
        ),
        ("state saved", lambda sight: bytes_cell(sight.state_saved)),
        ("peak lower by", lambda sight: bytes_cell(sight.allocated_saved)),
        ("reserved lower by", lambda sight: bytes_cell(sight.reserved_saved)),
        ("other differences of the peak", _others),
        ("foreach adds", lambda sight: bytes_cell(sight.foreach_adds)),
    )
    table = filled(columns, group)
    kept = [
        place
        for place in range(len(columns))
        if any(row[place].text != NOTHING for row in table.rows)
    ]
    return replace(columns_of(table, kept), title=f"Counters side by side: {name}")


def _name(sight: Sight) -> Cell:
    label = sight.entry.label
    return Cell(text=label, mark=label, origin=sight.entry.origin)


def _others(sight: Sight) -> Cell:
    text = Sized.of(lambda units: other_parts(sight, units) or NOTHING)
    return Cell(text=text.binary, decimal=text.decimal)
