"""The harness around real steps: first it watches memory, then it warms up, then it times, and
nothing else runs while it times.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from statistics import median
from typing import Any

import torch

from ..records.confidence import median_interval
from ..records.record import GpuReading
from .contention import Contention
from .nvml import reading_gpu
from .nvml import warnings as gpu_warnings
from .timing import clock_for

# Iterations that are watched and not timed: the first makes the state, the second is like all that
# follow.
WATCHED = 2
WARM_UP_SECONDS = 1.0
WARM_UP_LIMIT = 10.0
# Warm-up is over when the medians of the last three times and of the three before them are this
# close.
STABLE, WINDOW = 0.05, 3
# The last iterations of a warm-up that are kept, or up to twice as many: some take microseconds.
MOST_WARM_UP = 10_000
# Of the seconds for samples, those that a step may take alone once more.
ALONE = 0.5
# Samples are enough when the confidence interval of their median is this narrow on both sides; with
# six there first is one.
NARROW = 0.02
LEAST_SAMPLES = 3
# The GPU is read beside the first samples, and then beside each tenth.
GPU_EVERY = 10

Phase = Callable[[str], AbstractContextManager[Any]]


def require_cuda() -> None:
    """ValueError on a machine without a CUDA device."""
    if not torch.cuda.is_available():
        raise ValueError("no CUDA device on this machine; ask for --device sim or cpu")


class Harness:
    """Runs one iteration again and again and keeps what it found.

    `times` and `warmup` hold raw seconds by phase. `gpu` is what its management library told while
    samples ran, and `warnings` what has spoiled them.
    """

    def __init__(self, device: str) -> None:
        self.times: dict[str, list[float]] = {}
        self.warmup: dict[str, list[float]] = {}
        self.gpu: tuple[GpuReading, ...] = ()
        self.warnings: tuple[str, ...] = ()
        self._device = device
        self._clock = clock_for(device)
        self._phase: Phase = self._clock.phase

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Do with what runs inside what is being done: watch it, or time it."""
        return self._phase(name)

    @contextmanager
    def handing_phases_to(self, watch: Phase) -> Iterator[None]:
        """Let `watch` have the phases that come inside; none of them is timed."""
        self._phase = watch
        try:
            yield
        finally:
            self._phase = self._clock.phase

    def sample(
        self,
        iterate: Callable[[], None],
        *,
        samples: int,
        seconds: float,
        alone: Callable[[], AbstractContextManager[Callable[[], None]]] | None = None,
    ) -> None:
        """Warm up, then run until the medians are known well enough, there are `samples`, or
        `seconds` are over, three times at least.

        Where the step's median is not known by then, `alone` lets it run by itself, for half of the
        time once more.
        """
        warnings, contention = self._warm_up(iterate), Contention()
        with reading_gpu() if self._device == "cuda" else nullcontext(lambda: None) as read:
            self._collect(iterate, samples, seconds, ("step", "iteration"), read)
        missing = samples - len(self.times["step"])
        if alone is not None and missing > 0 and not self._known_well("step"):
            with alone() as step:
                # What led to the gradients is no sample.
                self._clock.collect()
                self._collect(step, missing, seconds * ALONE, ("step",), lambda: None)
        found = [*warnings, contention.warning(), *gpu_warnings(self.gpu)]
        self.warnings = tuple(warning for warning in found if warning)

    def keep_sample(self) -> None:
        """Keep the phases that were timed since the last sample as one more."""
        _keep(self.times, self._clock.collect())

    def _warm_up(self, iterate: Callable[[], None]) -> list[str]:
        """Iterate for a second and until times are stable, ten seconds at most; a warning where
        they were not.
        """
        start = time.monotonic()
        while True:
            iterate()
            _keep(self.warmup, self._clock.collect())
            for samples in self.warmup.values():
                if len(samples) > 2 * MOST_WARM_UP:
                    del samples[:MOST_WARM_UP]
            change = _change(max(self.warmup.values(), key=sum))
            passed = time.monotonic() - start
            if passed >= WARM_UP_SECONDS and change is not None and change <= STABLE:
                return []
            if passed >= WARM_UP_LIMIT:
                return [_unsettled(change)]

    def _collect(
        self,
        iterate: Callable[[], None],
        samples: int,
        seconds: float,
        phases: Sequence[str],
        read: Callable[[], GpuReading | None],
    ) -> None:
        end = time.monotonic() + seconds
        for count in range(samples):
            if count >= LEAST_SAMPLES and (time.monotonic() > end or self._known_well(*phases)):
                break
            iterate()
            # The device is at work on what was launched, and the events that end its phases are
            # behind it already.
            reading = read() if count < LEAST_SAMPLES or count % GPU_EVERY == 0 else None
            self.gpu += (reading,) if reading else ()
            self.keep_sample()

    def _known_well(self, *phases: str) -> bool:
        """Whether those of the phases that run have medians with narrow intervals."""
        return all(is_narrow(self.times[phase]) for phase in phases if phase in self.times)


def is_narrow(samples: Sequence[float]) -> bool:
    """Whether the 95 % confidence interval of the median lies within 2 % of it on both sides."""
    interval = median_interval(samples)
    middle = median(samples)
    return (
        interval is not None
        and max(interval.upper - middle, middle - interval.lower) <= NARROW * middle
    )


def _change(times: Sequence[float]) -> float | None:
    """How far the last three times are from the three before them, by their medians; None while
    there are fewer.
    """
    if len(times) < 2 * WINDOW:
        return None
    before, last = median(times[-2 * WINDOW : -WINDOW]), median(times[-WINDOW:])
    return abs(last - before) / before


def _unsettled(change: float | None) -> str:
    if change is None:
        return (
            f"the warm-up ended before {2 * WINDOW} iterations, too few to tell whether times had"
            " settled"
        )
    return f"times still changed by {change:.0%} when the warm-up ended"


def _keep(samples: dict[str, list[float]], collected: dict[str, Any]) -> None:
    for phase, value in collected.items():
        samples.setdefault(phase, []).append(value)
