"""Sight tables: what stands between the saving of state and the figure that a user looks at."""

from collections.abc import Sequence
from dataclasses import replace

from ..arithmetic.findings import Findings
from ..arithmetic.visibility import Sight, sights
from ..reasons import hidden_most, other_parts
from ..units import NOTHING, Sized, Words
from ..words import phase_name
from .table import Cell, Table, filled, gib_cell
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
        ("state, GiB", lambda sight: gib_cell(sight.state)),
        ("state as allocated, GiB", lambda sight: gib_cell(sight.state_allocated)),
        ("peak allocated, GiB", lambda sight: gib_cell(sight.allocated, sight.allocated_upper)),
        ("in", lambda sight: Cell(text=phase_name(sight.phase) or NOTHING)),
        ("peak reserved, GiB", lambda sight: gib_cell(sight.reserved, sight.reserved_upper)),
        (
            "driver, GiB" if is_read else "driver, estimated, GiB",
            lambda sight: gib_cell(sight.driver, sight.driver_upper),
        ),
        ("state saved, GiB", lambda sight: gib_cell(sight.state_saved)),
        ("peak lower by, GiB", lambda sight: gib_cell(sight.allocated_saved)),
        ("reserved lower by, GiB", lambda sight: gib_cell(sight.reserved_saved)),
        ("other differences of the peak", _others),
        ("foreach adds, GiB", lambda sight: gib_cell(sight.foreach_adds)),
    )
    table = filled(columns, group)
    kept = [
        place
        for place in range(len(columns))
        if any(row[place].text != NOTHING for row in table.rows)
    ]
    return replace(
        table,
        title=f"Counters side by side: {name}",
        head=tuple(table.head[place] for place in kept),
        rows=tuple(tuple(row[place] for place in kept) for row in table.rows),
    )


def _name(sight: Sight) -> Cell:
    label = sight.entry.label
    return Cell(text=label, mark=label, origin=sight.entry.origin)


def _others(sight: Sight) -> Cell:
    text = Sized.of(lambda units: other_parts(sight, units) or NOTHING)
    return Cell(text=text.binary, decimal=text.decimal)
