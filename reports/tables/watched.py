"""Watched tables: memory by phase, the blocks of the state and the operations of real steps."""

from collections.abc import Sequence

from optprof.profiler.records.record import Record, Watched

from ..arithmetic.entries import Entry
from ..arithmetic.findings import Findings
from ..units import seconds_text
from ..words import DEVICES, conditions, phase_name
from .table import Cell, Table, bytes_cell
from .verdict import headline_groups

Seen = tuple[Entry, Record, Watched]


def watched_tables(findings: Findings) -> dict[str, Table]:
    """The tables of the verdict's settings by their titles; empty ones are left out."""
    groups = headline_groups(findings)
    tables: dict[str, Table] = {}
    for name, group in groups.items():
        seen = _seen(group)
        where = f" · {name}" if len(groups) > 1 else ""
        for device in dict.fromkeys(record.scenario.device for _, record, _ in seen):
            of_device = [each for each in seen if each[1].scenario.device == device]
            tables[f"Memory by phase on {DEVICES[device]}{where}"] = _phases(of_device)
        tables[f"What the first step left allocated{where}"] = _blocks(seen)
        tables[f"The longest operations of a step{where}"] = _operations(seen)
    return {name: table for name, table in tables.items() if table.rows}


def _seen(group: Sequence[Entry]) -> list[Seen]:
    """The records of watched real runs behind the entries, each once."""
    pairs = {
        id(record): (entry, record)
        for entry in group
        for record in (entry.bytes_from, entry.times_from)
        if record
    }
    return [(entry, record, record.watched) for entry, record in pairs.values() if record.watched]


def _phases(seen: Sequence[Seen]) -> Table:
    """The first counter at the end of each phase, and the most of each counter."""
    counters = list(
        dict.fromkeys(
            counter
            for _, _, watched in seen
            for levels in watched.memory.values()
            for counter in levels
        )
    )
    rows = [
        (
            *_named(entry, record),
            Cell(text=phase_name(phase)),
            *(
                bytes_cell(levels[counter].end if counter in levels else None)
                for counter in counters[:1]
            ),
            *(
                bytes_cell(levels[counter].peak if counter in levels else None)
                for counter in counters
            ),
        )
        for entry, record, watched in seen
        for phase, levels in watched.memory.items()
    ]
    ends = [f"{counter} at its end" for counter in counters[:1]]
    return Table(
        head=(
            "optimizer",
            "run",
            "phase",
            *ends,
            *(f"most {counter}" for counter in counters),
        ),
        rows=tuple(rows),
    )


def _blocks(seen: Sequence[Seen]) -> Table:
    """The steps from the state's tensors to the rise of memory_allocated."""
    head = (
        "optimizer",
        "run",
        "state",
        "of it on the host",
        "rounded up by",
        "blocks of the state",
        "no state",
        "rise of memory_allocated",
    )
    rows = []
    for entry, record, watched in seen:
        blocks = watched.state_blocks
        if blocks is not None:
            counts = (
                blocks.tensors,
                blocks.on_host,
                blocks.rounding,
                blocks.allocated,
                blocks.other,
                blocks.delta,
            )
            rows.append((*_named(entry, record), *map(bytes_cell, counts)))
    return Table(head=head, rows=tuple(rows))


def _operations(seen: Sequence[Seen]) -> Table:
    """The longest operations of one step, by `--trace`."""
    rows = [
        (
            *_named(entry, record),
            Cell(text=operation.name),
            Cell(text=f"{operation.calls:,}", number=True),
            Cell(text=seconds_text(operation.seconds), number=True),
            bytes_cell(operation.bytes),
        )
        for entry, record, watched in seen
        for operation in watched.operations
    ]
    return Table(
        head=("optimizer", "run", "operation", "calls", "time", "reads and writes"),
        rows=tuple(rows),
    )


def _named(entry: Entry, record: Record) -> tuple[Cell, Cell]:
    return Cell(text=entry.label, mark=entry.label, origin=record.origin), Cell(
        text=conditions(record)
    )
