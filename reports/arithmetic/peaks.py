"""Peaks: what a training step holds at its highest moment, by category, and which phase owns that
moment.

CUDA's allocator does not tell what its bytes are for: a peak that was measured there has the parts
of the simulation that asked the same.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optprof.profiler.records.record import Record

from .entries import Entry, question

# The order of a stack: what the model brings first, then the optimizer's, then what comes and goes.
CATEGORIES = (
    "parameter",
    "buffer",
    "gradient",
    "optimizer_state",
    "activation",
    "temporary",
    "workspace",
    "input",
)


@dataclass(frozen=True, kw_only=True)
class Peak:
    """One entry's peak in exact bytes, split by category; `parts_origin` is where the parts come
    from, which may be a simulation.

    `allocated_upper` and `reserved_upper` are the upper ends of a simulated peak that is a range;
    the parts are those of its lower end.
    """

    entry: Entry
    allocated: int
    reserved: int | None
    allocated_upper: int | None
    reserved_upper: int | None
    phase: str | None
    parts: tuple[tuple[str, int], ...]
    parts_origin: str

    @property
    def split(self) -> int:
        """The sum of the parts."""
        return sum(count for _, count in self.parts)

    @property
    def residual(self) -> int:
        """The peak less its parts: 0 unless they come from elsewhere, below zero where those are
        more.
        """
        return self.allocated - self.split


def peaks(entries: Sequence[Entry], records: Sequence[Record]) -> list[Peak]:
    """The peak of every entry that has one, its parts in the order of a stack and none of them
    empty.
    """
    simulated = {question(record): record for record in reversed(records) if _is_split(record)}
    rows = []
    for entry in entries:
        if entry.memory is None or entry.peak_bytes is None:
            continue
        source = (
            entry.record
            if entry.memory.peak_by_category
            else simulated.get(question(entry.record), entry.record)
        )
        parts = source.memory.peak_by_category if source.memory else {}
        rows.append(
            Peak(
                entry=entry,
                allocated=entry.peak_bytes,
                reserved=entry.memory.peak_reserved,
                allocated_upper=entry.peak_upper,
                reserved_upper=entry.memory.peak_reserved_upper,
                phase=entry.memory.peak_phase,
                # Without a simulation it is a peak of one part.
                parts=tuple((name, parts[name]) for name in in_stack_order(parts) if parts[name])
                or (("allocated", entry.peak_bytes),),
                parts_origin=source.origin,
            )
        )
    return rows


def _is_split(record: Record) -> bool:
    """Whether the record is a simulated training step whose peak has parts."""
    is_step = (
        record.outcome == "ok"
        and record.origin == "simulated"
        and record.scenario.workload == "train"
    )
    return is_step and record.memory is not None and bool(record.memory.peak_by_category)


def in_stack_order(categories: Iterable[str]) -> list[str]:
    """The categories as a stack shows them, unknown ones last."""
    known = {category: number for number, category in enumerate(CATEGORIES)}
    return sorted(categories, key=lambda category: (known.get(category, len(known)), category))
