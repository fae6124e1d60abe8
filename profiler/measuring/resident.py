"""The resident set of this process, and its highest point since a moment of one's choice."""

from pathlib import Path

import psutil

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_bytes() -> int:
    """Bytes of this process in the machine's memory now."""
    return psutil.Process().memory_info().rss


def forget_peak() -> bool:
    """Let the peak start from what is resident now; False where the system does not allow it, and
    the peak is that since the start.
    """
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_bytes() -> int | None:
    """The most that was resident since the peak was last forgotten; None where the system does not
    tell.
    """
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), None)
