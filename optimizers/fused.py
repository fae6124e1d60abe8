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
from .sharded import local, sharding

if TYPE_CHECKING:
    from .multi_tensor import MultiTensorOptimizer

_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "c10::BFloat16",
    torch.float16: "c10::Half",
}
_TRITON_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_PLAIN = (Tensor, torch.nn.Parameter)
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
    suited = _suited(optimizer, bucket)
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


def _suited(optimizer: MultiTensorOptimizer, bucket: Bucket) -> list[bool]:
    """Return, for each parameter of a bucket, whether the kernel takes it.

    A bucket's parameters have one type, device, dtype and sharding. Each step asks this of every
    tensor, so the loop does as little as it can.
    """
    like = bucket.params[0]
    by_triton = KERNELS[like.device.type] == "triton"
    placed, dtype = sharding(like), like.dtype
    if (
        torch.compiler.is_compiling()
        or dtype not in (_TRITON_TYPES if by_triton else _TYPES)
        or (placed and not by_triton)
        or not (placed or type(like) in _PLAIN)
    ):
        return [False] * len(bucket.params)
    dtypes: dict[str, torch.dtype] = {}

    def suits(param: Tensor, grad: Tensor, state: State) -> bool:
        if grad.is_sparse or grad.dtype != dtype or grad.shape != param.shape:
            return False
        if sharding(grad) != placed:
            return False
        param, grad = local(param), local(grad)
        return (
            # Neither one without data nor one that is still on its way from other ranks.
            type(param) in _PLAIN
            and type(grad) in _PLAIN
            and param.is_contiguous()
            and grad.is_contiguous()
            and _takes_state(optimizer, like, state, dtypes)
        )

    return [
        suits(param, grad, state) and optimizer._fits_kernel(param, state)
        for param, grad, state in zip(bucket.params, bucket.grads, bucket.states, strict=True)
    ]


def _takes_state(
    optimizer: MultiTensorOptimizer, like: Tensor, state: State, dtypes: dict[str, torch.dtype]
) -> bool:
    """Return whether a state is contiguous and has its own dtypes, which are kept in `dtypes`."""
    for name, value in state.items():
        # A checkpoint may have added values that are no tensors.
        if not isinstance(value, Tensor):
            continue
        if not local(value).is_contiguous():
            return False
        if name not in dtypes:
            dtypes[name] = optimizer._state_dtype(name, like)
        if value.dtype != dtypes[name] and name != "step":
            return False
    return True
