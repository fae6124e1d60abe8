"""The time of an optimizer's step on a GPU that is not there: a roofline over its kernels, fed by a
host that launches one after another.

The host runs ahead and the device works through what it was sent, so a step of large tensors takes
what the memory takes, and one of many small tensors what the launches take. docs/step-time.md sets
the estimates beside what was measured.
"""

import torch

from optprof.scenarios.hardware import Gpu

from ..records.record import StepEstimate
from ..tracing.kernel_trace import Kernel, StepTrace

# Seconds of the host for one operation in Python with its launch: AdamW's loop over ten matrices of
# 4 MiB, 80 kernels, took 647 us on an A100 (https://github.com/pytorch/pytorch/issues/120308).
LAUNCH_SECONDS = 8e-6
# Seconds from the end of a kernel until the host that waits for it goes on: 9.6 us a kernel with a
# wait after each where the kernel alone takes 2.9 us (V100,
# https://developer.nvidia.com/blog/cuda-graphs/). Reading a number back is a copy, launched as any
# kernel, and a wait.
WAIT_SECONDS = 6.7e-6
# What of the peak bandwidth a kernel reaches that reads and writes streams: NVIDIA-STREAM 24.3.0
# copies 1,774 GB/s of the 2,039 of an A100-SXM4-80GB.
ACHIEVED_BANDWIDTH = 0.87

_RATES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8",
    torch.float8_e5m2: "fp8",
}


def estimate(step: StepTrace, gpu: Gpu) -> StepEstimate:
    """The step as this GPU would take it; ValueError where it multiplies matrices in a dtype that
    the GPU has no hardware for.
    """
    host = device = 0.0
    for kernel in step.kernels:
        busy = _busy_seconds(kernel, gpu) / kernel.launches
        for _ in range(kernel.launches):
            host += LAUNCH_SECONDS
            device = max(device, host) + busy
        if kernel.waits:
            host = device + WAIT_SECONDS
    return StepEstimate(
        gpu=gpu.name,
        seconds=max(host, device),
        floor_seconds=step.needed_bytes / gpu.bandwidth,
        moved_bytes=sum(kernel.bytes for kernel in step.kernels),
        needed_bytes=step.needed_bytes,
        launches=sum(kernel.launches for kernel in step.kernels),
        synchronisations=sum(kernel.waits for kernel in step.kernels),
    )


def _busy_seconds(kernel: Kernel, gpu: Gpu) -> float:
    """The longer of moving the kernel's bytes and doing its matrix product."""
    moving = kernel.bytes / (ACHIEVED_BANDWIDTH * gpu.bandwidth)
    return max(moving, kernel.flops / _rate(kernel, gpu)) if kernel.flops else moving


def _rate(kernel: Kernel, gpu: Gpu) -> float:
    # In fp32 torch leaves the tensor cores' TF32 alone unless it is told otherwise.
    name = _RATES.get(kernel.dtype, "fp32")
    if name not in gpu.rates:
        raise ValueError(
            f"{kernel.name} multiplies matrices in {name}, which {gpu.name} has no hardware for; it"
            f" has {', '.join(gpu.rates)}"
        )
    return gpu.rates[name]
