"""Memory by phase, for any number of watches at once.

The system keeps one peak per counter. Resetting it for one watch would lose the peak of the others,
so before each reset every open interval takes over the peak so far.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import RLock

from ..records.record import Level


class Counters:
    """Memory counters of this process, shared by all its watches.

    `read` returns their levels, with the peaks since the last call of `reset`. `reset` returns
    False if the system does not allow it. Nothing else may reset the peaks.
    """

    def __init__(self, read: Callable[[], Mapping[str, Level]], reset: Callable[[], bool]) -> None:
        self._read, self._reset = read, reset
        self._was_reset = False
        # The peaks of each open interval.
        self._open: dict[int, dict[str, int]] = {}
        self._lock = RLock()

    @contextmanager
    def interval(self) -> Iterator[dict[str, Level]]:
        """Yield a dictionary that receives the levels at the end, with the peaks inside."""
        levels: dict[str, Level] = {}
        peaks: dict[str, int] = {}
        with self._lock:
            if self._open:
                self._take_peaks()
            self._was_reset = self._reset()
            self._open[id(peaks)] = peaks
        try:
            yield levels
            with self._lock:
                for name, level in self._take_peaks().items():
                    levels[name] = Level(end=level.end, peak=peaks[name])
        finally:
            # Also when a generator that trains is dropped halfway.
            with self._lock:
                del self._open[id(peaks)]

    def _take_peaks(self) -> Mapping[str, Level]:
        """Read the levels and raise the peaks of all open intervals to them."""
        levels = self._read()
        for name, level in levels.items():
            # Without a reset the system's peak is that of the whole process.
            peak = max(level.end, level.peak if self._was_reset else 0)
            for peaks in self._open.values():
                peaks[name] = max(peaks.get(name, 0), peak)
        return levels


class PhaseWatch:
    """Levels of counters at the end of each phase, and the peaks inside it."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._levels: dict[str, dict[str, Level]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Watch the code inside; an exception discards the phase."""
        with self._counters.interval() as levels:
            yield
        self._levels[name] = merged(self._levels.get(name, {}), levels)

    def levels(self) -> dict[str, dict[str, Level]]:
        """Return levels by phase and counter: the last end, the highest peak."""
        return self._levels


def merged(before: Mapping[str, Level], after: Mapping[str, Level]) -> dict[str, Level]:
    """Return the levels of two passes of one phase: the later ends, the higher peaks."""
    peaks = {
        name: max(level.peak, before[name].peak if name in before else 0)
        for name, level in after.items()
    }
    return {name: Level(end=level.end, peak=peaks[name]) for name, level in after.items()}
