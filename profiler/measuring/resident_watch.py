"""The resident set of this process by phase."""

from ..records.record import Level
from .phases import Counters, PhaseWatch
from .resident import forget_peak, peak_bytes, resident_bytes


class ResidentWatch(PhaseWatch):
    """Bytes that the process holds when each phase ends, and its peak within it where that is
    known.
    """

    def __init__(self) -> None:
        super().__init__(_RESIDENT)


def _read() -> dict[str, Level]:
    return {"resident": Level(end=resident_bytes(), peak=peak_bytes() or 0)}


def _forget() -> bool:
    return forget_peak()


_RESIDENT = Counters(read=_read, forget=_forget)
