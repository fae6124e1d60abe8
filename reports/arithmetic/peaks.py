"""Peaks: what a training step holds at its highest moment, by category, and which phase owns that moment."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .entries import Entry

# The order of a stack: what the model brings first, then the optimizer's, then what comes and goes.
CATEGORIES = ("parameter", "buffer", "gradient", "optimizer_state", "activation", "temporary", "workspace", "input")


@dataclass(frozen=True, kw_only=True)
class Peak:
    """One entry's peak in exact bytes, split by category; the parts sum to `allocated`."""

    entry: Entry
    allocated: int
    reserved: int | None
    phase: str | None
    parts: tuple[tuple[str, int], ...]


def peaks(entries: Sequence[Entry]) -> list[Peak]:
    """The peak of every entry that has one, its parts in the order of a stack and none of them empty."""
    rows = []
    for entry in entries:
        if entry.memory is None or entry.peak_bytes is None:
            continue
        parts = entry.memory.peak_by_category
        rows.append(
            Peak(
                entry=entry,
                allocated=entry.peak_bytes,
                reserved=entry.memory.peak_reserved,
                phase=entry.memory.peak_phase,
                # A device that does not tell what its bytes are for has a peak of one part.
                parts=tuple((name, parts[name]) for name in in_stack_order(parts) if parts[name]) or (("allocated", entry.peak_bytes),),
            )
        )
    return rows


def in_stack_order(categories: Iterable[str]) -> list[str]:
    """The categories as a stack shows them, unknown ones last."""
    known = {category: number for number, category in enumerate(CATEGORIES)}
    return sorted(categories, key=lambda category: (known.get(category, len(known)), category))
