"""Seconds by phase: a host clock where work is done when the call returns, events on the stream
where it is not.

A phase that comes more than once between two collections counts as one, its times added up.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class HostClock:
    """Times phases on the CPU, where an operation has ended when its call returns."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        start = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def collect(self) -> dict[str, float]:
        """Seconds of each phase since the last call."""
        seconds, self._seconds = self._seconds, {}
        return seconds


class CudaClock:
    """Times phases by events on the current CUDA stream: what the device did, not when the host
    asked for it.
    """

    def __init__(self) -> None:
        self._events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what the device does for the calls inside."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        yield
        end.record()
        self._events.setdefault(name, []).append((start, end))

    def collect(self) -> dict[str, float]:
        """Seconds of each phase since the last call, once the device has finished them."""
        torch.cuda.synchronize()
        seconds = {
            name: sum(start.elapsed_time(end) for start, end in pairs) / 1000
            for name, pairs in self._events.items()
        }
        self._events = {}
        return seconds


def clock_for(device: str) -> HostClock | CudaClock:
    """The clock that tells the truth on this device."""
    return CudaClock() if device == "cuda" else HostClock()
