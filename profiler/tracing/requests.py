"""Requests that a kernel makes besides its outputs, as rules that give bytes for any GPU.

A model is traced once for all GPUs, and at a few batch sizes for all of them. Sizes that depend on
the GPU, or that do not grow in proportion to the batch, are kept as a rule and its numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from optprof.scenarios import hardware

# The compute capability that a ROCm build reports for an MI300X.
AMD = (9, 4)
HALF_DTYPES = (torch.float16, torch.bfloat16)


class Device(NamedTuple):
    """The properties of a GPU that ATen's kernels look at."""

    compute_capability: tuple[int, int]
    multiprocessors: int
    threads_per_multiprocessor: int

    @property
    def is_amd(self) -> bool:
        """True if torch is built for ROCm."""
        return self.compute_capability == AMD

    @property
    def warp(self) -> int:
        """Threads that run in step."""
        return 64 if self.is_amd else 32


# Compute capability 9.0 with 132 multiprocessors, an H100 SXM or an H200.
USUAL_DEVICE = Device((9, 0), 132, 2048)


def device_of(gpu: str | None) -> Device:
    """Return the device that the catalogue has under this name; without a name, the usual one."""
    if gpu is None:
        return USUAL_DEVICE
    entry = hardware.describe(gpu)
    return Device(entry.compute_capability, entry.multiprocessors, entry.threads_per_multiprocessor)


Rule = Callable[..., Sequence[int]]
"""Bytes of each request of a kernel: `rule(device, *numbers)`.

A rule always gives the same number of requests; 0 bytes mean that the request is not made.
"""


def fixed(_: Device, *nbytes: int) -> tuple[int, ...]:
    """Return the numbers themselves: the rule of requests that do not depend on the device."""
    return nbytes


def copied_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the copy that `contiguous` makes; 0 if the tensor is contiguous already."""
    return 0 if tensor.is_contiguous() else tensor.numel() * tensor.element_size()


@dataclass(frozen=True)
class Request:
    """One request of a kernel: entry `place` of what the rule returns.

    A kernel may leave out an `optional` request, or take less, down to `least` bytes.
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
        """Return the request `step` steps along the line to `other`, which is one step away."""
        numbers = _on_line(self.numbers, other.numbers, step)
        return replace(self, numbers=numbers, least=_on_line(self.least, other.least, step))


def between(least: int, most: int) -> Request:
    """Return a request of a size that is only known as a range."""
    return Request(fixed, (most,), 0, optional=True, least=least)


@lru_cache(maxsize=1 << 16)
def _apply(rule: Rule, device: Device, numbers: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(rule(device, *numbers))


def _on_line(start: Any, end: Any, step: int) -> Any:
    """Return the value `step` steps from start towards end; only whole numbers change."""
    if isinstance(start, tuple) and len(start) == len(end):
        values = (_on_line(low, high, step) for low, high in zip(start, end, strict=True))
        return tuple(values) if type(start) is tuple else type(start)(*values)
    return start + step * (end - start) if type(start) is type(end) is int else start


@lru_cache(maxsize=1 << 16)
def _requests(
    rule: Rule, numbers: tuple[Any, ...], optional: bool
) -> tuple[tuple[Request, ...], tuple[int, ...]]:
    nbytes = _apply(rule, USUAL_DEVICE, numbers)
    return tuple(Request(rule, numbers, place, optional) for place in range(len(nbytes))), nbytes


# Stands for an output in the order of a kernel's requests.
OUTPUT = None


@dataclass(frozen=True, kw_only=True)
class KernelMemory:
    """The requests that the kernel of one operation makes besides its outputs.

    `numbers(result, *args, **kwargs)` returns what the rule needs, or None if nothing is requested.
    `order` lists allocations and frees: `n` makes request n, `~n` frees it, and each OUTPUT makes
    the next output; the last OUTPUT stands for all that remain.
    """

    rule: Rule
    numbers: Callable[..., tuple[Any, ...] | None]
    order: tuple[int | None, ...]
    optional: bool = False

    def requests(
        self, result: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Request, ...], tuple[int, ...]]:
        """Return the requests for these arguments, and their bytes on the usual device."""
        numbers = self.numbers(result, *args, **kwargs)
        return ((), ()) if numbers is None else _requests(self.rule, numbers, self.optional)

    def events(self, outputs: Sequence[int], requests: Sequence[int]) -> list[int]:
        """Return the events of outputs and requests, both given as numbers of allocations."""
        events: list[int] = []
        remaining, marks = list(outputs), self.order.count(OUTPUT)
        for step in self.order:
            if step is not None:
                events.append(requests[step] if step >= 0 else ~requests[~step])
                continue
            marks -= 1
            count = 1 if marks else len(remaining)
            events += remaining[:count]
            del remaining[:count]
        return events


def after_outputs(count: int) -> tuple[int | None, ...]:
    """Return the order: the outputs, then `count` requests, freed in reverse."""
    return (OUTPUT, *range(count), *(~place for place in reversed(range(count))))


def before_outputs(count: int) -> tuple[int | None, ...]:
    """Return the order: `count` requests, then the outputs; the requests are freed in reverse."""
    return (*range(count), OUTPUT, *(~place for place in reversed(range(count))))
