"""What NVIDIA's management library tells of the GPU: clocks, temperature, what throttles it, and
the processes on it.

The package nvidia-ml-py is optional: without it, or without a driver, nothing is told.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..records.record import GpuReading

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


@contextmanager
def reading_gpu() -> Iterator[Callable[[], GpuReading | None]]:
    """A function that reads the current CUDA device as it is then; it gives None without
    nvidia-ml-py, a driver, or rights to ask.
    """
    with _library() as nvml:
        handle = _ask(nvml, _handle, nvml) if nvml else None
        yield (lambda: _read(nvml, handle)) if handle is not None else lambda: None


def warnings(readings: tuple[GpuReading, ...]) -> list[str]:
    """What in these readings, taken under load and in order, has spoiled the times between them."""
    found = [
        f"the GPU was slowed down by {reason}"
        for reason in dict.fromkeys(r for reading in readings for r in reading.slowed_by)
    ]
    others = max((reading.other_processes or 0 for reading in readings), default=0)
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
    return nvml.nvmlDeviceGetHandleByUUID(
        f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    )


def _read(nvml: Any, handle: Any) -> GpuReading:
    reasons = _ask(nvml, _named(nvml, "nvmlDeviceGetCurrentClocks{}Reasons"), handle) or 0
    slowed = {
        words
        for name, words in _SPOILING.items()
        if reasons & (_named(nvml, f"nvmlClocks{{}}Reason{name}") or 0)
    }
    others, own = _processes(nvml, handle)
    return GpuReading(
        clock_mhz=_ask(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
        memory_clock_mhz=_ask(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
        temperature_celsius=_ask(
            nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU
        ),
        slowed_by=tuple(sorted(slowed)),
        other_processes=others,
        process_bytes=own,
    )


def _processes(nvml: Any, handle: Any) -> tuple[int | None, int | None]:
    """How many other processes are on the GPU, and the bytes of this one."""
    listed = _ask(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle)
    if listed is None:
        return None, None
    processes = {process.pid: process.usedGpuMemory for process in listed}
    if os.getpid() in processes:
        return len(processes) - 1, processes[os.getpid()]
    # In a container every process, this one too, may have another number outside: then one of those
    # that are there is this one.
    return max(0, len(processes) - 1), next(iter(processes.values())) if len(
        processes
    ) == 1 else None


def _ask(nvml: Any, question: Any, *arguments: Any) -> Any:
    """The answer; None where this GPU has none, or does not give it to everybody."""
    try:
        return question(*arguments)
    except nvml.NVMLError:
        return None


def _named(nvml: Any, name: str) -> Any:
    """What the library calls so since drivers speak of clock events, or as it did when they spoke
    of throttling; None where neither.
    """
    return getattr(nvml, name.format("Event"), None) or getattr(nvml, name.format("Throttle"), None)
