"""Memory of FSDP2's copies on CUDA: tables of addresses and blocks for one kernel over all tensors.

Gathered parameters are copied out of one buffer, and gradients into one. From
ATen/native/cuda/TensorShape.cu: `pack_vecs` makes one tensor of 64-bit numbers, which lives no
longer than the launch.
"""

from collections.abc import Mapping, Sequence
from math import ceil, prod, sqrt
from typing import Any

import torch

from .requests import Device, KernelMemory, after_outputs

# Threads of a block, and bytes that it copies at once.
_THREADS = 128
_TILE = 16 * _THREADS
_NUMBER = 8


def kernels() -> Mapping[int, KernelMemory]:
    """Return the memory of FSDP2's operations, which exist once torch.distributed.fsdp does."""
    fsdp = torch.ops.fsdp
    return {
        id(fsdp.split_with_sizes_copy.default): KernelMemory(
            rule=_split, numbers=_of_split, order=after_outputs(1)
        ),
        id(fsdp.chunk_cat.default): KernelMemory(
            rule=_join, numbers=_of_join, order=after_outputs(1)
        ),
    }


def _split(device: Device, ranks: int, *parts: int) -> tuple[int]:
    """Bytes of the table for copying out; `parts` are the bytes of each parameter on a rank."""
    most = device.multiprocessors * device.threads_per_multiprocessor // _THREADS * 2
    tiles = sum(-(-nbytes // _TILE) for nbytes in parts)
    factor = -(-tiles * ranks // most)
    repeats = -(-factor // min(ceil(sqrt(factor)), ranks)) if factor else 1
    blocks = sum(-(-nbytes // (_TILE * repeats)) for nbytes in parts)
    return (_NUMBER * (4 * len(parts) + 1 + blocks),)


def _of_split(
    _: Any,
    gathered: torch.Tensor,
    sizes: Sequence[int],
    dim: int = 0,
    *,
    out: Sequence[torch.Tensor],
) -> tuple[int, ...] | None:
    if dim != 1 or any(each.dtype != gathered.dtype for each in out):
        # torch copies one tensor after another, which needs no table.
        return None
    return (len(gathered), *(size * gathered.element_size() for size in sizes))


def _join(_: Device, *parts: int) -> tuple[int]:
    """Bytes of the table for copying in; `parts` are the padded bytes of each gradient's part."""
    tiles = sum(-(-nbytes // _TILE) for nbytes in parts)
    return (_NUMBER * (6 * len(parts) + 2 + tiles),)


def _of_join(
    _: Any, gradients: Sequence[torch.Tensor], dim: int, num_chunks: int, out: torch.Tensor
) -> tuple[int, ...] | None:
    dtypes = {gradients[0].dtype, out.dtype}
    if len(dtypes) > 1 and (gradients[0].dtype, out.dtype) != (torch.bfloat16, torch.float32):
        return None
    return tuple(
        -(-each.shape[dim] // num_chunks) * prod(each.shape[dim + 1 :]) * out.element_size()
        for each in gradients
    )
