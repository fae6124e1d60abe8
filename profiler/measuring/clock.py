"""Seconds on a device: the host's clock on the CPU, events on the stream on CUDA."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Clock:
    """The host's clock, for the CPU, where an operation has ended when its call returns.

    `now` and `seconds` take single moments; `phase` and `collect` add up the times of named phases.
    """

    def __init__(self) -> None:
        self._phases: dict[str, list[tuple[Any, Any]]] = {}

    def now(self) -> Any:
        """Return this moment, without waiting for the device."""
        return time.perf_counter()

    def seconds(self, start: Any, end: Any) -> float:
        """Return the seconds between two moments."""
        return end - start

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the code inside."""
        start = self.now()
        yield
        self._phases.setdefault(name, []).append((start, self.now()))

    def collect(self) -> dict[str, float]:
        """Return the seconds of each phase since the last call, repeated phases added up."""
        phases, self._phases = self._phases, {}
        return {
            name: sum(self.seconds(start, end) for start, end in moments)
            for name, moments in phases.items()
        }


class CudaClock(Clock):
    """Events on the current CUDA stream: they time the device, not the host's calls."""

    def now(self) -> torch.cuda.Event:
        """Return an event recorded on the stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Wait for the second event and return the device's seconds between the two."""
        end.synchronize()
        # If the loop has changed streams in between, the second event may be the earlier one.
        return max(0.0, start.elapsed_time(end) / 1000)

    def collect(self) -> dict[str, float]:
        """Wait for the device and return the seconds of each phase since the last call."""
        torch.cuda.synchronize()
        return super().collect()


def clock_for(device: str) -> Clock:
    """Return the clock for this device."""
    return CudaClock() if device == "cuda" else Clock()
