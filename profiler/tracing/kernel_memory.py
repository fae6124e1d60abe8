"""Memory that CUDA's kernels take for themselves, which no output of an operation shows.

Sizes are from ATen's CUDA sources, each named where it is used; docs/simulator.md lists what is
left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .attention_memory import ATTENTION
from .convolutions import CONVOLUTIONS
from .masks import MASKS
from .matrix_products import PRODUCTS
from .normalization import NORMS
from .ordering import ORDERING
from .reducing_operations import REDUCTIONS
from .requests import USUAL_DEVICE, Device, Kernel, Request, before_outputs, device_of
from .scans import SCANS
from .sorting import SORTING
from .stream import Allocations, Segment

# parseChosenWorkspaceSize in ATen/cuda/CublasHandlePool.cpp, by the major compute capability;
# cublasLt uses the same memory.
_WORKSPACE = 2 * 4096 * 1024 + 8 * 16 * 1024
_LARGE_WORKSPACE = 32 << 20
_AMD_WORKSPACE = 128 << 20

aten = torch.ops.aten


def _workspace(device: Device) -> tuple[int]:
    if device.is_amd:
        return (_AMD_WORKSPACE,)
    return (_LARGE_WORKSPACE if device.compute_capability[0] >= 9 else _WORKSPACE,)


WORKSPACE = Request(_workspace, (), 0)


def sized_for(
    segments: Sequence[Segment],
    allocations: Allocations,
    gpu: str | None,
    *,
    optional: bool = False,
) -> tuple[list[Segment], Allocations]:
    """The stream as it is on this GPU, without the requests that its kernels do not make.

    `optional` counts those that a kernel may make or not at their largest, not at their least.
    """
    device = device_of(gpu)
    nbytes = list(allocations.nbytes)
    for number, request in allocations.requests.items():
        if request.optional and not optional:
            nbytes[number] = request.least
        elif device != USUAL_DEVICE:
            nbytes[number] = request.nbytes(device)
    allocations = replace(allocations, nbytes=nbytes)
    absent = {number for number in allocations.requests if not nbytes[number]}
    absent |= {~number for number in absent}
    present = [
        replace(segment, events=[event for event in segment.events if event not in absent])
        for segment in segments
    ]
    return present, allocations


def _foreach_norm(_: Device, tensors: int, longest: int, item: int) -> list[int]:
    """foreach_tensor_norm_cuda (ForeachReduceOp.cu): a partial sum for each chunk of the
    longest.
    """
    return [item * tensors * -(-longest // 65_536)]


def _of_foreach_norm(
    _: Any, tensors: Sequence[torch.Tensor], *__: Any, **___: Any
) -> tuple[int, int, int]:
    return (
        len(tensors),
        max(tensor.numel() for tensor in tensors),
        max(4, tensors[0].element_size()),
    )


KERNELS: Mapping[Any, Kernel] = {
    **REDUCTIONS,
    **ATTENTION,
    **CONVOLUTIONS,
    **PRODUCTS,
    **NORMS,
    **SORTING,
    **ORDERING,
    **SCANS,
    **MASKS,
    aten._foreach_norm.Scalar: Kernel(
        rule=_foreach_norm, numbers=_of_foreach_norm, order=before_outputs(1)
    ),
}

# Operations by identity: to hash one takes longer than to look its number up.
TAKING = frozenset(map(id, KERNELS))
