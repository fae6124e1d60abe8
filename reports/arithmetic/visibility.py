"""Visibility: how much of a saving of state is seen where people look for it: allocated, reserved,
and the driver's figure.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from optprof.scenarios.hardware import CONTEXT_BYTES

from .entries import Entry, by_setting
from .labels import optimizer_key
from .savings import BASELINE, savings


@dataclass(frozen=True, kw_only=True)
class Sight:
    """One entry's bytes as each counter shows them, and its setting's baseline, None for the
    baseline itself and where there is none.

    `state` counts tensors, `state_allocated` the blocks that hold them, `allocated` and `reserved`
    are the peaks of a training step, `allocated_upper` and `reserved_upper` the upper ends of peaks
    that are ranges. `driver` is what the driver counts for the process, CUDA's context too: read on
    a GPU, or else (`driver_is_read` False) the reserved peak and the context that
    `optprof.scenarios.hardware` reckons with. What no record tells is None.
    """

    entry: Entry
    baseline: "Sight | None"
    state: int
    state_allocated: int | None
    allocated: int | None
    reserved: int | None
    allocated_upper: int | None
    reserved_upper: int | None
    driver: int | None
    driver_is_read: bool
    phase: str | None
    parts: tuple[tuple[str, int], ...]
    foreach_costs: int | None

    @property
    def state_saved(self) -> int | None:
        """Bytes of state less than the baseline keeps."""
        return self._less("state")

    @property
    def allocated_saved(self) -> int | None:
        """Bytes that the allocated peak is lower than the baseline's."""
        return self._less("allocated")

    @property
    def reserved_saved(self) -> int | None:
        """Bytes that the reserved peak is lower than the baseline's."""
        return self._less("reserved")

    @property
    def driver_saved(self) -> int | None:
        """Bytes that the driver's figure is lower than the baseline's; None where one of them was
        read and the other was not.
        """
        if self.baseline is None or self.baseline.driver_is_read != self.driver_is_read:
            return None
        return self._less("driver")

    @property
    def driver_upper(self) -> int | None:
        """The upper end of the driver's figure where it is reckoned from a reserved peak that is a
        range.
        """
        if self.reserved_upper is None or self.driver_is_read:
            return None
        return self.reserved_upper + CONTEXT_BYTES

    @property
    def rounding(self) -> int | None:
        """Bytes that the state's blocks are larger than its tensors; below zero where tensors are
        on the host, which has no blocks.
        """
        return None if self.state_allocated is None else self.state_allocated - self.state

    @property
    def fragmentation(self) -> int | None:
        """Bytes between the reserved peak and the allocated one."""
        return (
            None
            if self.reserved is None or self.allocated is None
            else self.reserved - self.allocated
        )

    @property
    def moved(self) -> tuple[tuple[str, int], ...]:
        """What this peak holds more of than the baseline's, category by category (below zero:
        less); none where either is not split.

        The parts sum to what this peak is higher; they are there for an optimizer whose peak falls
        by more or less than its state does.
        """
        if self.baseline is None or not self.parts or not self.baseline.parts:
            return ()
        more = Counter(dict(self.parts))
        more.subtract(dict(self.baseline.parts))
        return tuple((name, count) for name, count in more.items() if count)

    def _less(self, counter: str) -> int | None:
        own, theirs = getattr(self, counter), getattr(self.baseline, counter, None)
        return None if own is None or theirs is None else theirs - own


def sights(entries: Sequence[Entry], baseline: str = BASELINE) -> list[Sight]:
    """A sight for each entry whose state is known, in the order of the run."""
    references = {
        id(saving.entry): id(saving.baseline)
        for saving in savings(entries, baseline)
        if not saving.is_baseline
    }
    plain = {
        id(entry): _sight(entry, group) for group in by_setting(entries).values() for entry in group
    }
    known = ((sight, references.get(key)) for key, sight in plain.items() if sight is not None)
    return [
        sight if reference is None else replace(sight, baseline=plain[reference])
        for sight, reference in known
    ]


def foreach_costs(entry: Entry, group: Sequence[Entry]) -> int | None:
    """Bytes that the entry's peak, run as foreach, is above that of its loop; None where the group
    has not both.
    """
    if entry.scenario.implementation != "foreach" or entry.peak_bytes is None:
        return None
    loops = (
        other
        for other in group
        if other.scenario.implementation == "loop" and _optimizer_of(other) == _optimizer_of(entry)
    )
    loop = next((other.peak_bytes for other in loops if other.peak_bytes is not None), None)
    return None if loop is None else entry.peak_bytes - loop


def _sight(entry: Entry, group: Sequence[Entry]) -> Sight | None:
    memory = entry.memory
    if memory is None:
        return None
    reserved = memory.peak_reserved if entry.peak_bytes is not None else None
    read = _driver_bytes(entry)
    return Sight(
        entry=entry,
        baseline=None,
        state=memory.optimizer_state,
        state_allocated=memory.optimizer_state_allocated,
        allocated=entry.peak_bytes,
        reserved=reserved,
        allocated_upper=entry.peak_upper,
        reserved_upper=None if reserved is None else memory.peak_reserved_upper,
        driver=read if read is not None or reserved is None else reserved + CONTEXT_BYTES,
        driver_is_read=read is not None,
        phase=memory.peak_phase if entry.peak_bytes is not None else None,
        parts=tuple(memory.peak_by_category.items()) if entry.peak_bytes is not None else (),
        foreach_costs=foreach_costs(entry, group),
    )


def _driver_bytes(entry: Entry) -> int | None:
    """The most that the driver was seen to count for the process that measured the entry's
    bytes.
    """
    watched = entry.bytes_from.watched if entry.bytes_from else None
    found = (
        [reading.process_bytes for reading in watched.gpu if reading.process_bytes is not None]
        if watched
        else []
    )
    return max(found, default=None)


def _optimizer_of(entry: Entry) -> tuple[tuple[str, str], str]:
    return optimizer_key(entry.scenario), entry.scenario.device
