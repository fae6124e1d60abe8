"""Who else was at work: the share of the machine's processors that other processes took while times
were taken.
"""

import os

import psutil

# Others below this share of the machine disturb no more than the system's own work does.
QUIET = 0.05


class Contention:
    """Counts processor seconds from its making on."""

    def __init__(self) -> None:
        self._machine, self._own = psutil.cpu_times(), _own_seconds()

    def others_share(self) -> float:
        """What others took of all processor seconds since then, from 0 to 1; 0 where no time has
        passed.
        """
        now, before = psutil.cpu_times(), self._machine
        total = sum(now[:8]) - sum(before[:8])
        idle = (now.idle - before.idle) + (
            getattr(now, "iowait", 0.0) - getattr(before, "iowait", 0.0)
        )
        busy = total - idle - (_own_seconds() - self._own)
        return min(1.0, max(0.0, busy / total)) if total > 0 else 0.0

    def warning(self) -> str | None:
        """One line when others took more than a quiet machine's share, else None."""
        share = self.others_share()
        return (
            f"other processes took {share:.0%} of the processors while times were taken"
            if share > QUIET
            else None
        )


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system
