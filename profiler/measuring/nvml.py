"""What NVIDIA's management library tells of the GPU: clocks, temperature, what throttles it, and the processes on it.

The package nvidia-ml-py is optional: without it, or without a driver, nothing is told.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..record import GpuReading

# A clock that falls further than this between two readings under load has changed what was timed.
STEADY_CLOCK = 0.05
# Reasons that spoil a timing; an idle GPU, a clock that the user has set and the like do not.
_SPOILING = {
    "SwPowerCap": "its power limit",
    "SwThermalSlowdown": "its temperature",
    "HwSlowdown": "a hardware slowdown",
    "HwThermalSlowdown": "its temperature",
    "HwPowerBrakeSlowdown": "its power brake",
}


def read_gpu() -> GpuReading | None:
    """The current CUDA device as it is now; None without nvidia-ml-py, a driver, or rights to ask."""
    with _library() as nvml:
        if nvml is None:
            return None
        try:
            return _read(nvml, _handle(nvml))
        except nvml.NVMLError:
            return None


def warnings(readings: tuple[GpuReading, ...]) -> list[str]:
    """What in these readings, taken under load and in order, has spoiled the times between them."""
    found = [f"the GPU was slowed down by {reason}" for reason in dict.fromkeys(r for reading in readings for r in reading.slowed_by)]
    others = max((reading.other_processes for reading in readings), default=0)
    if others:
        found.append(f"{others} other process{'es' if others > 1 else ''} had memory on the GPU")
    clocks = [reading.clock_mhz for reading in readings if reading.clock_mhz]
    if clocks and min(clocks) < (1 - STEADY_CLOCK) * max(clocks):
        found.append(f"the GPU's clock went from {clocks[0]} to {clocks[-1]} MHz")
    return found


@contextmanager
def _library() -> Iterator[Any]:
    """The library, started and ended; None where it is not there."""
    try:
        import pynvml  # pyright: ignore[reportMissingImports]

        pynvml.nvmlInit()
    except Exception:
        # Without the package an ImportError, without a driver the library's own.
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _handle(nvml: Any) -> Any:
    """The device that torch runs on: CUDA_VISIBLE_DEVICES renumbers devices, their UUIDs stay."""
    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}")


def _read(nvml: Any, handle: Any) -> GpuReading:
    processes = {process.pid: process.usedGpuMemory for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    reasons = _ask(nvml, nvml.nvmlDeviceGetCurrentClocksEventReasons, handle) or 0
    slowed = {words for name, words in _SPOILING.items() if reasons & _reason(nvml, name)}
    own = processes.pop(os.getpid(), None)
    return GpuReading(
        clock_mhz=_ask(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
        memory_clock_mhz=_ask(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
        temperature_celsius=_ask(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        slowed_by=tuple(sorted(slowed)),
        # In a container every process, this one too, may have another number outside: then the one that is there is this one.
        other_processes=len(processes) - (own is None and bool(processes)),
        process_bytes=own if own is not None or len(processes) != 1 else next(iter(processes.values())),
    )


def _ask(nvml: Any, question: Any, *arguments: Any) -> Any:
    """The answer; None where this GPU has none."""
    try:
        return question(*arguments)
    except nvml.NVMLError:
        return None


def _reason(nvml: Any, name: str) -> int:
    return getattr(nvml, f"nvmlClocksEventReason{name}", None) or getattr(nvml, f"nvmlClocksThrottleReason{name}", 0)
