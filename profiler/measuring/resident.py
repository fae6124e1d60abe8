"""The resident set of this process, and its peak since the last reset."""

from pathlib import Path

import psutil

from ..records.record import Level
from .phases import Counters, PhaseWatch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_watch() -> PhaseWatch:
    """Return a watch of the process's resident bytes; without a system's peak, of the ends."""
    return PhaseWatch(_COUNTERS)


def resident_bytes() -> int:
    """Return the bytes of this process in the machine's memory now."""
    return psutil.Process().memory_info().rss


def reset_peak() -> bool:
    """Let the peak start from the resident bytes now; False if the system does not allow it."""
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_bytes() -> int | None:
    """Return the peak since the last reset; None if the system does not report one."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), None)


def _read() -> dict[str, Level]:
    return {"resident": Level(end=resident_bytes(), peak=peak_bytes() or 0)}


# The lambda looks the function up at each call.
_COUNTERS = Counters(read=_read, reset=lambda: reset_peak())
