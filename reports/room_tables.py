"""Room tables: which GPUs of the catalogue have room for a training step, a row a GPU and a column an optimizer."""

from collections.abc import Mapping, Sequence

from .capacity import Room, batch_range, rooms
from .entries import setting_names
from .findings import Findings
from .fits import FAILS, FITS, TIGHT
from .table import Cell, Table, gib_cell
from .units import DECIMAL, NOTHING, exact_text, gib_text

UNSURE = "?"
SIGNS = {"fits": FITS, "tight": TIGHT, "unsure": UNSURE, "fails": FAILS, "lacking": FAILS}
LEGEND = (
    f"{FITS} GiB to spare; {TIGHT} the same, and less than 2 %; {FAILS} GiB short; {UNSURE} GiB short of what was reserved, with room for "
    "what was in use, so that the allocator would have to give some back in time. The largest batch stands where the run settles it."
)
# A page with more tables is no longer read.
MOST_TABLES = 4


def room_tables(findings: Findings) -> dict[str, Table]:
    """A table for each setting whose peaks are known, by its name; the first few of many."""
    peaking = [record for record in findings.records if record.memory and record.memory.peak_reserved is not None]
    # Rooms of other models have no say in the tables that are shown.
    models = list(dict.fromkeys(record.scenario.model for record in peaking))[:MOST_TABLES]
    found = rooms([record for record in findings.records if record.scenario.model in models])
    names = setting_names(room.setting for room in found)
    batches: dict[tuple[str, str, str], list[Room]] = {}
    for room in found:
        batches.setdefault(_about(room), []).append(room)
    shown = list(names.items())[:MOST_TABLES]
    return {name: _table(batches, [room for room in found if room.setting == setting]) for setting, name in shown}


def _about(room: Room) -> tuple[str, str, str]:
    return room.gpu, room.label, room.setting.model


def _table(batches: Mapping[tuple[str, str, str], Sequence[Room]], group: Sequence[Room]) -> Table:
    cells = {(room.gpu, _column(group, room)): _cell(room, batches[_about(room)]) for room in group}
    labels = list(dict.fromkeys(label for _, label in cells))
    usable = {room.gpu: room.usable for room in group}
    rows = [
        (Cell(text=gpu), gib_cell(size), *(cells.get((gpu, label), Cell(text=NOTHING)) for label in labels)) for gpu, size in usable.items()
    ]
    return Table(head=("GPU", "usable, GiB", *labels), rows=tuple(rows))


def _column(group: Sequence[Room], room: Room) -> str:
    """The label of a room, with its implementation where the group has several."""
    implementation = room.record.scenario.implementation
    several = len({other.record.scenario.implementation for other in group}) > 1
    return f"{room.label}, {implementation}" if several else room.label


def _cell(room: Room, batches: Sequence[Room]) -> Cell:
    if room.answer == "lacking":
        return Cell(text=f"{SIGNS[room.answer]} {room.reason}")
    sign, largest = SIGNS[room.answer], batch_range(batches, room).largest
    batch = "" if largest is None else f", batch {largest:,}"
    if room.left is None:
        return Cell(text=f"{sign} ran out{batch}")
    size = abs(room.left)
    return Cell(
        text=f"{sign} {gib_text(size)}{batch}",
        exact=f"{exact_text(size)} {'to spare' if room.left >= 0 else 'short'}",
        decimal=f"{sign} {gib_text(size, DECIMAL)}{batch}",
    )
