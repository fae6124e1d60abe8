"""Fused updates: C++ kernels that read a tensor's memory as few times as the rule allows, on a CPU.

A kernel's source is the .cpp file of its optimizer's name. `kernels` compiles it at its first use
for one dtype of parameters, which takes two or three seconds, and keeps it for later processes.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .bucket import Bucket, State
from .compiled import is_plain, note_changes
from .kernels import library

if TYPE_CHECKING:
    from .multi_tensor import MultiTensorOptimizer

_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "c10::BFloat16",
    torch.float16: "c10::Half",
}
# A further thread pays off for this many elements.
_SHARE = 2**14


def run(optimizer: MultiTensorOptimizer, bucket: Bucket) -> None:
    """Update a bucket, by the kernel where it takes a parameter, else one by one as the loop does.

    The kernel takes contiguous tensors on a CPU whose state is as this parameter would get it. A
    state that was cast or has another shape goes to torch's operations, which check such things.
    """
    suited = [
        _suits(optimizer, *each)
        for each in zip(bucket.params, bucket.grads, bucket.states, strict=True)
    ]
    if any(suited):
        by_kernel = bucket.select([index for index, suits in enumerate(suited) if suits])
        optimizer._update_fused(by_kernel)
        note_changes(by_kernel.params)
    for index, suits in enumerate(suited):
        if not suits:
            optimizer._update(bucket.select([index]))


def kernel(source: Path, name: str, dtype: torch.dtype) -> Any:
    """Return a function of a C++ source for parameters of a dtype; RuntimeError if it cannot be
    compiled.
    """
    return getattr(library(source, _TYPES[dtype]), name)


def addresses(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    """Return the address of each tensor's memory, null for None."""
    return [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]


def threads(param: Tensor) -> int:
    """Return the number of threads to use, at most as many as torch may use."""
    return max(1, min(torch.get_num_threads(), param.numel() // _SHARE))


def _suits(optimizer: MultiTensorOptimizer, param: Tensor, grad: Tensor, state: State) -> bool:
    if not (
        is_plain(param, grad)
        and param.is_cpu
        and param.dtype in _TYPES
        and grad.dtype == param.dtype
        and grad.shape == param.shape
    ):
        return False
    # A checkpoint may have added values that are no tensors.
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    are_contiguous = all(tensor.is_contiguous() for tensor in (param, grad, *tensors.values()))
    have_own_dtype = all(
        tensor.dtype == optimizer._state_dtype(name, param) for name, tensor in tensors.items()
    )
    return are_contiguous and have_own_dtype and optimizer._fits_kernel(param, state)
