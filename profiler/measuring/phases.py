"""Memory by phase, for any number of watches at once.

The system keeps one peak of a counter. Whoever starts it afresh would take it from all others
who watch, so each interval that is open first takes in what the peak was.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import RLock
from weakref import WeakSet

from ..records.record import Level


class Interval:
    """A stretch of time under way, and the most that each counter has shown in it."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}


class Counters:
    """Counters of memory that everybody in this process shares.

    `read` returns their levels, with the peaks since `forget` was last called; `forget` returns
    False where the system keeps the peaks as they are. Nothing else may forget them.
    """

    def __init__(self, read: Callable[[], Mapping[str, Level]], forget: Callable[[], bool]) -> None:
        self._read, self._forget = read, forget
        self._is_fresh = False
        # An interval that nobody holds any more is over.
        self._open: WeakSet[Interval] = WeakSet()
        self._lock = RLock()

    def begin(self) -> Interval:
        """Return an interval that starts now."""
        with self._lock:
            if self._open:
                self._take_in()
            self._is_fresh = self._forget()
            interval = Interval()
            self._open.add(interval)
            return interval

    def end(self, interval: Interval) -> dict[str, Level]:
        """Return the levels at the end of an interval, with the peaks within it."""
        with self._lock:
            levels = self._take_in()
            self._open.discard(interval)
        return {
            name: Level(end=level.end, peak=interval.peaks[name]) for name, level in levels.items()
        }

    def _take_in(self) -> Mapping[str, Level]:
        levels = self._read()
        for name, level in levels.items():
            # A peak that was not forgotten is that of the process.
            peak = max(level.end, level.peak if self._is_fresh else 0)
            for interval in self._open:
                interval.peaks[name] = max(interval.peaks.get(name, 0), peak)
        return levels


class PhaseWatch:
    """Levels of counters at the end of each phase, and their peaks within it."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._levels: dict[str, dict[str, Level]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Watch what runs inside."""
        interval = self._counters.begin()
        yield
        self._levels[name] = merged(self._levels.get(name, {}), self._counters.end(interval))

    def levels(self) -> dict[str, dict[str, Level]]:
        """Levels by phase and counter; the last time counts for the ends, all for the peaks."""
        return self._levels


def merged(before: Mapping[str, Level], after: Mapping[str, Level]) -> dict[str, Level]:
    """Return the levels of two stretches of one phase: the ends of the second, the higher peaks."""
    peaks = {
        name: max(level.peak, before[name].peak if name in before else 0)
        for name, level in after.items()
    }
    return {name: Level(end=level.end, peak=peaks[name]) for name, level in after.items()}
