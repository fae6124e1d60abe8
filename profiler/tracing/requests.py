"""Requests that a kernel makes besides its outputs, kept so that a GPU and a batch size give bytes.

A trace is taken once for every GPU, and at a few batch sizes for all of them. Sizes that depend on
the GPU, or that do not grow in proportion, are recorded as a rule and the numbers that it needs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from optprof.scenarios import hardware

_AMD = (9, 4)


class Device(NamedTuple):
    """The properties of a GPU that ATen's kernels look at."""

    compute_capability: tuple[int, int]
    multiprocessors: int
    threads_per_multiprocessor: int

    @property
    def is_amd(self) -> bool:
        """True where torch is built for ROCm."""
        return self.compute_capability == _AMD

    @property
    def warp(self) -> int:
        """Threads that run in step."""
        return 64 if self.is_amd else 32


# Compute capability 9.0 with 132 multiprocessors, an H100 SXM or an H200.
USUAL_DEVICE = Device((9, 0), 132, 2048)


def device_of(gpu: str | None) -> Device:
    """The device of the catalogue's name; without a name, the usual one."""
    if gpu is None:
        return USUAL_DEVICE
    found = hardware.describe(gpu)
    return Device(found.compute_capability, found.multiprocessors, found.threads_per_multiprocessor)


Rule = Callable[..., Sequence[int]]
"""Bytes of each request of a kernel: `rule(device, *numbers)`, always as many; 0 is no request."""


@dataclass(frozen=True)
class Request:
    """One request of a kernel: number `place` of those that the rule gives.

    A kernel may do without an `optional` one, or with less, down to `least` bytes.
    """

    rule: Rule
    numbers: tuple[Any, ...]
    place: int
    optional: bool = False
    least: int = 0

    def nbytes(self, device: Device) -> int:
        """Bytes that are requested on this device."""
        return _apply(self.rule, device, self.numbers)[self.place]

    def at(self, step: int, other: "Request") -> "Request":
        """The request so many steps further on the line to another, which is one step away."""
        numbers = _on_line(self.numbers, other.numbers, step)
        return replace(self, numbers=numbers, least=_on_line(self.least, other.least, step))


def between(least: int, most: int) -> Request:
    """A request of a size that is not known."""
    return Request(_most, (most,), 0, optional=True, least=least)


def _most(_: Device, nbytes: int) -> tuple[int]:
    return (nbytes,)


@lru_cache(maxsize=1 << 16)
def _apply(rule: Rule, device: Device, numbers: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(rule(device, *numbers))


def _on_line(here: Any, there: Any, step: int) -> Any:
    if isinstance(here, tuple) and len(here) == len(there):
        found = (_on_line(low, high, step) for low, high in zip(here, there, strict=True))
        return tuple(found) if type(here) is tuple else type(here)(*found)
    return here + step * (there - here) if type(here) is type(there) is int else here


@lru_cache(maxsize=1 << 16)
def _requests(
    rule: Rule, numbers: tuple[Any, ...], optional: bool
) -> tuple[tuple[Request, ...], tuple[int, ...]]:
    nbytes = _apply(rule, USUAL_DEVICE, numbers)
    return tuple(Request(rule, numbers, place, optional) for place in range(len(nbytes))), nbytes


# In the order of a kernel's requests: the place where its outputs are requested.
OUTPUT = None


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """The requests of one operation.

    `numbers(result, *args, **kwargs)` gives what the rule needs, None where nothing is requested.
    `order` has a place for each request, its complement for when it is given back, and OUTPUT for
    each output in turn; the last OUTPUT stands for all that are left.
    """

    rule: Rule
    numbers: Callable[..., tuple[Any, ...] | None]
    order: tuple[int | None, ...]
    optional: bool = False

    def requests(
        self, result: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Request, ...], tuple[int, ...]]:
        """The requests for these arguments, by place, and their bytes on the usual device."""
        numbers = self.numbers(result, *args, **kwargs)
        return ((), ()) if numbers is None else _requests(self.rule, numbers, self.optional)

    def events(self, outputs: Sequence[int], taken: Sequence[int]) -> list[int]:
        """The events of the outputs and the requests, by the numbers of their allocations."""
        events: list[int] = []
        left, marks = list(outputs), self.order.count(OUTPUT)
        for step in self.order:
            if step is not None:
                events.append(taken[step] if step >= 0 else ~taken[~step])
                continue
            marks -= 1
            count = 1 if marks else len(left)
            events += left[:count]
            del left[:count]
        return events


def after_outputs(count: int) -> tuple[int | None, ...]:
    """The outputs, then so many requests, given back in reverse."""
    return (OUTPUT, *range(count), *(~place for place in reversed(range(count))))


def before_outputs(count: int) -> tuple[int | None, ...]:
    """So many requests, then the outputs; the requests are given back in reverse."""
    return (*range(count), OUTPUT, *(~place for place in reversed(range(count))))
