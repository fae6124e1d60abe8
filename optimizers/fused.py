"""Fused updates: a tensor's update by a kernel in C++ that goes over its memory as few times as the
rule allows, on a CPU.

The source of a kernel stands beside the module whose rule it computes. It is compiled at its first
use, for one dtype of parameters and for the instructions that torch has found on the machine, which
takes two or three seconds, and is kept for later processes in TORCH_EXTENSIONS_DIR, else in
~/.cache/torch_extensions (see `kernels`).
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .compiled import is_plain
from .kernels import library

if TYPE_CHECKING:
    from .multi_tensor import Bucket, MultiTensorOptimizer, State

_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "c10::BFloat16",
    torch.float16: "c10::Half",
}
# A thread more is worth it for so many elements.
_SHARE = 2**14


def divided(optimizer: MultiTensorOptimizer, bucket: Bucket) -> tuple[Bucket, list[Bucket]]:
    """Those parameters of a bucket that a kernel takes, and each of the others.

    A kernel takes what lies on a CPU in one piece, with a state as it was made for this parameter:
    one that was turned into another dtype since, or is of another shape, goes where torch looks
    after such things.
    """
    chosen = [
        _suits(optimizer, *each)
        for each in zip(bucket.params, bucket.grads, bucket.states, strict=True)
    ]
    others = [bucket.chosen([index]) for index, is_chosen in enumerate(chosen) if not is_chosen]
    return bucket.chosen(
        [index for index, is_chosen in enumerate(chosen) if is_chosen]
    ) if others else bucket, others


def kernel(source: Path, name: str, dtype: torch.dtype) -> Any:
    """A function of a source in C++, for parameters of a dtype; RuntimeError where it cannot be
    compiled.
    """
    return getattr(library(source, _TYPES[dtype]), name)


def addresses(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    """Where the memory of each tensor begins; null for none."""
    return [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]


def threads(param: Tensor) -> int:
    """How many threads are worth it, of those that torch may use."""
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
    # A checkpoint may have brought something else beside the state.
    held = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    whole = all(tensor.is_contiguous() for tensor in (param, grad, *held.values()))
    known = all(
        tensor.dtype == optimizer._state_dtype(name, param) for name, tensor in held.items()
    )
    return whole and known and optimizer._covers(param, state)
