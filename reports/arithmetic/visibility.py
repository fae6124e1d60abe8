"""Visibility: a saving of state as allocated bytes, reserved bytes and the driver's show it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from optprof.scenarios.hardware import CONTEXT_BYTES

from .entries import Entry, by_setting
from .labels import optimizer_key
from .savings import savings


@dataclass(frozen=True, kw_only=True)
class Sight:
    """One entry's bytes by each counter; unknown ones are None.

    `state` counts tensors, `state_allocated` the blocks that hold them. `allocated` and `reserved`
    are the peaks of a training step, `allocated_upper` and `reserved_upper` the upper ends of
    ranges. `driver` is the driver's count for the process, with CUDA's context: read on a GPU if
    `driver_is_read`, else the reserved peak and a usual context. `baseline` is the sight of the
    setting's baseline, None for the baseline itself and without one.
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
        """Bytes by which the allocated peak is lower than the baseline's."""
        return self._less("allocated")

    @property
    def reserved_saved(self) -> int | None:
        """Bytes by which the reserved peak is lower than the baseline's."""
        return self._less("reserved")

    @property
    def driver_saved(self) -> int | None:
        """Bytes by which the driver's figure is lower than the baseline's.

        None if one was read and the other was not.
        """
        if self.baseline is None or self.baseline.driver_is_read != self.driver_is_read:
            return None
        return self._less("driver")

    @property
    def driver_upper(self) -> int | None:
        """The upper end of the driver's figure if it is computed from a range."""
        if self.reserved_upper is None or self.driver_is_read:
            return None
        return self.reserved_upper + CONTEXT_BYTES

    @property
    def rounding(self) -> int | None:
        """Bytes of the state's blocks beyond its tensors, negative if tensors are on the host."""
        return None if self.state_allocated is None else self.state_allocated - self.state

    @property
    def fragmentation(self) -> int | None:
        """Bytes between the reserved peak and the allocated one."""
        if self.reserved is None or self.allocated is None:
            return None
        return self.reserved - self.allocated

    @property
    def foreach_adds(self) -> int | None:
        """Bytes that foreach adds to the peak: what it costs over the loop, if the run has both.

        Else the temporaries at a peak in the step, which foreach takes for many tensors at once.
        """
        if self.foreach_costs is not None:
            return self.foreach_costs
        is_foreach = self.entry.scenario.implementation == "foreach" and self.phase == "step"
        return dict(self.parts).get("temporary") if is_foreach else None

    @property
    def moved(self) -> tuple[tuple[str, int], ...]:
        """Bytes of this peak beyond the baseline's by category, negative for fewer.

        They sum to the difference of the peaks. Empty if either peak is not split.
        """
        if self.baseline is None or not self.parts or not self.baseline.parts:
            return ()
        more = Counter(dict(self.parts))
        more.subtract(dict(self.baseline.parts))
        return tuple((name, nbytes) for name, nbytes in more.items() if nbytes)

    def _less(self, counter: str) -> int | None:
        own, theirs = getattr(self, counter), getattr(self.baseline, counter, None)
        return None if own is None or theirs is None else theirs - own


def sights(entries: Sequence[Entry], baseline: str) -> list[Sight]:
    """Return a sight for each entry whose state is known, in the order of the run."""
    references = {
        id(saving.entry): id(saving.baseline)
        for saving in savings(entries, baseline)
        if not saving.is_baseline
    }
    alone = {
        id(entry): _sight(entry, group) for group in by_setting(entries).values() for entry in group
    }
    return [
        replace(sight, baseline=alone[references[key]]) if key in references else sight
        for key, sight in alone.items()
        if sight is not None
    ]


def foreach_costs(entry: Entry, group: Sequence[Entry]) -> int | None:
    """Return the bytes by which the entry's foreach peak is above that of its loop.

    None if the group does not have both.
    """
    if entry.scenario.implementation != "foreach" or entry.peak_bytes is None:
        return None
    optimizer = _optimizer_of(entry)
    loops = (
        other.peak_bytes
        for other in group
        if other.scenario.implementation == "loop" and _optimizer_of(other) == optimizer
    )
    loop = next((nbytes for nbytes in loops if nbytes is not None), None)
    return None if loop is None else entry.peak_bytes - loop


def _sight(entry: Entry, group: Sequence[Entry]) -> Sight | None:
    memory, peak = entry.memory, entry.peak
    if memory is None:
        return None
    reserved = peak.peak_reserved if peak else None
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
        phase=peak.peak_phase if peak else None,
        parts=tuple(peak.peak_by_category.items()) if peak else (),
        foreach_costs=foreach_costs(entry, group),
    )


def _driver_bytes(entry: Entry) -> int | None:
    """Return the most that the driver counted for the process that measured the entry's bytes."""
    watched = entry.bytes_from.watched if entry.bytes_from else None
    readings = (reading.process_bytes for reading in (watched.gpu if watched else ()))
    return max((nbytes for nbytes in readings if nbytes is not None), default=None)


def _optimizer_of(entry: Entry) -> tuple[tuple[str, str], str]:
    return optimizer_key(entry.scenario), entry.scenario.device
