"""Harness for real iterations: watch their memory, then warm up, then time them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from math import inf
from statistics import median
from typing import Any

import torch

from ..records.confidence import median_interval
from ..records.record import GpuReading
from .clock import clock_for
from .disturbances import Disturbances, disturbances
from .ranks import agreed

# Iterations whose memory is watched and that are not timed: the first makes the state, the second
# is like all later ones.
WATCHED = 2
# A warm-up takes a second; of short iterations this many, if they take a fifth of it.
WARM_UP_SECONDS = 1.0
WARM_UP_ITERATIONS = 20
WARM_UP_LIMIT = 10.0
# Warm-up ends when the median of the last three times is this close to that of the three before.
STABLE, WINDOW = 0.05, 3
# Warm-up iterations to keep, the last ones, or up to twice as many: some take microseconds.
MOST_WARM_UP = 10_000
# Share of the sampling time that the step may then take alone.
ALONE = 0.5
# Sampling ends when the median's confidence interval is this narrow on both sides. The interval
# needs at least six samples.
NARROW = 0.02
# From this many samples on, it also ends if the second half of them has not narrowed the interval.
# Twice the samples of steady noise narrow it by 29 % on average.
ENOUGH_SAMPLES = 40
LEAST_SAMPLES = 3
# The GPU is read with each of the first samples, then with every tenth.
GPU_EVERY = 10

Phase = Callable[[str], AbstractContextManager[Any]]


def require_cuda() -> None:
    """Raise ValueError on a machine without a CUDA device."""
    if not torch.cuda.is_available():
        raise ValueError("no CUDA device on this machine; use --device sim or cpu")


class Harness:
    """Repeats an iteration and keeps its raw seconds by phase in `warmup` and `times`.

    `gpu` has the readings of the GPU during the samples, `warnings` a line for each disturbance. If
    the iteration is that of one of several ranks (`on_ranks`), the first rank decides when to stop.
    """

    def __init__(self, device: str, *, on_ranks: bool = False) -> None:
        self.times: dict[str, list[float]] = {}
        self.warmup: dict[str, list[float]] = {}
        self.gpu: tuple[GpuReading, ...] = ()
        self.warnings: tuple[str, ...] = ()
        self._device, self._on_ranks = device, on_ranks
        # Ranks that did not run the same iterations would wait for each other forever.
        self._agreed: Callable[[bool], bool] = agreed if on_ranks else bool
        self._clock = clock_for(device)
        self._phase: Phase = self._clock.phase

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time the code inside, or pass it to the current watch."""
        return self._phase(name)

    @contextmanager
    def handing_phases_to(self, watch: Phase) -> Iterator[None]:
        """Pass the phases inside to `watch` instead of timing them."""
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
        """Warm up, then sample until the medians are known to 2 %, at least three times.

        Sampling also ends when more samples do not help, and after `samples` iterations or
        `seconds`. If the step's median is still
        not known, `alone` runs the step by itself for half of that time.
        """
        warnings = self._warm_up(iterate)
        with disturbances(self._device, on_ranks=self._on_ranks) as machine:
            self._collect(iterate, samples, seconds, ("step", "iteration"), machine)
            missing = samples - len(self.times["step"])
            if alone is not None and missing > 0 and not self._agreed(self._is_settled("step")):
                with alone() as step:
                    # Drop the times of the pass that made the gradients.
                    self._clock.collect()
                    self._collect(step, missing, seconds * ALONE, ("step",), None)
        self.gpu = machine.gpu
        self.warnings = (*warnings, *machine.warnings())

    def keep_sample(self) -> None:
        """Keep the phases timed since the last sample as one sample."""
        _keep(self.times, self._clock.collect())

    def _warm_up(self, iterate: Callable[[], None]) -> list[str]:
        """Iterate until times are stable; return warnings.

        That takes a second or 20 iterations, but at least 0.2 seconds, and at most ten.
        """
        start = time.monotonic()
        while True:
            iterate()
            _keep(self.warmup, self._clock.collect())
            for samples in self.warmup.values():
                if len(samples) > 2 * MOST_WARM_UP:
                    del samples[:MOST_WARM_UP]
            change = _change(max(self.warmup.values(), key=sum))
            passed, count = time.monotonic() - start, max(map(len, self.warmup.values()))
            share = 0.2 if count >= WARM_UP_ITERATIONS else 1.0
            settled = change is not None and change <= STABLE
            ends = (settled and passed >= share * WARM_UP_SECONDS) or passed >= WARM_UP_LIMIT
            if self._agreed(ends):
                return [] if settled else [_unsettled(change)]

    def _collect(
        self,
        iterate: Callable[[], None],
        samples: int,
        seconds: float,
        phases: Sequence[str],
        machine: Disturbances | None,
    ) -> None:
        end = time.monotonic() + seconds
        for count in range(samples):
            if count >= LEAST_SAMPLES and self._agreed(
                time.monotonic() > end or self._is_settled(*phases)
            ):
                break
            iterate()
            # Before the clock waits for the device: the GPU still works on the iteration. The
            # events that end its phases are on the stream already.
            if machine is not None and (count < LEAST_SAMPLES or count % GPU_EVERY == 0):
                machine.look()
            self.keep_sample()

    def _is_settled(self, *phases: str) -> bool:
        """Return whether more samples would tell no more about the medians of these phases."""
        return all(
            is_narrow(self.times[phase]) or is_as_narrow_as_before(self.times[phase])
            for phase in phases
            if phase in self.times
        )


def is_narrow(samples: Sequence[float]) -> bool:
    """Return whether the median's 95 % confidence interval is within 2 % of it on both sides."""
    return _width(samples) <= NARROW


def is_as_narrow_as_before(samples: Sequence[float]) -> bool:
    """Return whether the second half of many samples has not narrowed the median's interval."""
    if len(samples) < ENOUGH_SAMPLES or len(samples) % (ENOUGH_SAMPLES // 2):
        return False
    return _width(samples) >= _width(samples[: len(samples) // 2])


def _width(samples: Sequence[float]) -> float:
    """Return the larger side of the median's 95 % confidence interval, as a share of it."""
    interval, middle = median_interval(samples), median(samples)
    if interval is None or not middle:
        return inf if interval is None else 0.0
    return max(interval.upper - middle, middle - interval.lower) / middle


def _change(times: Sequence[float]) -> float | None:
    """Return the relative change from the median of three times to that of the next three.

    None with fewer than six times.
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
