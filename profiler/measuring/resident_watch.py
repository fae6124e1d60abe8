"""The resident set of this process by phase."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..record import Level
from .resident import forget_peak, peak_bytes, resident_bytes


class ResidentWatch:
    """Reads what the process holds at the end of each phase, and its peak within it where the system tells."""

    def __init__(self) -> None:
        self._levels: dict[str, dict[str, Level]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Watch what runs inside."""
        told = forget_peak()
        yield
        end, before = resident_bytes(), self._levels.get(name, {}).get("resident")
        # A peak that could not be forgotten is that of the process, not of the phase.
        peak = max(end, (peak_bytes() or 0) if told else 0, before.peak if before else 0)
        self._levels[name] = {"resident": Level(end=end, peak=peak)}

    def levels(self) -> dict[str, dict[str, Level]]:
        """By phase and counter; the last time counts for the ends, all for the peaks."""
        return self._levels
