"""Disturbances of a timing: other processes on the CPU, and the GPU's clock, heat and processes."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress

import psutil

from ..machine import nvml
from ..records.record import GpuReading

# A share of the machine's processors below this is the system's own work.
QUIET = 0.05


class Disturbances:
    """Counts the processor seconds of other processes since it was made, and keeps GPU readings.

    The other ranks of this training run (`on_ranks`) are no other processes.
    """

    def __init__(
        self, read_gpu: Callable[[], GpuReading | None], *, on_ranks: bool = False
    ) -> None:
        self.gpu: tuple[GpuReading, ...] = ()
        self._read_gpu = read_gpu
        self._own_seconds = _seconds_of_ranks if on_ranks else _own_seconds
        self._machine, self._own = psutil.cpu_times(), self._own_seconds()

    def look(self) -> None:
        """Read the GPU, while it works on the kernels just launched."""
        reading = self._read_gpu()
        self.gpu += (reading,) if reading else ()

    def others_share(self) -> float:
        """Return the share of all processor seconds that other processes took, from 0 to 1."""
        now, before = psutil.cpu_times(), self._machine
        total = sum(now[:8]) - sum(before[:8])
        idle = (now.idle - before.idle) + (
            getattr(now, "iowait", 0.0) - getattr(before, "iowait", 0.0)
        )
        busy = total - idle - (self._own_seconds() - self._own)
        return min(1.0, max(0.0, busy / total)) if total > 0 else 0.0

    def warnings(self) -> tuple[str, ...]:
        """Return one line for each disturbance so far."""
        share = self.others_share()
        others = f"other processes took {share:.0%} of the processors while times were taken"
        return (*([others] if share > QUIET else []), *nvml.warnings(self.gpu))


@contextmanager
def disturbances(device: str, *, on_ranks: bool = False) -> Iterator[Disturbances]:
    """Watch for disturbances from here on; on CUDA the GPU too."""
    with nvml.reading_gpu() if device == "cuda" else nullcontext(lambda: None) as read:
        yield Disturbances(read, on_ranks=on_ranks)


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _seconds_of_ranks() -> float:
    """Return the processor seconds of this machine's ranks and of their launcher."""
    launcher, seconds = psutil.Process().parent(), 0.0
    for process in [launcher, *launcher.children()] if launcher else []:
        with suppress(psutil.Error):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds
