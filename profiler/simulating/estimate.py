"""Estimate the time of an optimizer's step on a GPU: a roofline over its kernels and launches.

The host launches kernels ahead of the device. So the memory bandwidth limits a step on large
tensors, and the launches limit a step on many small tensors. docs/step-time.md compares estimates
with measurements.
"""

import torch

from optprof.scenarios.hardware import Gpu

from ..records.record import StepEstimate
from ..tracing.kernel_trace import Kernel, StepTrace

# Host seconds for one operation in Python with its launch: AdamW's loop over ten matrices of 4 MiB,
# 80 kernels, took 647 us on an A100 (https://github.com/pytorch/pytorch/issues/120308).
LAUNCH_SECONDS = 8e-6
# Seconds from the end of a kernel until the waiting host continues: a kernel of 2.9 us takes 9.6 us
# with a wait (V100, https://developer.nvidia.com/blog/cuda-graphs/). To read a number back is a
# copy, launched like a kernel, and a wait.
WAIT_SECONDS = 6.7e-6
# Share of the peak bandwidth that a streaming kernel reaches: NVIDIA-STREAM 24.3.0 copies
# 1,774 GB/s of the 2,039 of an A100-SXM4-80GB.
ACHIEVED_BANDWIDTH = 0.87

_RATES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8",
    torch.float8_e5m2: "fp8",
}


def estimate(step: StepTrace, gpu: Gpu) -> StepEstimate:
    """Return the estimate of the step on this GPU.

    Raises ValueError if the step multiplies matrices in a dtype that the GPU does not support.
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
    """Return the longer of the times for the kernel's bytes and for its matrix product."""
    moving = kernel.bytes / (ACHIEVED_BANDWIDTH * gpu.bandwidth)
    return max(moving, kernel.flops / _rate(kernel, gpu)) if kernel.flops else moving


def _rate(kernel: Kernel, gpu: Gpu) -> float:
    # By default torch does not use the tensor cores' TF32 for fp32.
    name = _RATES.get(kernel.dtype, "fp32")
    if name not in gpu.rates:
        raise ValueError(
            f"{kernel.name} multiplies matrices in {name}, which {gpu.name} has no hardware for; it"
            f" has {', '.join(gpu.rates)}"
        )
    return gpu.rates[name]
