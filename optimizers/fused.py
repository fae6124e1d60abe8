"""Fused updates: kernels that read a tensor's memory as few times as the rule allows.

On CUDA they are the Triton kernels of `cuda`, which take all tensors at once. On a CPU they are
C++: the source is the .cpp file of its optimizer's name. `kernels` compiles it at its first use for
one dtype of parameters, which takes two or three seconds, and keeps it for later processes.
"""

from __future__ import annotations

import ctypes
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .bucket import Bucket, State
from .compiled import note_changes
from .kernels import library
from .sharded import is_sharded, local

if TYPE_CHECKING:
    from .multi_tensor import MultiTensorOptimizer

_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "c10::BFloat16",
    torch.float16: "c10::Half",
}
_TRITON_TYPES = (torch.float32, torch.bfloat16, torch.float16)
# A further thread pays off for this many elements.
_SHARE = 2**14

# The kernels of each type of device. Without data there are none to run; the simulated device is
# a GPU.
KERNELS = {"cpu": "cpp", "cuda": "triton", "meta": "triton"}


def require_kernels(optimizer: MultiTensorOptimizer, device: torch.device) -> None:
    """Raise RuntimeError unless an optimizer has fused updates on this device."""
    name = type(optimizer).__name__
    if device.type not in KERNELS:
        raise RuntimeError(
            f"fused=True: {name} has kernels for a CPU and for CUDA, got a parameter on {device}"
        )
    if device.type == "cuda" and find_spec("triton") is None:
        raise RuntimeError(
            f"fused=True: {name} needs triton for its kernels on CUDA, which is not installed; pip"
            " install triton, or leave fused out"
        )


def run(optimizer: MultiTensorOptimizer, bucket: Bucket) -> None:
    """Update a bucket, by the kernel where it takes a parameter, else one by one as the loop does.

    A kernel takes contiguous tensors whose state is as this parameter would get it. A state that
    was cast or has another shape goes to torch's operations, which check such things.
    """
    suited = [
        _suits(optimizer, *each)
        for each in zip(bucket.params, bucket.grads, bucket.states, strict=True)
    ]
    if any(suited):
        by_kernel = (
            bucket
            if all(suited)
            else bucket.select([index for index, suits in enumerate(suited) if suits])
        )
        if KERNELS[by_kernel.params[0].device.type] == "triton":
            with torch.cuda.device_of(local(by_kernel.params[0])):
                import_module(f"{__package__}.cuda.{optimizer.kernels}").update(by_kernel)
        else:
            optimizer._update_fused(by_kernel)
        note_changes([local(param) for param in by_kernel.params])
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
    by_triton = KERNELS[param.device.type] == "triton"
    sharded = is_sharded(param)
    if (
        torch.compiler.is_compiling()
        or grad.is_sparse
        or grad.dtype != param.dtype
        or grad.shape != param.shape
        or param.dtype not in (_TRITON_TYPES if by_triton else _TYPES)
        or (sharded and not (by_triton and _shards_alike(param, grad)))
        or not (sharded or type(param) in (Tensor, torch.nn.Parameter))
    ):
        return False
    # A checkpoint may have added values that are no tensors.
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    are_contiguous = all(
        local(tensor).is_contiguous() for tensor in (param, grad, *tensors.values())
    )
    have_own_dtype = all(
        tensor.dtype == optimizer._state_dtype(name, param)
        for name, tensor in tensors.items()
        if name != "step"
    )
    return are_contiguous and have_own_dtype and optimizer._fits_kernel(param, state)


def _shards_alike(param: Any, grad: Any) -> bool:
    return (
        is_sharded(grad)
        and grad.device_mesh == param.device_mesh
        and grad.placements == param.placements
    )
