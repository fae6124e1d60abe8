"""Peaks: the bytes of a training step at its highest moment, by category, and the phase then.

CUDA's allocator does not know what its bytes are for. A peak measured there gets the parts of a
simulation of the same question.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optprof.profiler.records.record import Record

from .entries import Entry, question

# The order of a stack: the model's bytes, the optimizer's, then short-lived ones.
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
    """One entry's peak in exact bytes, split by category.

    `parts_origin` is the origin of the parts, which may be a simulation. `allocated_upper` and
    `reserved_upper` are the upper ends of a simulated range, whose parts are those of its lower
    end.
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
        return sum(nbytes for _, nbytes in self.parts)

    @property
    def residual(self) -> int:
        """The peak less its parts: 0 unless they come from another record."""
        return self.allocated - self.split


def peaks(entries: Sequence[Entry], records: Sequence[Record]) -> list[Peak]:
    """Return the peak of every entry that has one, with its nonzero parts in stack order."""
    simulated = {question(record): record for record in reversed(records) if _is_split(record)}
    rows = []
    for entry in entries:
        memory = entry.peak
        if memory is None or memory.peak_allocated is None:
            continue
        source = entry.record
        if not memory.peak_by_category:
            source = simulated.get(question(source), source)
        parts = source.memory.peak_by_category if source.memory else {}
        rows.append(
            Peak(
                entry=entry,
                allocated=memory.peak_allocated,
                reserved=memory.peak_reserved,
                allocated_upper=memory.peak_allocated_upper,
                reserved_upper=memory.peak_reserved_upper,
                phase=memory.peak_phase,
                # Without a simulation the peak is one part.
                parts=tuple((name, parts[name]) for name in in_stack_order(parts) if parts[name])
                or (("allocated", memory.peak_allocated),),
                parts_origin=source.origin,
            )
        )
    return rows


def _is_split(record: Record) -> bool:
    """Return whether the record is a simulated training step whose peak has parts."""
    is_step = record.outcome == "ok" and record.scenario.workload == "train"
    has_parts = record.memory is not None and bool(record.memory.peak_by_category)
    return record.origin == "simulated" and is_step and has_parts


def in_stack_order(categories: Iterable[str]) -> list[str]:
    """Return the categories in the order of a stack, unknown ones last."""
    places = {category: number for number, category in enumerate(CATEGORIES)}
    return sorted(categories, key=lambda category: (places.get(category, len(places)), category))
