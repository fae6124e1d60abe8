"""Room tables: the GPUs with room for a training step, a row a GPU and a column an optimizer."""

from collections.abc import Sequence

from ..arithmetic.capacity import BatchRange, Room, rooms
from ..arithmetic.entries import setting_names
from ..arithmetic.findings import Findings
from ..units import DECIMAL, NOTHING, Sized, exact_text, gib_text
from ..words import FAILS, FITS, TIGHT, UNSURE
from .table import Cell, Table, gib_cell

SIGNS = {"fits": FITS, "tight": TIGHT, "unsure": UNSURE, "fails": FAILS, "lacking": FAILS}
LEGEND = Sized.of(
    lambda units: (
        f"{FITS} {units.giga} to spare; {TIGHT} the same, and less than 2 %; {FAILS} {units.giga}"
        f" short; {UNSURE} {units.giga} short of the memory reserved, with room for the memory in"
        " use: the allocator would have to give some back in time, or cuDNN to work with less. The"
        " largest batch is shown where the run settles it, else the largest that it tried and that"
        " fits, as at least that."
    )
)
# A page with more tables is no longer read.
MOST_TABLES = 4


def room_tables(findings: Findings) -> dict[str, Table]:
    """A table for each setting with known peaks, by its name; the first few of many."""
    answers = rooms(findings.records)
    names = setting_names(room.setting for room in answers)
    shown = list(names.items())[:MOST_TABLES]
    return {
        name: _table(name, [room for room in answers if room.setting == setting])
        for setting, name in shown
    }


def _table(name: str, group: Sequence[Room]) -> Table:
    several = len({room.record.scenario.implementation for room in group}) > 1
    cells = {(room.gpu, _column(room, several=several)): _cell(room) for room in group}
    labels = list(dict.fromkeys(label for _, label in cells))
    usable = {room.gpu: room.usable for room in group}
    rows = [
        (
            Cell(text=gpu),
            gib_cell(size),
            *(cells.get((gpu, label), Cell(text=NOTHING)) for label in labels),
        )
        for gpu, size in usable.items()
    ]
    head = ("GPU", "usable, GiB", *labels)
    return Table(head=head, rows=tuple(rows), title=f"What fits: {name}")


def _column(room: Room, *, several: bool) -> str:
    """The label of a room, with its implementation where the group has several."""
    return f"{room.label}, {room.record.scenario.implementation}" if several else room.label


def _cell(room: Room) -> Cell:
    if room.answer == "lacking":
        return Cell(text=f"{SIGNS[room.answer]} {room.reason}")
    sign, batch = SIGNS[room.answer], _batch(room.batches)
    if room.left is None:
        return Cell(text=f"{sign} ran out{batch}")
    size = abs(room.left)
    return Cell(
        text=f"{sign} {gib_text(size)}{batch}",
        exact=f"{exact_text(size)} {'to spare' if room.left >= 0 else 'short'}",
        decimal=f"{sign} {gib_text(size, DECIMAL)}{batch}",
    )


def _batch(known: BatchRange) -> str:
    """The largest batch, or the largest that was tried, from 2 on: the sign answers for 1."""
    if known.largest:
        return f", batch {known.largest:,}"
    if known.fits in (None, 1):
        return ""
    return f", batch at least {known.fits:,}" + (f", below {known.fails:,}" if known.fails else "")
