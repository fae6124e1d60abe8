"""NVIDIA's management library: the GPU's clocks, temperature, slowdowns and processes.

The package nvidia-ml-py is optional. Without it, or without a driver, there are no readings.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..records.record import GpuReading

# A larger fall of the clock between two readings under load has changed the times.
STEADY_CLOCK = 0.05
# Slowdowns that spoil a timing, unlike an idle GPU or a clock set by the user.
_SPOILING = {
    "SwPowerCap": "its power limit",
    "SwThermalSlowdown": "its temperature",
    "HwSlowdown": "a hardware slowdown",
    "HwThermalSlowdown": "its temperature",
    "HwPowerBrakeSlowdown": "its power brake",
}


@contextmanager
def reading_gpu() -> Iterator[Callable[[], GpuReading | None]]:
    """Yield a function that reads the current CUDA device.

    It returns None without nvidia-ml-py, without a driver, or without permission.
    """
    with _library() as nvml:
        handle = _query(nvml, _handle, nvml) if nvml else None
        yield (lambda: _read(nvml, handle)) if handle is not None else lambda: None


def warnings(readings: tuple[GpuReading, ...]) -> list[str]:
    """Return a line for each disturbance in these readings, taken under load and in order."""
    lines = [
        f"the GPU was slowed down by {reason}"
        for reason in dict.fromkeys(r for reading in readings for r in reading.slowed_by)
    ]
    others = max((reading.other_processes or 0 for reading in readings), default=0)
    if others:
        lines.append(f"{others} other process{'es' if others > 1 else ''} had memory on the GPU")
    clocks = [reading.clock_mhz for reading in readings if reading.clock_mhz]
    if clocks and min(clocks) < (1 - STEADY_CLOCK) * max(clocks):
        lines.append(f"the GPU's clock went from {clocks[0]} to {clocks[-1]} MHz")
    return lines


@contextmanager
def _library() -> Iterator[Any]:
    """Yield the library, started; None if it is missing."""
    try:
        import pynvml  # pyright: ignore[reportMissingImports]

        pynvml.nvmlInit()
    except Exception:
        # Without the package an ImportError, without a driver an error of the library.
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _handle(nvml: Any) -> Any:
    """Return the device that torch uses; CUDA_VISIBLE_DEVICES renumbers devices, UUIDs stay."""
    return nvml.nvmlDeviceGetHandleByUUID(
        f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    )


def _read(nvml: Any, handle: Any) -> GpuReading:
    reasons = _query(nvml, _attribute(nvml, "nvmlDeviceGetCurrentClocks{}Reasons"), handle) or 0
    slowed = {
        words
        for name, words in _SPOILING.items()
        if reasons & (_attribute(nvml, f"nvmlClocks{{}}Reason{name}") or 0)
    }
    others, own = _processes(nvml, handle)
    return GpuReading(
        clock_mhz=_query(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
        memory_clock_mhz=_query(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
        temperature_celsius=_query(
            nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU
        ),
        slowed_by=tuple(sorted(slowed)),
        other_processes=others,
        process_bytes=own,
    )


def _processes(nvml: Any, handle: Any) -> tuple[int | None, int | None]:
    """Return the number of other processes on the GPU, and the bytes of this process."""
    listed = _query(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle)
    if listed is None:
        return None, None
    processes = {process.pid: process.usedGpuMemory for process in listed}
    if os.getpid() in processes:
        return len(processes) - 1, processes[os.getpid()]
    # A container may number its processes differently: then one of those listed is this one.
    own = next(iter(processes.values())) if len(processes) == 1 else None
    return max(0, len(processes) - 1), own


def _query(nvml: Any, function: Any, *arguments: Any) -> Any:
    """Call a function of the library; return None if this GPU or this user has no answer."""
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return None


def _attribute(nvml: Any, name: str) -> Any:
    """Return an attribute by its new name, with "Event", or its old one, with "Throttle"."""
    return getattr(nvml, name.format("Event"), None) or getattr(nvml, name.format("Throttle"), None)
