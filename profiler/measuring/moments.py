"""Moments: when something was reached, taken without making anybody wait, and the seconds between
two of them.
"""

import time
from typing import Any, Protocol

import torch


class Moments(Protocol):
    """A clock whose moments are told apart later; nothing waits for the device before that."""

    def now(self) -> Any:
        """This moment."""
        ...

    def seconds(self, start: Any, end: Any) -> float:
        """The seconds from one moment to another; on CUDA once the device has reached both."""
        ...


class HostMoments:
    """Moments on the CPU, where an operation has ended when its call returns."""

    def now(self) -> float:
        """The host's clock."""
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """The difference."""
        return end - start


class StreamMoments:
    """Moments on the current CUDA stream: when the device comes by, not when the host asked
    for it.
    """

    def now(self) -> torch.cuda.Event:
        """An event on the stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """What the device took from one to the other."""
        end.synchronize()
        # The loop may have gone to another stream in between, which has reached it earlier.
        return max(0.0, start.elapsed_time(end) / 1000)


def moments_for(device: str) -> Moments:
    """The clock that tells the truth on this device."""
    return StreamMoments() if device == "cuda" else HostMoments()
