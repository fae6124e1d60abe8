"""The harness around real steps: it times phases, reads CUDA's allocator at their ends, and keeps warm-up apart."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from .timing import clock_for

WARM_UP_SECONDS = 1.0
LEAST_SAMPLES = 3


def require_cuda() -> None:
    """ValueError on a machine without a CUDA device."""
    if not torch.cuda.is_available():
        raise ValueError("no CUDA device on this machine; ask for --device sim or cpu")


class Harness:
    """Runs one iteration again and again and keeps what it found.

    `times` and `warmup` hold raw seconds by phase. `peak_by_phase`, `peak_reserved` and `allocated_by_step` are bytes of CUDA's allocator
    and stay empty on the CPU; `allocated_by_step` is what the first step left allocated: the blocks of the optimizer's state.
    """

    def __init__(self, device: str) -> None:
        self.times: dict[str, list[float]] = {}
        self.warmup: dict[str, list[float]] = {}
        self.peak_by_phase: dict[str, int] = {}
        self.peak_reserved: int | None = None
        self.allocated_by_step: int | None = None
        self._clock = clock_for(device)
        self._watch = self._on_cuda if device == "cuda" else self._clock.phase

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time what runs inside and, on CUDA, note the most that it held."""
        return self._watch(name)

    def sample(self, iterate: Callable[[], None], *, samples: int, seconds: float) -> None:
        """Warm up for a second, at least once, then run until there are `samples`, or three at least when `seconds` are over."""
        warm = time.monotonic() + WARM_UP_SECONDS
        while not self.warmup or time.monotonic() < warm:
            iterate()
            self._keep(self.warmup)
        end = time.monotonic() + seconds
        for count in range(samples):
            if count >= LEAST_SAMPLES and time.monotonic() > end:
                break
            iterate()
            self._keep(self.times)

    @contextmanager
    def _on_cuda(self, name: str) -> Iterator[None]:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with self._clock.phase(name):
            yield
        self.peak_by_phase[name] = max(self.peak_by_phase.get(name, 0), torch.cuda.max_memory_allocated())
        self.peak_reserved = max(self.peak_reserved or 0, torch.cuda.max_memory_reserved())
        if name == "step" and self.allocated_by_step is None:
            self.allocated_by_step = torch.cuda.memory_allocated() - before

    def _keep(self, samples: dict[str, list[float]]) -> None:
        for phase, value in self._clock.collect().items():
            samples.setdefault(phase, []).append(value)
