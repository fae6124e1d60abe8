"""Peaks: the bytes of a training step at its highest moment, by category, and the phase then.

A simulated peak is known block by block. Its parts are a tree: category, class of the module,
module, and operation with its line.

CUDA's allocator does not know what its bytes are for. A peak measured there gets the parts of a
simulation of the same question.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from optprof.profiler.records.record import Record
from optprof.profiler.records.timeline import PeakGroup

from .entries import Entry, question

# The order of a stack: the model's bytes, the optimizer's, then short-lived ones; last those that
# only ranks have.
CATEGORIES = (
    "parameter",
    "buffer",
    "gradient",
    "optimizer_state",
    "activation",
    "temporary",
    "workspace",
    "input",
    "gathered",
    "communication",
)
# The name of a category's smallest groups, which a timeline has as one.
SMALLER = "smaller groups"


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


@dataclass(frozen=True, kw_only=True)
class PeakPart:
    """Blocks at a peak that share a path: a category and what requested them, as far as is known.

    `start` is the bytes of the parts to its left, of the same peak.
    """

    path: tuple[str, ...]
    blocks: int
    nbytes: int
    start: int


def peak_parts(groups: Sequence[PeakGroup]) -> list[PeakPart]:
    """Return the parts of a peak, each before the parts of itself.

    Categories are in stack order, all other parts by size. The part of the whole peak comes first
    and has an empty path. Parts of a part add up to it, except for blocks whose path ends there.
    """
    return list(_parts((), [(_path(group), group) for group in groups], 0))


def _parts(
    path: tuple[str, ...], members: Sequence[tuple[tuple[str, ...], PeakGroup]], start: int
) -> Iterator[PeakPart]:
    yield PeakPart(
        path=path,
        blocks=sum(group.blocks for _, group in members),
        nbytes=sum(group.nbytes for _, group in members),
        start=start,
    )
    inner: dict[str, list[tuple[tuple[str, ...], PeakGroup]]] = {}
    for names, group in members:
        if len(names) > len(path):
            inner.setdefault(names[len(path)], []).append((names, group))
    sizes = {name: sum(group.nbytes for _, group in inner[name]) for name in inner}
    order = sorted(inner, key=lambda name: -sizes[name]) if path else in_stack_order(inner)
    for name in order:
        yield from _parts((*path, name), inner[name], start)
        start += sizes[name]


def _path(group: PeakGroup) -> tuple[str, ...]:
    """Return the names of a group from the category down, without unknown ones."""
    source = group.source
    if not group.phase:
        return source.category, SMALLER
    request = " · ".join(filter(None, (source.op, source.line)))
    names = source.category, source.module_class, source.module, request
    return tuple(filter(None, names))


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
