"""Allocations of a real step on the CPU, as torch.profiler sees them without any dispatch mode."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

# Kernels of the CPU that take temporary memory; CUDA's kernels of the same name do not.
_TAKING = {
    "aten::native_layer_norm_backward",
    "aten::native_batch_norm",
    "aten::native_batch_norm_backward",
    "aten::_slow_conv2d_forward",
    "aten::_slow_conv2d_backward",
    "aten::convolution_backward",
    "aten::log_sigmoid",
}


@pytest.fixture
def without_onednn() -> Iterator[None]:
    """Multiply by torch's own kernels on the CPU: oneDNN copies operands, which no GPU does."""
    # torch.backends refuses this once torch's own test tools are imported.
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    yield
    torch._C._set_mkldnn_enabled(enabled)


@pytest.fixture
def cpu_events(without_onednn: None) -> Callable[[Callable[[], object]], list[int]]:
    """Return a function that runs a program and returns the bytes of each event.

    A free has negative bytes. Temporary memory of the CPU's kernels is left out.
    """
    del without_onednn

    def run(program: Callable[[], object]) -> list[int]:
        cpu = torch.profiler.ProfilerActivity.CPU
        with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
            program()
        assert profile.profiler is not None
        assert profile.profiler.kineto_results is not None
        return _without_temporaries(profile.profiler.kineto_results.events())

    return run


def _without_temporaries(events: Any) -> list[int]:
    sums, convolutions = (
        _ranges(events, {"aten::sum"}),
        _ranges(events, {"aten::convolution_backward"}),
    )

    def time(event: Any) -> int:
        """Return the time as on a GPU, where a convolution sums its bias's gradient at its end."""
        start = event.start_ns()
        ends = [end for begin, end in convolutions if begin <= start <= end]
        return ends[0] if ends and any(begin <= start <= end for begin, end in sums) else start

    memory = sorted((time(event), event.nbytes()) for event in events if event.name() == "[memory]")
    own: set[int] = set()
    for begin, end in _ranges(events, _TAKING):
        inside = [n for n, (time, _) in enumerate(memory) if begin <= time <= end and n not in own]
        for free in (n for n in inside if memory[n][1] < 0):
            taken = [n for n in inside if n < free and n not in own]
            taken = [n for n in taken if memory[n][1] == -memory[free][1]]
            own |= {free, taken[-1]} if taken else set()
    return [nbytes for n, (_, nbytes) in enumerate(memory) if n not in own]


def _ranges(events: Any, names: set[str]) -> list[tuple[int, int]]:
    return [
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in events
        if event.name() in names
    ]
