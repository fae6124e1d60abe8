"""Traces of one program on tensors without data, as the bytes of its events."""

from collections.abc import Callable

import torch

from optprof.profiler.tracing.kernel_memory import sized_for
from optprof.profiler.tracing.samples import Samples
from optprof.profiler.tracing.trace import Recorder


def stream(run: Callable[..., object], *tensors: torch.Tensor, gpu: str | None = None) -> list[int]:
    """Return the bytes of each event of `run` on this GPU, negative for a free."""
    recorder = Recorder(workspaces=(), samples=Samples())
    with recorder.phase("build"):
        for tensor in tensors:
            recorder.allocate(tensor, "input")
    with recorder.phase("forward"):
        results = run(*tensors)
    segments, allocations = sized_for(recorder.segments[1:], recorder.allocations, gpu)
    del results
    nbytes = allocations.nbytes
    return [nbytes[event] if event >= 0 else -nbytes[~event] for event in segments[0].events]


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
